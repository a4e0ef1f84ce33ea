// What runs of several tokens give to the recurrence: one kernel convolves, activates and
// normalises, a thread for a few channels of a tile of tokens with all its inputs in registers; a
// second one computes the gates and, now that nobody reads the old windows any more, moves them on.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_mixer.h"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 16;  // tokens of a block
constexpr int kMaxWidth = 4;

struct Sequences {
  const int32_t *offsets, *slots;  // of the first sequence
  const uint8_t* fresh;
  int count;
  char* window;
  int64_t slot_stride_bytes;
  bool window_bf16;

  __device__ __forceinline__ float Window(int s, int64_t at) const {
    const char* base = window + slots[s] * slot_stride_bytes;
    return window_bf16 ? Load(reinterpret_cast<const bf16*>(base) + at)
                       : Load(reinterpret_cast<const float*>(base) + at);
  }
  // The sequence that owns token t, by a whole warp. REQUIRES: one does.
  __device__ __forceinline__ int Find(int t) const {
    int s = 0;
    for (int i = 0; i < count; i += kWarp) {
      const int mine = i + static_cast<int>(threadIdx.x) % kWarp;
      const unsigned before = __ballot_sync(0xffffffffu, mine < count && offsets[mine + 1] <= t);
      s += __popc(before);
      if (before != 0xffffffffu) break;
    }
    return s;
  }
};

template <typename T>
struct ConvJob {
  Sequences sequences;
  const T* x;
  int64_t x_stride;
  bool aligned;
  int first, last;  // tokens
  const float *weight, *bias;
  int width;  // at most the kernel's: taps beyond are zeros
  bool silu, l2_norm;
  float l2_eps;
  int dim_k;
  int q_channels, k_channels, channels;
  T *q, *k, *v;
};

// kVector neighbouring elements of a row as they are in memory.
template <typename T, int kVector>
struct Raw {
  uint32_t words[kVector * sizeof(T) / 4];

  __device__ __forceinline__ void Load(const T* p, bool aligned) {
    if (aligned) {
      if constexpr (sizeof(words) == 8) {
        const uint2 v = *reinterpret_cast<const uint2*>(p);
        words[0] = v.x, words[1] = v.y;
      } else {
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(words) / 16); ++i) {
          const uint4 v = reinterpret_cast<const uint4*>(p)[i];
          words[4 * i] = v.x, words[4 * i + 1] = v.y;
          words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(words) / 4); ++i) {
        if constexpr (sizeof(T) == 4) {
          words[i] = __float_as_uint(p[i]);
        } else {
          const auto* half = reinterpret_cast<const uint16_t*>(p);
          words[i] = half[2 * i] | static_cast<uint32_t>(half[2 * i + 1]) << 16;
        }
      }
    }
  }
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else {
      return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
    }
  }
};

template <int kVector>
__device__ __forceinline__ void StoreRow(float* p, const float (&x)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; i += 4) {
    *reinterpret_cast<float4*>(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  }
}
template <int kVector>
__device__ __forceinline__ void StoreRow(bf16* p, const float (&x)[kVector]) {
  uint32_t words[kVector / 2];
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  if constexpr (kVector == 4) {
    *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
  } else {
    *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// The channels of a thread: taps[j] weighs the input j tokens ago, past[j] is the one j + 1 ago.
template <typename T, int kWidth, int kVector>
struct Taps {
  float weight[kWidth][kVector], bias[kVector], past[kWidth > 1 ? kWidth - 1 : 1][kVector];

  __device__ __forceinline__ void LoadWeights(const ConvJob<T>& a, int c) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      bias[i] = a.bias != nullptr ? a.bias[c + i] : 0.0f;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        weight[j][i] = j < a.width ? a.weight[int64_t{c + i} * a.width + a.width - 1 - j] : 0.0f;
      }
    }
  }
  // What came before token t of sequence s.
  __device__ __forceinline__ void LoadPast(const ConvJob<T>& a, int s, int t, int c) {
    const int begin = a.sequences.offsets[s];
    const bool none = a.sequences.fresh[s] != 0 || a.sequences.slots[s] < 0;
#pragma unroll
    for (int j = 0; j < kWidth - 1; ++j) {
      const int from = t - 1 - j;
      if (from >= begin && j < a.width - 1) {
        Raw<T, kVector> x;
        x.Load(a.x + from * a.x_stride + c, a.aligned);
#pragma unroll
        for (int i = 0; i < kVector; ++i) past[j][i] = x[i];
        continue;
      }
      const int64_t row = a.width - 1 - (begin - from);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        past[j][i] =
            none || j >= a.width - 1 ? 0.0f : a.sequences.Window(s, row * a.channels + c + i);
      }
    }
  }
  __device__ __forceinline__ void Next(const Raw<T, kVector>& x, float (&y)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      y[i] = bias[i];
#pragma unroll
      for (int j = kWidth - 1; j > 0; --j) y[i] = fmaf(weight[j][i], past[j - 1][i], y[i]);
      y[i] = fmaf(weight[0][i], x[i], y[i]);
#pragma unroll
      for (int j = kWidth - 2; j > 0; --j) past[j][i] = past[j - 1][i];
      if (kWidth > 1) past[0][i] = x[i];
    }
  }
};

