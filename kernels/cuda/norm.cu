// Norms of groups, and layer norm. A team of threads shares a group of elements (or a row) and
// keeps what it read in registers, so that everything is read once: a few lanes of a warp for short
// groups (heads), a whole thread block for rows. Groups beyond what a block's registers hold are
// read twice. AddRmsNorm is in add_rms_norm.cu.
#include "kernels/norm.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kHeld = 2;  // most vectors of a thread that stay in registers

// Sum over the team: `team` lanes of a warp (a power of two), or the block when team > 32. In an
// order that depends on the team alone. Blocks: every thread calls it; once per kernel and buffer.
__device__ __forceinline__ float TeamSum(float x, int team, float* shared) {
  if (team <= kWarp) {
    for (int i = team / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
  }
  x = WarpSum(x);
  const int warps = static_cast<int>(blockDim.x) / kWarp, lane = threadIdx.x % kWarp;
  if (lane == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  return WarpSum(lane < warps ? shared[lane] : 0.0f);
}

// rms, l2 and gated norms of groups.
template <typename T>
struct GroupNorm {
  const T *x, *gate;
  const float* weight;
  T* out;
  int64_t x_stride, gate_stride, out_stride, rows;
  int groups, group, team;
  float mean_factor, eps, scale;  // y = x * scale / sqrt(sum * mean_factor + eps)
  bool weight_per_group;          // [group], else [groups * group]
  bool sigmoid, gate_first, normalize;
};

template <typename T, int N>
__device__ __forceinline__ void Gate(const GroupNorm<T>& a, const float (&gate)[N], float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float s = SigmoidFor<T>(gate[i]);
    x[i] *= a.sigmoid ? s : s * gate[i];
  }
}

// kHold: vectors of a thread that stay in registers; kGated: whether there may be a gate.
template <typename T, int N, int kHold, bool kGated>
__global__ __launch_bounds__(kMaxThreads) void GroupNormKernel(GroupNorm<T> a) {
  __shared__ float shared[kWarp];
  // Rows along x, groups along y; what is left of a thread block does rows too.
  const int member = static_cast<int>(threadIdx.x);
  const int group = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.z + threadIdx.z;
  const bool active = group < a.groups && row < a.rows;
  const int first = active ? group * a.group : 0, end = active ? a.group : 0;
  const T* x = a.x + row * a.x_stride + first;
  const T* gate = kGated && a.gate != nullptr ? a.gate + row * a.gate_stride + first : nullptr;
  T* out = a.out + row * a.out_stride + first;
  const float* weight = a.weight != nullptr ? a.weight + (a.weight_per_group ? 0 : first) : nullptr;
  const int step = a.team * N;

  PdlLaunchDependents();
  PdlWait();
  auto load = [&](int i, float(&v)[N], float(&g)[N]) {
    LoadN<N>(x + i, v);
    if (gate != nullptr) {
      LoadN<N>(gate + i, g);
      if (a.gate_first) Gate<T, N>(a, g, v);
    }
  };
  auto store = [&](int i, float(&v)[N], const float(&g)[N], float factor) {
    float w[N];
    if (weight != nullptr) LoadN<N>(weight + i, w);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = weight != nullptr ? v[k] * factor * w[k] : v[k] * factor;
    if (gate != nullptr && !a.gate_first) Gate<T, N>(a, g, v);
    StoreN<N>(out + i, v);
  };
  float held[kHold][N], held_gate[kHold][N];
  float sum = 0.0f;
#pragma unroll
  for (int h = 0; h < kHold; ++h) {
    const int i = member * N + h * step;
    if (i < end) load(i, held[h], held_gate[h]);
  }
#pragma unroll
  for (int h = 0; h < kHold; ++h) {
    if (member * N + h * step < end) {
#pragma unroll
      for (int k = 0; k < N; ++k) sum += held[h][k] * held[h][k];
    }
  }
  for (int i = member * N + kHold * step; i < end; i += step) {
    float v[N], g[N];
    load(i, v, g);
#pragma unroll
    for (int k = 0; k < N; ++k) sum += v[k] * v[k];
  }
  float factor = a.scale;
  if (a.normalize) factor *= 1.0f / sqrtf(TeamSum(sum, a.team, shared) * a.mean_factor + a.eps);
#pragma unroll
  for (int h = 0; h < kHold; ++h) {
    const int i = member * N + h * step;
    if (i < end) store(i, held[h], held_gate[h], factor);
  }
  for (int i = member * N + kHold * step; i < end; i += step) {
    float v[N], g[N];
    load(i, v, g);
    store(i, v, g, factor);
  }
}

// Threads for `vectors` vectors, each thread holding a few: a power of two up to a warp, else whole
// warps.
int TeamFor(int64_t vectors) {
  if (vectors > kWarp) {
    const int64_t wanted = vectors <= kMaxThreads ? vectors : CeilDiv(vectors, kHeld);
    return static_cast<int>(std::min<int64_t>(CeilDiv(wanted, kWarp) * kWarp, kMaxThreads));
  }
  int team = 1;
  while (team < vectors) team *= 2;
  return team;
}

template <typename T, int N>
void RunGroupNorm(const char* op, GroupNorm<T> a, Stream stream) {
  a.team = TeamFor(CeilDiv(a.group, N));
  dim3 block(static_cast<unsigned>(a.team));
  if (a.team <= kWarp) {
    constexpr unsigned kThreads = 128;
    while (block.y < static_cast<unsigned>(a.groups) && block.x * block.y < kThreads) block.y *= 2;
    block.z = std::min(kThreads / (block.x * block.y), 64u);  // which is all there may be
  }
  const dim3 grid(static_cast<unsigned>(CeilDiv(a.rows, block.z)),
                  static_cast<unsigned>(CeilDiv(a.groups, block.y)));
  auto* kernel = GroupNormKernel<T, N, kHeld, true>;
  if constexpr (N > 1) {
    if (a.team * N >= a.group) {
      kernel = a.gate != nullptr ? GroupNormKernel<T, N, 1, true> : GroupNormKernel<T, N, 1, false>;
    }
  }
  Launch(op, stream, kernel, grid, block, {}, a);
}

template <typename T>
void GroupNormOf(const char* op, const TensorView& x, const TensorView& gate,
                 const TensorView& weight, const TensorView& out, int64_t group, GroupNorm<T> a,
                 Stream stream) {
  const int64_t rows = x.size(0), n = x.size(1);
  WEIR_CHECK(x.rank() == 2 && out.rank() == 2 && out.size(0) == rows && out.size(1) == n &&
             out.dtype() == x.dtype())
      << x.ToString() << " against " << out.ToString();
  if (rows == 0 || n == 0) return;
  if (group == 0) group = n;
  WEIR_CHECK(group > 0 && n % group == 0) << "groups of " << group << " in " << n;
  a.x = DataOrNull<T>(x);
  a.x_stride = x.row_stride();
  if (gate.defined()) {
    WEIR_CHECK(gate.size(0) == rows && gate.num_elements() == rows * n && gate.dtype() == x.dtype())
        << gate.ToString() << " for " << x.ToString();
    a.gate = DataOrNull<T>(gate);
    a.gate_stride = gate.row_stride();
  }
  if (weight.defined() && a.normalize) {
    WEIR_CHECK(weight.num_elements() == n || weight.num_elements() == group)
        << weight.ToString() << " for " << x.ToString();
    a.weight = weight.data<float>();
    a.weight_per_group = weight.num_elements() == group;
  }
  a.out = static_cast<T*>(out.raw());
  a.out_stride = out.row_stride();
  a.rows = rows;
  a.group = static_cast<int>(group);
  a.groups = static_cast<int>(n / group);
  constexpr int kTogether = 16 / static_cast<int>(sizeof(T));
  const bool vectors = group % kTogether == 0 && RowsAligned(x) && RowsAligned(gate) &&
                       RowsAligned(out) && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
  if (vectors) {
    RunGroupNorm<T, kTogether>(op, a, stream);
  } else {
    RunGroupNorm<T, 1>(op, a, stream);
  }
}

template <typename T>
struct LayerNormOf {
  const float *x, *weight, *bias;
  T* out;
  int64_t x_stride, out_stride;
  int n;
  float eps;
};

template <typename T, int N>
__global__ __launch_bounds__(kMaxThreads) void LayerNormKernel(LayerNormOf<T> a) {
  __shared__ float shared[2][kWarp];
  const float* x = a.x + blockIdx.x * a.x_stride;
  T* out = a.out + blockIdx.x * a.out_stride;
  const int begin = static_cast<int>(threadIdx.x) * N, step = static_cast<int>(blockDim.x) * N;
  const int team = static_cast<int>(blockDim.x);
  PdlLaunchDependents();
  PdlWait();
  float sum = 0.0f;
  for (int i = begin; i < a.n; i += step) {
    float v[N];
    LoadN<N>(x + i, v);
#pragma unroll
    for (int e = 0; e < N; ++e) sum += v[e];
  }
  const float mean = TeamSum(sum, team, shared[0]) / static_cast<float>(a.n);
  float squares = 0.0f;
  for (int i = begin; i < a.n; i += step) {
    float v[N];
    LoadN<N>(x + i, v);  // from the first cache
#pragma unroll
    for (int e = 0; e < N; ++e) squares += (v[e] - mean) * (v[e] - mean);
  }
  const float factor =
      1.0f / sqrtf(TeamSum(squares, team, shared[1]) / static_cast<float>(a.n) + a.eps);
  for (int i = begin; i < a.n; i += step) {
    float v[N], w[N], b[N];
    LoadN<N>(x + i, v);
    if (a.weight != nullptr) LoadN<N>(a.weight + i, w);
    if (a.bias != nullptr) LoadN<N>(a.bias + i, b);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      v[e] = (v[e] - mean) * factor;
      if (a.weight != nullptr) v[e] *= w[e];
      if (a.bias != nullptr) v[e] += b[e];
    }
    StoreN<N>(out + i, v);
  }
}

