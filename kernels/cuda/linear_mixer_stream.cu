// Decode step of a linear-attention mixer for many sequences: one block to a multiprocessor, the
// states streaming through it without a pause.
//
// A unit of work is a sequence's value heads that share window channels, so that nobody else needs
// them. Eight warps each pull their share of the state, 4 KiB at a time, through a ring of bulk
// copies of their own that runs ahead across units; two teams of warps prepare the tokens of the
// units to come (convolution, activation, gates) and move the windows on, so that the latency of
// those small reads is hidden behind the state of the units before. A head's norm is left to one
// of the eight warps in turn while the others go on.
#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "kernels/cuda/linear_mixer_step.cuh"

namespace weir::kernels::gpu {
namespace {

using namespace mixer_step;  // NOLINT: the other half of this file

constexpr int kWorkers = 8;                    // warps that update states
constexpr int kTeams = 2, kTeamThreads = 128;  // that prepare tokens
constexpr int kThreads = kWorkers * kWarp + kTeams * kTeamThreads;
constexpr int kTokens = 3;  // units prepared ahead
constexpr int kMaxShare = kWorkers;

struct Layout {
  int share = 1;   // value heads of a unit
  int groups = 0;  // units of a sequence
  int units = 0;
  int per_block = 0;  // most units of a block
  int ring = 0;       // pieces of 4 KiB a warp has in flight
  // Heads of q, k, v in a unit, and floats of a prepared token.
  int q_heads = 1, k_heads = 1, v_heads = 1;
  int token_floats = 0;
};

// A prepared token in shared memory.
struct TokenAt {
  float *q, *k, *v, *decay, *o, *scalars;  // scalars: decay and beta of each head
  __device__ TokenAt(float* base, const MixerStep& p, const Layout& layout)
      : q(base),
        k(q + layout.q_heads * p.dim_k),
        v(k + layout.k_heads * p.dim_k),
        decay(v + layout.v_heads * p.dim_v),
        o(decay + (p.decay == Decay::kVector ? layout.share * p.dim_k : 0)),
        scalars(o + layout.share * p.dim_v) {}
};

// What a unit's sequence is.
struct Unit {
  int slot = -1;   // negative: padding
  int token = -1;  // negative: none, the unit is void
  bool fresh = false;
};

__device__ __forceinline__ Unit UnpackUnit(int2 packed) {
  return {packed.x >> 1, packed.y, (packed.x & 1) != 0};
}

// Four channels of q, k or v: convolved into `to`, the window moved on.
template <typename T>
__device__ __forceinline__ void PrepareChannels(const MixerStep& p, const T* from, int64_t channel,
                                                const Unit& unit, char* window, float* to) {
  Channels group;
  Load4(from, p.wide, group.x);
  group.LoadPast(p, window, channel, unit.fresh);
  group.LoadWeights(p, channel);
  float y[4];
  group.Values(p, y);
  *reinterpret_cast<float4*>(to) = {y[0], y[1], y[2], y[3]};
  group.StorePast(p, window, channel);
}

// A team's thread `t` does its part of the unit of heads [h0, h0 + share).
template <int K, typename T>
__device__ __forceinline__ void PrepareUnit(const MixerStep& p, const Layout& layout, int h0,
                                            const Unit& unit, const TokenAt& at, int t) {
  char* window = p.window + unit.slot * p.slot_stride_bytes;
  const int64_t token = unit.token;
  const int64_t k_begin = int64_t{p.heads / p.q_group} * K;
  const int64_t v_begin = k_begin + int64_t{p.heads / p.k_group} * K;
  const int q_count = layout.q_heads * K, k_count = layout.k_heads * K;
  const int v_count = layout.v_heads * p.dim_v;
  const int d_count = p.decay == Decay::kVector ? layout.share * K : 0;
  for (int e = t * 4; e < q_count + k_count + v_count + d_count; e += kTeamThreads * 4) {
    int i = e;
    if (i < q_count) {
      const int64_t column = int64_t{h0 / p.q_group} * K + i;
      PrepareChannels(p, static_cast<const T*>(p.q.data) + token * p.q.stride + column, column,
                      unit, window, at.q + i);
    } else if ((i -= q_count) < k_count) {
      const int64_t column = int64_t{h0 / p.k_group} * K + i;
      PrepareChannels(p, static_cast<const T*>(p.k.data) + token * p.k.stride + column,
                      k_begin + column, unit, window, at.k + i);
    } else if ((i -= k_count) < v_count) {
      const int64_t column = int64_t{h0 / p.v_group} * p.dim_v + i;
      PrepareChannels(p, static_cast<const T*>(p.v.data) + token * p.v.stride + column,
                      v_begin + column, unit, window, at.v + i);
    } else {
      i -= v_count;
      const int g_head = (h0 + i / K) / p.g_group;
      const int64_t column = int64_t{g_head} * K + i % K;
      float x[4], bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      Load4Any(p.decay_x, token * p.decay_x.stride + column, p.wide, x);
      if (p.decay_bias != nullptr) Load4(p.decay_bias + column, p.wide, bias);
      const float exp_a = p.exp_a != nullptr ? p.exp_a[g_head] : 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = DecayOf(p, x[j], bias[j], exp_a);
      *reinterpret_cast<float4*>(at.decay + i) = {x[0], x[1], x[2], x[3]};
    }
  }
  const int j = kTeamThreads - 1 - t, h = h0 + j;
  if (j >= layout.share) return;
  float decay = 1.0f, beta = 0.0f;
  if (p.decay == Decay::kScalar) {
    decay = DecayOf(p, LoadAny(p.decay_x, token * p.decay_x.stride + h),
                    p.decay_bias != nullptr ? p.decay_bias[h] : 0.0f,
                    p.exp_a != nullptr ? p.exp_a[h] : 0.0f);
  }
  if (p.delta) {
    beta = LoadAny(p.beta, token * p.beta.stride + h);
    if (!p.beta_given) beta = p.beta_scale * FastSigmoid(beta);
  }
  at.scalars[2 * j] = decay;
  at.scalars[2 * j + 1] = beta;
}

// Norm, gate and output of value head h, by one warp.
template <typename T>
struct Finish {
  static constexpr int kMost = 2;  // V = 256: two groups of four a lane
  float gate[kMost][4];