// kWidth 1: no convolution. kBatch rows are loaded at a time.
template <typename T, int kWidth, int kVector, int kBatch>
__global__ void __launch_bounds__(kThreads) ConvolveRuns(const ConvJob<T> a) {
  const int at =
      (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  const bool active = at < a.channels;
  const int c = active ? at : 0;
  Taps<T, kWidth, kVector> taps;
  if constexpr (kWidth > 1) taps.LoadWeights(a, c);
  const bool normed = a.l2_norm && c < a.q_channels + a.k_channels;
  const bool warp_normed = __any_sync(0xffffffffu, normed) != 0;
  T* out = a.v;
  int64_t out_stride = a.channels - a.q_channels - a.k_channels, column = c;
  if (c < a.q_channels) {
    out = a.q, out_stride = a.q_channels;
  } else if (c < a.q_channels + a.k_channels) {
    out = a.k, out_stride = a.k_channels, column = c - a.q_channels;
  } else {
    column = c - a.q_channels - a.k_channels;
  }
  PdlLaunchDependents();
  PdlWait();
  const int t0 = a.first + static_cast<int>(blockIdx.x) * kTile;
  const int t1 = min(t0 + kTile, a.last);
  const T* x_at = a.x + c;
  Raw<T, kVector> x[kBatch];
  const auto load = [&](int t) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      x[i].Load(x_at + min(t + i, t1 - 1) * a.x_stride, a.aligned);
    }
  };
  load(t0);
  int s = a.sequences.Find(t0);
  int end = a.sequences.offsets[s + 1];
  bool padding = a.sequences.slots[s] < 0;
  if constexpr (kWidth > 1) taps.LoadPast(a, s, t0, c);
  for (int t = t0; t < t1; t += kBatch) {
    if (t > t0) load(t);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (t + i >= t1) break;
      if (t + i == end) {
        while (end <= t + i) end = a.sequences.offsets[++s + 1];
        padding = a.sequences.slots[s] < 0;
        if constexpr (kWidth > 1) taps.LoadPast(a, s, t + i, c);
      }
      float y[kVector];
      if constexpr (kWidth > 1) {
        taps.Next(x[i], y);
      } else {
#pragma unroll
        for (int j = 0; j < kVector; ++j) y[j] = x[i][j];
      }
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (a.silu) y[j] *= SigmoidFor<T>(y[j]);
        squares = fmaf(y[j], y[j], squares);
      }
      float scale = padding ? 0.0f : 1.0f;
      if (warp_normed) {  // a head is K / kVector neighbouring lanes
        for (int lanes = a.dim_k / kVector / 2; lanes > 0; lanes /= 2) {
          squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
        }
        if (normed && !padding) scale = rsqrtf(squares + a.l2_eps);
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) y[j] = padding ? 0.0f : y[j] * scale;
      if (active) StoreRow<kVector>(out + (t + i) * out_stride + column, y);
    }
  }
}

template <typename T>
struct GateJob {
  Sequences sequences;
  int first, last;
  // Windows: of the inputs x.
  const T* x;
  int64_t x_stride;
  int channels, width, window_blocks;  // blocks per sequence
  int vector_blocks;                   // that compute four decays at a time, all of them
  // Gates.
  const void *decay_x, *beta_x;
  int64_t decay_stride, beta_stride;
  bool decay_bf16, beta_bf16, has_clamp;
  LogDecayArgs::Form form;
  const float *decay_bias, *exp_a;
  int per_head, decays, betas;  // columns
  float normalizer, clamp_min, lower_bound, beta_scale;
  float *g, *beta;
  int tokens_per_block;
};

