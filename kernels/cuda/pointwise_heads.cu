// Ops that share a number over a head: one warp for each head of each row.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"
#include "kernels/pointwise.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 128;

// The head of this warp, as row * heads + head.
__device__ __forceinline__ int64_t WarpIndex() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
}
dim3 GridFor(int64_t warps) {
  return dim3(static_cast<unsigned>(CeilDiv(warps * kWarp, kThreads)));
}

template <typename T>
struct DtJob {
  const T *x, *xs;
  const float *bias, *exp_a;
  float* g;
  T* v;
  int64_t x_stride, xs_stride, g_stride, v_stride, rows;
  int heads, width;
  float lo, hi;
};

template <typename T>
__global__ __launch_bounds__(kThreads) void Mamba2DtKernel(DtJob<T> a) {
  PdlLaunchDependents();
  PdlWait();
  const int64_t row = WarpIndex() / a.heads;
  const int head = static_cast<int>(WarpIndex() % a.heads), lane = threadIdx.x % kWarp;
  if (row >= a.rows) return;
  const float x = Load(a.x + row * a.x_stride + head) + a.bias[head];
  float dt = fmaxf(a.lo, x > 20.0f ? x : log1pf(expf(x)));
  if (a.hi > a.lo) dt = fminf(a.hi, dt);
  __syncwarp();  // g may be x
  if (lane == 0) a.g[row * a.g_stride + head] = -a.exp_a[head] * dt;
  const T* xs = a.xs + row * a.xs_stride + static_cast<int64_t>(head) * a.width;
  T* v = a.v + row * a.v_stride + static_cast<int64_t>(head) * a.width;
  for (int i = lane; i < a.width; i += kWarp) Store(v + i, Load(xs + i) * dt);
}

template <typename T>
__global__ __launch_bounds__(kThreads) void DivideBySumKernel(T* x, int64_t stride, int64_t rows,
                                                              int heads, int width, float eps) {
  PdlLaunchDependents();
  PdlWait();
  const int64_t row = WarpIndex() / heads;
  const int head = static_cast<int>(WarpIndex() % heads), lane = threadIdx.x % kWarp;
  if (row >= rows) return;
  T* at = x + row * stride + static_cast<int64_t>(head) * width;
  float sum = 0.0f;
  for (int i = lane; i < width; i += kWarp) sum += Load(at + i);
  const float divisor = WarpSum(sum) + eps;
  for (int i = lane; i < width; i += kWarp) Store(at + i, Load(at + i) / divisor);
}

}  // namespace

void Mamba2Dt(const Mamba2DtArgs& args, Stream stream) {
  const int64_t rows = args.x.size(0), heads = args.x.size(1);
  WEIR_CHECK(args.xs.rank() == 3 && args.xs.size(0) == rows && args.xs.size(1) == heads &&
             args.xs.dtype() == args.x.dtype())
      << args.xs.ToString() << " for " << args.x.ToString();
  WEIR_CHECK(args.bias.num_elements() == heads && args.exp_a.num_elements() == heads)
      << args.bias.ToString() << " " << args.exp_a.ToString() << " for " << heads << " heads";
  WEIR_CHECK(args.g.size(0) == rows && args.g.num_elements() == args.x.num_elements() &&
             args.v.num_elements() == args.xs.num_elements() && args.v.dtype() == args.xs.dtype())
      << args.g.ToString() << " " << args.v.ToString() << " for " << args.xs.ToString();
  if (rows * heads == 0) return;
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    DtJob<T> a{};
    a.x = static_cast<const T*>(args.x.raw());
    a.xs = static_cast<const T*>(args.xs.raw());
    a.bias = args.bias.data<float>();
    a.exp_a = args.exp_a.data<float>();
    a.g = args.g.data<float>();
    a.v = static_cast<T*>(args.v.raw());
    a.x_stride = args.x.row_stride();
    a.xs_stride = args.xs.row_stride();
    a.g_stride = args.g.row_stride();
    a.v_stride = args.v.row_stride();
    a.rows = rows;
    a.heads = static_cast<int>(heads);
    a.width = static_cast<int>(args.xs.size(2));
    a.lo = args.lo;
    a.hi = args.hi;
    Launch("Mamba2Dt", stream, Mamba2DtKernel<T>, GridFor(rows * heads), dim3(kThreads), {}, a);
  });
}

void DivideBySum(TensorView x, float eps, Stream stream) {
  if (x.num_elements() == 0) return;
  const int64_t width = x.size(x.rank() - 1), heads = RowWidth(x) / width;
  WithActivation(x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    Launch("DivideBySum", stream, DivideBySumKernel<T>, GridFor(x.size(0) * heads), dim3(kThreads),
           {}, static_cast<T*>(x.raw()), x.row_stride(), x.size(0), heads, width, eps);
  });
}

}  // namespace weir::kernels::gpu
