// What joins two blocks of a model: h += scale * delta, y = rms_norm(h).
//
// Each warp has its own 256 elements of a row, lanes side by side; weights are asked for before
// anything else, as with few rows time is latency.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"
#include "kernels/norm.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kPerLane = 8;
constexpr int kPerWarp = kPerLane * kWarp;
constexpr int kMaxWarps = 32;  // of a row

template <typename T>
struct AddNorm {
  float* h;
  const T* delta;
  const float* weight;
  T* out;
  int64_t h_stride, delta_stride, out_stride;
  int n;
  float scale, eps;
};

// N: neighbouring elements of a lane; a lane has kPerLane / N such pieces of its warp's share.
template <typename T, int N>
__global__ __launch_bounds__(kMaxWarps* kWarp) void AddRmsNormKernel(AddNorm<T> a) {
  constexpr int kPieces = kPerLane / N;
  __shared__ float partial[kMaxWarps];
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t row = blockIdx.x;
  const int begin = warp * kPerWarp + lane * N, step = warps * kPerWarp;
  float* h = a.h + row * a.h_stride;
  const T* delta = a.delta != nullptr ? a.delta + row * a.delta_stride : nullptr;
  T* out = a.out + row * a.out_stride;
  float weight[kPieces][N], x[kPieces][N], d[kPieces][N];
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int i = begin + k * kWarp * N;
    if (i < a.n) LoadN<N>(a.weight + i, weight[k]);
  }
  PdlLaunchDependents();
  PdlWait();
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int i = begin + k * kWarp * N;
    if (i < a.n) {
      LoadN<N>(h + i, x[k]);
      if (delta != nullptr) LoadN<N>(delta + i, d[k]);
    }
  }
  float sum = 0.0f;
  // Adds delta at i, also in memory, and the square to the sum.
  auto add = [&](int i, float(&v)[N], const float(&change)[N]) {
    if (delta != nullptr) {
#pragma unroll
      for (int e = 0; e < N; ++e) v[e] = fmaf(change[e], a.scale, v[e]);
      StoreN<N>(h + i, v);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) sum = fmaf(v[e], v[e], sum);
  };
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    if (begin + k * kWarp * N < a.n) add(begin + k * kWarp * N, x[k], d[k]);
  }
  for (int base = begin + step; base < a.n; base += step) {  // long rows
    for (int i = base; i < min(base + kPerWarp, a.n); i += kWarp * N) {
      float v[N], change[N];
      LoadN<N>(h + i, v);
      if (delta != nullptr) LoadN<N>(delta + i, change);
      add(i, v, change);
    }
  }
  sum = WarpSum(sum);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  const float total = WarpSum(lane < warps ? partial[lane] : 0.0f);
  const float factor = 1.0f / sqrtf(total / static_cast<float>(a.n) + a.eps);
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int i = begin + k * kWarp * N;
    if (i < a.n) {
#pragma unroll
      for (int e = 0; e < N; ++e) x[k][e] = x[k][e] * factor * weight[k][e];
      StoreN<N>(out + i, x[k]);
    }
  }
  for (int base = begin + step; base < a.n; base += step) {
    for (int i = base; i < min(base + kPerWarp, a.n); i += kWarp * N) {
      float v[N], w[N];
      LoadN<N>(h + i, v);  // what this thread wrote
      LoadN<N>(a.weight + i, w);
#pragma unroll
      for (int e = 0; e < N; ++e) v[e] = v[e] * factor * w[e];
      StoreN<N>(out + i, v);
    }
  }
}

template <typename T, int N>
void Run(const AddNorm<T>& a, int64_t rows, Stream stream) {
  const int64_t warps = std::min<int64_t>(CeilDiv(a.n, kPerWarp), kMaxWarps);
  Launch("AddRmsNorm", stream, AddRmsNormKernel<T, N>, dim3(static_cast<unsigned>(rows)),
         dim3(static_cast<unsigned>(warps * kWarp)), {}, a);
}

}  // namespace

void AddRmsNorm(const AddRmsNormArgs& args, Stream stream) {
  const int64_t rows = args.h.size(0), n = args.h.size(1);
  WEIR_CHECK(args.weight.defined() && args.weight.num_elements() == n && args.out.size(0) == rows &&
             args.out.num_elements() == rows * n)
      << args.weight.ToString() << ", out " << args.out.ToString() << " for " << args.h.ToString();
  if (args.delta.defined()) {
    WEIR_CHECK(args.delta.size(0) == rows && args.delta.num_elements() == rows * n &&
               args.delta.dtype() == args.out.dtype())
        << args.delta.ToString() << " for " << args.h.ToString();
  }
  if (rows == 0 || n == 0) return;
  WithActivation(args.out.dtype(), [&](auto tag) {
    using T = decltype(tag);
    AddNorm<T> a{};
    a.h = args.h.data<float>();
    a.h_stride = args.h.row_stride();
    a.delta = DataOrNull<T>(args.delta);
    a.delta_stride = args.delta.row_stride();
    a.weight = args.weight.data<float>();
    a.out = static_cast<T*>(args.out.raw());
    a.out_stride = args.out.row_stride();
    a.n = static_cast<int>(n);
    a.scale = args.scale;
    a.eps = args.eps;
    const bool vectors = n % 4 == 0 && RowsAligned(args.h) && RowsAligned(args.delta) &&
                         RowsAligned(args.out) && RowsAligned(args.weight);
    if (vectors) {
      Run<T, 4>(a, rows, stream);
    } else {
      Run<T, 1>(a, rows, stream);
    }
  });
}

}  // namespace weir::kernels::gpu