constexpr int kGateThreads = 256;

__device__ __forceinline__ float LoadAny(const void* p, int64_t at, bool is_bf16) {
  return is_bf16 ? Load(static_cast<const bf16*>(p) + at) : Load(static_cast<const float*>(p) + at);
}

// log(1 + e^x); rounding x to bf16 has cost more than the fast form does.
template <bool kExact>
__device__ __forceinline__ float SoftplusFor(float x) {
  if (x > 20.0f) return x;
  if constexpr (kExact) return log1pf(expf(x));
  const float e = __expf(x);
  return e < 0x1p-7f ? fmaf(-0.5f * e, e, e) : __logf(1.0f + e);
}

template <typename T>
__device__ void MoveWindow(const GateJob<T>& a, int s, int c) {
  const int slot = a.sequences.slots[s];
  const int begin = a.sequences.offsets[s], end = a.sequences.offsets[s + 1];
  if (c >= a.channels || slot < 0 || begin == end) return;
  const bool fresh = a.sequences.fresh[s] != 0;
  float kept[kMaxWidth - 1];
#pragma unroll
  for (int i = 0; i < kMaxWidth - 1; ++i) {
    if (i >= a.width - 1) continue;
    const int from = end - (a.width - 1) + i;
    if (from >= begin) {
      kept[i] = Load(a.x + from * a.x_stride + c);
    } else {
      const int64_t row = i + (end - begin);
      kept[i] = fresh ? 0.0f : a.sequences.Window(s, row * a.channels + c);
    }
  }
  char* window = a.sequences.window + slot * a.sequences.slot_stride_bytes;
#pragma unroll
  for (int i = 0; i < kMaxWidth - 1; ++i) {
    if (i >= a.width - 1) continue;
    const int64_t at = int64_t{i} * a.channels + c;
    if (a.sequences.window_bf16) {
      Store(reinterpret_cast<bf16*>(window) + at, kept[i]);
    } else {
      Store(reinterpret_cast<float*>(window) + at, kept[i]);
    }
  }
}

// The log decay of column `column`, from the projection's value there.
template <bool kExact, typename T>
__device__ __forceinline__ float LogDecayOf(const GateJob<T>& a, float x, int column) {
  if (a.decay_bias != nullptr) x += a.decay_bias[column];
  const float exp_a = a.exp_a != nullptr ? a.exp_a[column / a.per_head] : 0.0f;
  if (a.form == LogDecayArgs::Form::kSoftplus) return -exp_a * SoftplusFor<kExact>(x);
  if (a.form == LogDecayArgs::Form::kLogSigmoid) {
    const float g = -SoftplusFor<kExact>(-x) / a.normalizer;
    return a.has_clamp ? fmaxf(a.clamp_min, g) : g;
  }
  return a.lower_bound * (kExact ? SigmoidFor<float>(exp_a * x) : SigmoidFor<bf16>(exp_a * x));
}

constexpr int kGateTokens = 4;  // of a thread that computes four decays at a time

template <typename D, typename T>
__device__ void VectorDecays(const GateJob<T>& a, int block, int tid) {
  const int columns = (a.decays / 4 + kGateThreads - 1) / kGateThreads;
  const int t0 = a.first + block / columns * kGateTokens;
  const int column = (block % columns * kGateThreads + tid) * 4;
  int s = a.sequences.Find(t0);
  if (column >= a.decays) return;
  Raw<D, 4> x[kGateTokens];
#pragma unroll
  for (int i = 0; i < kGateTokens; ++i) {
    x[i].Load(static_cast<const D*>(a.decay_x) + min(t0 + i, a.last - 1) * a.decay_stride + column,
              true);
  }
#pragma unroll
  for (int i = 0; i < kGateTokens; ++i) {
    const int t = t0 + i;
    if (t >= a.last) return;
    while (a.sequences.offsets[s + 1] <= t) ++s;
    const bool padding = a.sequences.slots[s] < 0;
    float g[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      g[j] = padding ? 0.0f : LogDecayOf<sizeof(D) == 4>(a, x[i][j], column + j);
    }
    StoreRow<4>(a.g + int64_t{t} * a.decays + column, g);
  }
}