  __device__ __forceinline__ void Load(const MixerStep& p, int64_t token, int h) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (p.gate.data == nullptr) return;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int row = (i * kWarp + lane) * 4;
      if (row >= p.dim_v) continue;
      Load4(static_cast<const T*>(p.gate.data) + token * p.gate.stride + int64_t{h} * p.dim_v + row,
            p.wide, gate[i]);
    }
  }
  __device__ __forceinline__ void Write(const MixerStep& p, int64_t token, int h, const float* o) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    float4 x[kMost];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int row = (i * kWarp + lane) * 4;
      x[i] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (row < p.dim_v && o != nullptr) x[i] = *reinterpret_cast<const float4*>(o + row);
      squares += Dot(x[i], x[i]);
    }
    float scale = o != nullptr ? 1.0f : 0.0f;
    if (p.norm && o != nullptr) {
      scale = rsqrtf(WarpSum(squares) / static_cast<float>(p.dim_v) + p.norm_eps);
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int row = (i * kWarp + lane) * 4;
      if (row >= p.dim_v) continue;
      float y[4] = {x[i].x, x[i].y, x[i].z, x[i].w}, weight[4] = {1.0f, 1.0f, 1.0f, 1.0f};
      if (p.norm_weight != nullptr) Load4(p.norm_weight + row, p.wide, weight);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        y[j] *= scale * weight[j];
        if (p.gate.data != nullptr && o != nullptr) {
          y[j] *= FastSigmoid(gate[i][j]) * (p.gate_sigmoid ? 1.0f : gate[i][j]);
        }
      }
      Store4(static_cast<T*>(p.out) + token * p.out_stride + int64_t{h} * p.dim_v + row, p.wide, y);
    }
  }
};

#if WEIR_STEP_BODY
// A worker warp's ring: pieces of its passes over the block's units, in order.
struct Ring {
  float* memory;  // `size` pieces
  uint64_t* barriers;
  int size, passes, warp, count;
  int unit = 0, pass = 0, put = 0, got = 0, parity = 0;