template <typename T, int N>
void RunLayerNorm(const LayerNormOf<T>& a, int64_t rows, Stream stream) {
  const int block = std::max(TeamFor(CeilDiv(a.n, N)), kWarp);
  Launch("LayerNorm", stream, LayerNormKernel<T, N>, dim3(static_cast<unsigned>(rows)), dim3(block),
         {}, a);
}

}  // namespace

void RmsNorm(const RmsNormArgs& args, Stream stream) {
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    GroupNorm<T> a{};
    const int64_t group = args.group == 0 ? args.x.size(1) : args.group;
    a.mean_factor = 1.0f / static_cast<float>(std::max<int64_t>(group, 1));
    a.eps = args.eps;
    a.scale = 1.0f;
    a.normalize = true;
    GroupNormOf<T>("RmsNorm", args.x, {}, args.weight, args.out, group, a, stream);
  });
}

void GatedRmsNorm(const GatedRmsNormArgs& args, Stream stream) {
  WEIR_CHECK(args.activation == Activation::kSilu || args.activation == Activation::kSigmoid)
      << "the gate of a norm is silu or sigmoid";
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    GroupNorm<T> a{};
    const int64_t group = args.group == 0 ? args.x.size(1) : args.group;
    a.mean_factor = 1.0f / static_cast<float>(std::max<int64_t>(group, 1));
    a.eps = args.eps;
    a.scale = 1.0f;
    a.sigmoid = args.activation == Activation::kSigmoid;
    a.gate_first = args.gate_first;
    a.normalize = args.normalize;
    GroupNormOf<T>("GatedRmsNorm", args.x, args.gate, args.weight, args.out, group, a, stream);
  });
}