// Blocks that move windows, then those of VectorDecays, then those for what remains: a few numbers
// of each token.
template <typename T>
__global__ void __launch_bounds__(kGateThreads) GateRuns(const GateJob<T> a) {
  PdlLaunchDependents();
  PdlWait();
  const int tid = static_cast<int>(threadIdx.x);
  int block = static_cast<int>(blockIdx.x);
  if (block < a.window_blocks * a.sequences.count) {
    MoveWindow(a, block / a.window_blocks, block % a.window_blocks * kGateThreads + tid);
    return;
  }
  block -= a.window_blocks * a.sequences.count;
  if (block < a.vector_blocks) {
    if (a.decay_bf16) {
      VectorDecays<bf16>(a, block, tid);
    } else {
      VectorDecays<float>(a, block, tid);
    }
    return;
  }
  block -= a.vector_blocks;
  const int decays = a.vector_blocks > 0 ? 0 : a.decays;
  const int t0 = a.first + block * a.tokens_per_block;
  const int t1 = min(t0 + a.tokens_per_block, a.last), columns = decays + a.betas;
  int s = a.sequences.Find(t0);
  int end = a.sequences.offsets[s + 1], t = t0, at = tid;
  while (true) {
    while (at >= columns) at -= columns, ++t;
    if (t >= t1) return;
    while (end <= t) end = a.sequences.offsets[++s + 1];
    const bool padding = a.sequences.slots[s] < 0;
    if (at < decays) {
      const float x = LoadAny(a.decay_x, t * a.decay_stride + at, a.decay_bf16);
      a.g[int64_t{t} * a.decays + at] = padding ? 0.0f : LogDecayOf<true>(a, x, at);
    } else {
      const int column = at - decays;
      const float x = LoadAny(a.beta_x, t * a.beta_stride + column, a.beta_bf16);
      a.beta[int64_t{t} * a.betas + column] = padding ? 0.0f : a.beta_scale * SigmoidFor<float>(x);
    }
    at += kGateThreads;
  }
}

Sequences DescribeSequences(const LinearMixerArgs& args, int first) {
  Sequences s{};
  s.offsets = args.offsets.data<int32_t>() + first;
  s.slots = args.slots.data<int32_t>() + first;
  s.fresh = args.fresh.data<uint8_t>() + first;
  s.count = static_cast<int>(args.slots.size(0)) - first;
  s.window = static_cast<char*>(args.window);
  s.slot_stride_bytes = args.slot_stride_bytes;
  s.window_bf16 = args.window_dtype == DType::kBF16;
  return s;
}

template <typename T, int kVector, int kBatch>
void LaunchConvolve(const ConvJob<T>& a, int width, Stream stream) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(a.last - a.first, kTile)),
                  static_cast<unsigned>(CeilDiv(a.channels, kThreads * kVector)));
  const auto launch = [&](auto kernel) {
    Launch("linear_mixer_convolve", stream, kernel, grid, dim3(kThreads), {}, a);
  };
  if (width == 1) {
    launch(ConvolveRuns<T, 1, kVector, kBatch>);
  } else {
    WEIR_CHECK(width <= kMaxWidth) << "convolution over " << width << " tokens";
    launch(ConvolveRuns<T, kMaxWidth, kVector, kBatch>);
  }
}