  __device__ __forceinline__ void Put(const MixerStep& p, const Layout& layout, const int2* units,
                                      int64_t unit_floats) {
    if (unit >= count || warp >= passes) return;
    if (threadIdx.x % kWarp == 0) {
      const Unit what = UnpackUnit(units[unit]);
      if (what.slot >= 0 && what.token >= 0 && !what.fresh) {
        const int group =
            (static_cast<int>(blockIdx.x) + unit * static_cast<int>(gridDim.x)) % layout.groups;
        const float* from =
            reinterpret_cast<const float*>(p.state + what.slot * p.slot_stride_bytes) +
            group * unit_floats + int64_t{pass} * kPassFloats;
        BulkLoad(memory + put * kPassFloats, from, kPassFloats * 4, barriers + put);
      } else {
        BarrierArrive(barriers + put);
      }
    }
    put = put + 1 == size ? 0 : put + 1;
    pass += kWorkers;
    if (pass >= passes) {
      pass = warp;
      ++unit;
    }
  }
  // Waits for the next piece; Done() when it has been read.
  __device__ __forceinline__ const float4* Get() {
    BarrierWait(barriers + got, parity);
    return reinterpret_cast<const float4*>(memory + got * kPassFloats);
  }
  __device__ __forceinline__ void Done() {
    __syncwarp();
    if (++got == size) {
      got = 0;
      parity ^= 1;
    }
  }
};
#endif