void L2Norm(const L2NormArgs& args, Stream stream) {
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    GroupNorm<T> a{};
    a.mean_factor = 1.0f;
    a.eps = args.eps;
    a.scale = args.scale;
    a.normalize = true;
    GroupNormOf<T>("L2Norm", args.x, {}, {}, args.out, args.group, a, stream);
  });
}

void LayerNorm(const LayerNormArgs& args, Stream stream) {
  const int64_t rows = args.x.size(0), n = args.x.size(1);
  WEIR_CHECK(args.out.size(0) == rows && args.out.num_elements() == rows * n)
      << args.x.ToString() << " against " << args.out.ToString();
  if (rows == 0 || n == 0) return;
  WithActivation(args.out.dtype(), [&](auto tag) {
    using T = decltype(tag);
    LayerNormOf<T> a{};
    a.x = args.x.data<float>();
    a.x_stride = args.x.row_stride();
    a.weight = DataOrNull<float>(args.weight);
    a.bias = DataOrNull<float>(args.bias);
    a.out = static_cast<T*>(args.out.raw());
    a.out_stride = args.out.row_stride();
    a.n = static_cast<int>(n);
    a.eps = args.eps;
    const bool vectors = n % 4 == 0 && RowsAligned(args.x) && RowsAligned(args.out) &&
                         RowsAligned(args.weight) && RowsAligned(args.bias);
    if (vectors) {
      RunLayerNorm<T, 4>(a, rows, stream);
    } else {
      RunLayerNorm<T, 1>(a, rows, stream);
    }
  });
}

}  // namespace weir::kernels::gpu