template <typename T>
void Convolve(const LinearMixerArgs& args, const Sequences& sequences, int first, int last,
              const PreparedRuns& out, Stream stream) {
  ConvJob<T> a{};
  a.sequences = sequences;
  a.x = static_cast<const T*>(args.qkv.raw());
  a.x_stride = args.qkv.row_stride();
  a.aligned = RowsAligned(args.qkv);
  a.first = first;
  a.last = last;
  a.silu = args.activation == Activation::kSilu;
  a.l2_norm = args.l2_norm;
  a.l2_eps = args.l2_eps;
  a.dim_k = args.key_dim;
  a.q_channels = args.heads_q * args.key_dim;
  a.k_channels = args.heads_k * args.key_dim;
  a.channels = static_cast<int>(args.qkv.size(1));
  a.q = static_cast<T*>(out.q.raw());
  a.k = static_cast<T*>(out.k.raw());
  a.v = static_cast<T*>(out.v.raw());
  const int width = args.conv_weight.defined() ? static_cast<int>(args.conv_weight.size(1)) : 1;
  if (width > 1) {
    WEIR_CHECK(args.conv_weight.contiguous()) << args.conv_weight.ToString();
    a.width = width;
    a.weight = args.conv_weight.data<float>();
    a.bias = DataOrNull<float>(args.conv_bias);
  }
  // A head's lanes are in one warp.
  if (args.key_dim <= 128) {
    LaunchConvolve<T, 4, sizeof(T) == 2 ? 16 : 8>(a, width, stream);
  } else {
    LaunchConvolve<T, 8, sizeof(T) == 2 ? 8 : 4>(a, width, stream);
  }
}

template <typename T>
void Gates(const LinearMixerArgs& args, const Sequences& sequences, int first, int last,
           const PreparedRuns& out, Stream stream) {
  GateJob<T> a{};
  a.sequences = sequences;
  a.first = first;
  a.last = last;
  if (args.conv_weight.defined()) {
    a.x = static_cast<const T*>(args.qkv.raw());
    a.x_stride = args.qkv.row_stride();
    a.channels = static_cast<int>(args.qkv.size(1));
    a.width = static_cast<int>(args.conv_weight.size(1));
    a.window_blocks = static_cast<int>(CeilDiv(a.channels, kGateThreads));
  }
  if (out.g.defined()) {
    a.decay_x = args.decay_x.raw();
    a.decay_stride = args.decay_x.row_stride();
    a.decay_bf16 = args.decay_x.dtype() == DType::kBF16;
    a.decays = static_cast<int>(RowWidth(out.g));
    a.decay_bias = DataOrNull<float>(args.decay_bias);
    a.form = args.decay_form;
    if (args.exp_a.defined()) {
      a.exp_a = args.exp_a.data<float>();
      a.per_head = a.decays / static_cast<int>(args.exp_a.size(0));
    }
    a.normalizer = args.normalizer;
    a.has_clamp = args.has_clamp;
    a.clamp_min = args.clamp_min;
    a.lower_bound = args.lower_bound;
    a.g = out.g.data<float>();
  }
  if (out.beta.defined()) {
    a.beta_x = args.beta_x.raw();
    a.beta_stride = args.beta_x.row_stride();
    a.beta_bf16 = args.beta_x.dtype() == DType::kBF16;
    a.betas = static_cast<int>(RowWidth(out.beta));
    a.beta_scale = args.beta_scale;
    a.beta = out.beta.data<float>();
  }
  int64_t blocks = int64_t{a.window_blocks} * sequences.count;
  if (args.decay == Decay::kVector && a.decays > 0 && a.decays % 4 == 0 &&
      RowsAligned(args.decay_x)) {
    a.vector_blocks =
        static_cast<int>(CeilDiv(a.decays / 4, kGateThreads) * CeilDiv(last - first, kGateTokens));
    blocks += a.vector_blocks;
  }
  const int columns = (a.vector_blocks > 0 ? 0 : a.decays) + a.betas;
  if (columns > 0) {
    a.tokens_per_block = std::max(1, 2 * kGateThreads / columns);
    blocks += CeilDiv(last - first, a.tokens_per_block);
  }
  if (blocks == 0) return;
  Launch("linear_mixer_gates", stream, GateRuns<T>, dim3(static_cast<unsigned>(blocks)),
         dim3(kGateThreads), {}, a);
}

}  // namespace

void PrepareRuns(const LinearMixerArgs& args, int first_sequence, const PreparedRuns& out,
                 Stream stream) {
  const int first = args.host_offsets[first_sequence];
  const int last = args.host_offsets[args.slots.size(0)];
  if (first == last) return;
  const Sequences sequences = DescribeSequences(args, first_sequence);
  WithActivation(args.qkv.dtype(), [&](auto tag) {
    using T = decltype(tag);
    if (out.q.defined()) Convolve<T>(args, sequences, first, last, out, stream);
    Gates<T>(args, sequences, first, last, out, stream);
  });
}

}  // namespace weir::kernels::gpu
