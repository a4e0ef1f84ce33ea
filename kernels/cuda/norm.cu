// Norms. A team of threads shares a group of elements (or a row) and keeps what it read in
// registers, so that everything is read once: a few lanes of a warp for short groups (heads), a
// whole thread block for rows. Groups beyond what a block's registers hold are read twice.
#include "kernels/norm.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kHeld = 2;  // vectors of a thread that stay in registers

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
  int64_t x_stride, gate_stride, out_stride, teams;
  int n, group, team, weight_period;  // the weight of column c is weight[c % weight_period]
  float mean_factor, eps, scale;      // y = x * scale / sqrt(sum * mean_factor + eps)
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

template <typename T, int N>
__global__ __launch_bounds__(kMaxThreads) void GroupNormKernel(GroupNorm<T> a) {
  __shared__ float shared[kWarp];
  const int64_t team = a.team > kWarp
                           ? static_cast<int64_t>(blockIdx.x)
                           : (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / a.team;
  const int member = static_cast<int>(threadIdx.x) % a.team;
  const bool active = team < a.teams;
  const int groups = a.n / a.group;
  const int64_t row = active ? team / groups : 0;
  const int first = static_cast<int>(active ? team % groups : 0) * a.group;
  const int end = active ? a.group : 0;
  const T* x = a.x + row * a.x_stride + first;
  const T* gate = a.gate != nullptr ? a.gate + row * a.gate_stride + first : nullptr;
  T* out = a.out + row * a.out_stride + first;
  const float* weight = a.weight != nullptr ? a.weight + first % a.weight_period : nullptr;
  const int step = a.team * N;

  PdlWait();
  PdlLaunchDependents();
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
  float held[kHeld][N], held_gate[kHeld][N];
  float sum = 0.0f;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = member * N + h * step;
    if (i < end) load(i, held[h], held_gate[h]);
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (member * N + h * step < end) {
#pragma unroll
      for (int k = 0; k < N; ++k) sum += held[h][k] * held[h][k];
    }
  }
  for (int i = member * N + kHeld * step; i < end; i += step) {
    float v[N], g[N];
    load(i, v, g);
#pragma unroll
    for (int k = 0; k < N; ++k) sum += v[k] * v[k];
  }
  float factor = a.scale;
  if (a.normalize) factor *= 1.0f / sqrtf(TeamSum(sum, a.team, shared) * a.mean_factor + a.eps);
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = member * N + h * step;
    if (i < end) store(i, held[h], held_gate[h], factor);
  }
  for (int i = member * N + kHeld * step; i < end; i += step) {
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
  const int block = a.team > kWarp ? a.team : 128;
  const int64_t blocks = a.team > kWarp ? a.teams : CeilDiv(a.teams * a.team, block);
  Launch(op, stream, GroupNormKernel<T, N>, dim3(static_cast<unsigned>(blocks)), dim3(block), {},
         a);
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
  a.weight_period = static_cast<int>(n);
  if (weight.defined() && a.normalize) {
    WEIR_CHECK(weight.num_elements() == n || weight.num_elements() == group)
        << weight.ToString() << " for " << x.ToString();
    a.weight = weight.data<float>();
    a.weight_period = static_cast<int>(weight.num_elements());
  }
  a.out = static_cast<T*>(out.raw());
  a.out_stride = out.row_stride();
  a.n = static_cast<int>(n);
  a.group = static_cast<int>(group);
  a.teams = rows * (n / group);
  const bool vectors = group % 8 == 0 && RowsAligned(x) && RowsAligned(gate) && RowsAligned(out) &&
                       reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
  if (vectors) {
    RunGroupNorm<T, 8>(op, a, stream);
  } else {
    RunGroupNorm<T, 1>(op, a, stream);
  }
}

// h += scale * delta, rms norm; one block a row.
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

template <typename T, int N>
__global__ __launch_bounds__(kMaxThreads) void AddRmsNormKernel(AddNorm<T> a) {
  __shared__ float shared[kWarp];
  const int64_t row = blockIdx.x;
  float* h = a.h + row * a.h_stride;
  const T* delta = a.delta != nullptr ? a.delta + row * a.delta_stride : nullptr;
  T* out = a.out + row * a.out_stride;
  const int begin = static_cast<int>(threadIdx.x) * N, step = static_cast<int>(blockDim.x) * N;
  float weight[kHeld][N], held[kHeld][N];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (begin + k * step < a.n) LoadN<N>(a.weight + begin + k * step, weight[k]);
  }
  PdlWait();
  PdlLaunchDependents();
  // The sum of h and delta at i, also left in h.
  auto add = [&](int i, float(&v)[N], const float(&d)[N]) {
    if (delta == nullptr) return;
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = fmaf(d[k], a.scale, v[k]);
    StoreN<N>(h + i, v);
  };
  float d[kHeld][N];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (begin + k * step < a.n) {
      LoadN<N>(h + begin + k * step, held[k]);
      if (delta != nullptr) LoadN<N>(delta + begin + k * step, d[k]);
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (begin + k * step < a.n) {
      add(begin + k * step, held[k], d[k]);
#pragma unroll
      for (int e = 0; e < N; ++e) sum += held[k][e] * held[k][e];
    }
  }
  for (int i = begin + kHeld * step; i < a.n; i += step) {
    float v[N], more[N];
    LoadN<N>(h + i, v);
    if (delta != nullptr) LoadN<N>(delta + i, more);
    add(i, v, more);
#pragma unroll
    for (int e = 0; e < N; ++e) sum += v[e] * v[e];
  }
  const int team = static_cast<int>(blockDim.x);
  const float mean = TeamSum(sum, team, shared) / static_cast<float>(a.n);
  const float factor = 1.0f / sqrtf(mean + a.eps);
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (begin + k * step < a.n) {
#pragma unroll
      for (int e = 0; e < N; ++e) held[k][e] = held[k][e] * factor * weight[k][e];
      StoreN<N>(out + begin + k * step, held[k]);
    }
  }
  for (int i = begin + kHeld * step; i < a.n; i += step) {
    float v[N], w[N];
    LoadN<N>(h + i, v);  // what this thread wrote
    LoadN<N>(a.weight + i, w);
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = v[e] * factor * w[e];
    StoreN<N>(out + i, v);
  }
}

template <typename T, int N>
void RunAddNorm(const AddNorm<T>& a, int64_t rows, Stream stream) {
  const int block = std::max(TeamFor(CeilDiv(a.n, N)), kWarp);
  Launch("AddRmsNorm", stream, AddRmsNormKernel<T, N>, dim3(static_cast<unsigned>(rows)),
         dim3(block), {}, a);
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
  PdlWait();
  PdlLaunchDependents();
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
    const bool vectors = n % 8 == 0 && RowsAligned(args.h) && RowsAligned(args.delta) &&
                         RowsAligned(args.out) && RowsAligned(args.weight);
    if (vectors) {
      RunAddNorm<T, 8>(a, rows, stream);
    } else {
      RunAddNorm<T, 1>(a, rows, stream);
    }
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
    const bool vectors = n % 8 == 0 && RowsAligned(args.x) && RowsAligned(args.out) &&
                         RowsAligned(args.weight) && RowsAligned(args.bias);
    if (vectors) {
      RunLayerNorm<T, 8>(a, rows, stream);
    } else {
      RunLayerNorm<T, 1>(a, rows, stream);
    }
  });
}

}  // namespace weir::kernels::gpu