template <int K, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    MixerStreamKernel(const MixerStep p, const Layout layout) {
#if WEIR_STEP_BODY
  extern __shared__ __align__(128) float memory[];
  float* tokens = memory + kWorkers * layout.ring * kPassFloats;
  auto* barriers = reinterpret_cast<uint64_t*>(tokens + kTokens * layout.token_floats);
  uint64_t *full = barriers, *empty = full + kTokens, *read = empty + kTokens;
  uint64_t* rings = read + kTokens;
  auto* units = reinterpret_cast<int2*>(rings + kWorkers * layout.ring);
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;
  const int grid = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int count = (layout.units - block + grid - 1) / grid;
  if (tid < kTokens) {
    BarrierInit(full + tid, kTeamThreads);
    BarrierInit(empty + tid, kWorkers);
    BarrierInit(read + tid, kWorkers);
  }
  if (tid < kWorkers * layout.ring) BarrierInit(rings + tid, 1);
  FenceBarrierInit();
  PdlLaunchDependents();
  PdlWait();
  for (int i = tid; i < count; i += kThreads) {
    const int s = (block + i * grid) / layout.groups;
    int token = s;
    if (p.offsets != nullptr) token = p.offsets[s + 1] > p.offsets[s] ? p.offsets[s] : -1;
    units[i] = {p.slots[s] * 2 + (p.fresh[s] != 0 ? 1 : 0), token};
  }
  __syncthreads();

  if (warp >= kWorkers) {
    const int team = (warp - kWorkers) / (kTeamThreads / kWarp);
    const int t = tid - kWorkers * kWarp - team * kTeamThreads;
    for (int i = team; i < count; i += kTeams) {
      const int at = i % kTokens;
      if (i >= kTokens) BarrierWait(empty + at, (i / kTokens - 1) & 1);
      const Unit unit = UnpackUnit(units[i]);
      if (unit.slot >= 0 && unit.token >= 0) {
        const int h0 = (block + i * grid) % layout.groups * layout.share;
        PrepareUnit<K, T>(p, layout, h0, unit,
                          TokenAt(tokens + at * layout.token_floats, p, layout), t);
      }
      BarrierArrive(full + at);
    }
    return;
  }

  const int head_floats = p.dim_v * K, head_passes = head_floats / kPassFloats;
  Ring ring;
  ring.memory = memory + warp * layout.ring * kPassFloats;
  ring.barriers = rings + warp * layout.ring;
  ring.size = layout.ring;
  ring.passes = head_passes * layout.share;
  ring.warp = ring.pass = warp;
  ring.count = count;
  const int64_t unit_floats = int64_t{layout.share} * head_floats;
  for (int i = 0; i < layout.ring; ++i) ring.Put(p, layout, units, unit_floats);
  int at = 0, parity = 0;
  for (int i = 0; i < count; ++i) {
    const Unit unit = UnpackUnit(units[i]);
    const bool owned = unit.slot >= 0 && unit.token >= 0;
    const int group = (block + i * grid) % layout.groups, h0 = group * layout.share;
    const TokenAt token(tokens + at * layout.token_floats, p, layout);
    // This warp finishes head `mine` of the unit.
    const int mine = (warp + kWorkers - i * layout.share % kWorkers) % kWorkers;
    Finish<T> finish;
    if (mine < layout.share && owned) finish.Load(p, unit.token, h0 + mine);
    BarrierWait(full + at, parity);
    float* state =
        reinterpret_cast<float*>(p.state + unit.slot * p.slot_stride_bytes) + group * unit_floats;
    Token<K> t;
    int current = -1;
    for (int pass = warp; pass < ring.passes; pass += kWorkers) {
      const int j = pass / head_passes, h = h0 + j;
      float4 rows[kSlots];
      const float4* piece = ring.Get();
#pragma unroll
      for (int n = 0; n < kSlots; ++n) {
        rows[n] = unit.fresh ? float4{0.0f, 0.0f, 0.0f, 0.0f} : piece[n * kWarp + lane];
      }
      ring.Done();
      ring.Put(p, layout, units, unit_floats);
      if (!owned) continue;
      if (j != current) {
        t.beta = token.scalars[2 * j + 1];
        t.Init(p, token.k + (h / p.k_group - h0 / p.k_group) * K,
               token.q + (h / p.q_group - h0 / p.q_group) * K, token.decay + j * K,
               token.scalars[2 * j]);
        current = j;
      }
      const int row = (pass - j * head_passes) * (kPassFloats / K);
      t.Pass(p, rows, token.v + (h / p.v_group - h0 / p.v_group) * p.dim_v + row,
             token.o + j * p.dim_v + row,
             reinterpret_cast<float4*>(state + int64_t{pass} * kPassFloats));
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(read + at);
    if (mine < layout.share && unit.token >= 0) {
      BarrierWait(read + at, parity);
      finish.Write(p, unit.token, h0 + mine, owned ? token.o + mine * p.dim_v : nullptr);
      __syncwarp();
    }
    if (lane == 0) BarrierArrive(empty + at);
    if (++at == kTokens) {
      at = 0;
      parity ^= 1;
    }
  }
#endif
}

int CountOf(int share, int group) { return share % group == 0 ? share / group : 1; }

// The unit's heads: all that share a window channel.
Layout MakeLayout(const MixerStep& step) {
  Layout layout;
  if (step.width >= 2) {
    layout.share = std::lcm(std::lcm(step.q_group, step.k_group), step.v_group);
  }
  layout.q_heads = CountOf(layout.share, step.q_group);
  layout.k_heads = CountOf(layout.share, step.k_group);
  layout.v_heads = CountOf(layout.share, step.v_group);
  layout.groups = step.heads / layout.share;
  layout.units = layout.groups * step.sequences;
  const int blocks = std::min(layout.units, cuda::Device().multiprocessors);
  layout.per_block = blocks == 0 ? 0 : (layout.units + blocks - 1) / blocks;
  layout.token_floats = (layout.q_heads + layout.k_heads) * step.dim_k +
                        (layout.v_heads + layout.share) * step.dim_v +
                        (step.decay == Decay::kVector ? layout.share * step.dim_k : 0) +
                        (2 * layout.share + 3) / 4 * 4;
  return layout;
}

int64_t SharedBytes(const Layout& layout) {
  return int64_t{kWorkers} * layout.ring * kPassFloats * 4 +
         int64_t{kTokens} * layout.token_floats * 4 +
         (3 * kTokens + kWorkers * layout.ring + layout.per_block) * 8;
}

// As deep a ring as there is memory for; 0: none.
int RingFor(Layout layout, int most) {
  for (layout.ring = most; layout.ring > 1; --layout.ring) {
    if (SharedBytes(layout) <= cuda::Device().max_shared_bytes) return layout.ring;
  }
  return 0;
}

template <int K, typename T>
void LaunchStream(const MixerStep& step, const Layout& layout, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = static_cast<size_t>(SharedBytes(layout));
  const dim3 grid(static_cast<unsigned>(std::min(layout.units, cuda::Device().multiprocessors)));
  Launch("linear_mixer_stream", stream, MixerStreamKernel<K, T>, grid, dim3(kThreads), options,
         step, layout);
}

}  // namespace

bool MixerStreamFits(const MixerStep& step) {
  const Layout layout = MakeLayout(step);
  return layout.share <= kMaxShare && step.dim_v * step.dim_k % kPassFloats == 0 &&
         RingFor(layout, 6) >= 3;
}

void RunMixerStream(const MixerStep& step, Stream stream, int ring) {
  Layout layout = MakeLayout(step);
  layout.ring = RingFor(layout, ring);
  WithActivation(step.q.is_bf16 ? DType::kBF16 : DType::kF32, [&](auto tag) {
    using T = decltype(tag);
    if (step.dim_k == 64) {
      LaunchStream<64, T>(step, layout, stream);
    } else if (step.dim_k == 128) {
      LaunchStream<128, T>(step, layout, stream);
    } else {
      LaunchStream<256, T>(step, layout, stream);
    }
  });
}

}  // namespace weir::kernels::gpu
