// Decode step of a linear-attention mixer in one kernel.
//
// A block owns some rows (values) of one head's state of one sequence. The state is the traffic:
// its loads go out first, as soon as the slot is known, and while they are on their way the block
// convolves, normalises and gates its q, k and v. A row is read once: with S- = D o S,
//   u = beta (v - S- k)    o = S- q + u (k . q)    S = S- + u k^T
// needs both products of the old row only, so they are summed together and the row goes straight
// back. Rows are [K] contiguous; a warp takes 4 KiB of them at a time.
//
// Blocks that share a window channel (value heads of one q/k head, blocks of one head) or a norm
// (blocks of one head) form a cluster. Each tells its peers when it has read its windows, so that
// their owners may write them, and sends its sum of squares to the blocks of its head. No block
// leaves before all that is sent to it has come.
#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_mixer_step.cuh"
#include "kernels/cuda/linear_mixer_step.h"

namespace weir::kernels::gpu {
namespace {

using namespace mixer_step;  // NOLINT: the other half of this file

constexpr int kMaxCluster = 8, kMaxPieces = 32, kMaxRows = 128;
constexpr int64_t kPrefetchBytes = 16 << 20;  // of state, that may wait in the L2 cache

// How a launch cuts the heads: blocks of several whole heads, or of a part of one.
struct Cut {
  int heads = 1;    // of a block
  int v_split = 1;  // blocks of a head
  int rows = 0;     // of a block
  int cluster = 1;
  int ring = 0;  // 4 KiB that a warp has room for
  bool prefetch = false;
  // Heads of q, k and v that a block needs.
  int q_heads = 1, k_heads = 1, v_heads = 1;
};

struct Shared {
  float *k, *q, *decay, *v, *o, *scalars, *sums;  // scalars: decay and beta of each head
  __device__ Shared(float* base, const MixerStep& p, const Cut& cut, int dim_k)
      : k(base),
        q(k + cut.k_heads * dim_k),
        decay(q + cut.q_heads * dim_k),
        v(decay + cut.heads * dim_k),
        o(v + (cut.heads == 1 ? cut.rows : cut.v_heads * p.dim_v)),
        scalars(o + cut.rows),
        sums(scalars + 2 * cut.heads) {}
  static size_t Bytes(const MixerStep& p, const Cut& cut) {
    const int v = cut.heads == 1 ? cut.rows : cut.v_heads * p.dim_v;
    return sizeof(float) * static_cast<size_t>((cut.k_heads + cut.q_heads + cut.heads) * p.dim_k +
                                               v + cut.rows + 2 * cut.heads + kMaxCluster);
  }
};

template <int K, typename T, bool kWide>
__global__ void __launch_bounds__(256) MixerStepKernel(const MixerStep p, const Cut cut) {
#if WEIR_STEP_BODY
  extern __shared__ __align__(128) float memory[];
  __shared__ uint64_t arrived[kMaxPieces], windows_read, sums_sent;
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warp = tid / kWarp, lane = tid % kWarp, warps = threads / kWarp;
  const Shared shared(memory + warps * cut.ring * kPassFloats, p, cut, K);
  const int block = static_cast<int>(blockIdx.x), groups = p.heads / cut.heads;
  const int part = block % cut.v_split, h0 = block / cut.v_split % groups * cut.heads;
  const int s = block / cut.v_split / groups;
  const int first_row = part * cut.rows;
  if (tid < warps * cut.ring) BarrierInit(&arrived[tid], 1);
  if (tid == 0) {
    BarrierInit(&windows_read, cut.cluster);
    BarrierInit(&sums_sent, cut.v_split);
  }
  if (tid < kWarp) FenceBarrierInit();
  if (cut.cluster > 1) ClusterArrive();
  __syncthreads();
  // Copies, not kernels, write what names the sequences: it may be read ahead.
  const int slot = p.slots[s];
  const bool fresh = p.fresh[s] != 0;
  const int64_t token = p.offsets != nullptr ? p.offsets[s] : s;
  const bool none = p.offsets != nullptr && p.offsets[s + 1] == token;

  // Four channels of q, of k or of v each; with K = 256 some threads have two of those.
  constexpr int kGroups = K == 256 ? 2 : 1;
  const int64_t k_begin = int64_t{p.heads / p.q_group} * K;  // among the window's channels
  const int64_t v_begin = k_begin + int64_t{p.heads / p.k_group} * K;
  const int q_count = cut.q_heads * K, k_count = cut.k_heads * K;
  const int v_count = cut.heads == 1 ? cut.rows : cut.v_heads * p.dim_v;
  Channels<T, kWide> group[kGroups];
  int64_t channel[kGroups], stride[kGroups];  // channel -1: none
  const T* from[kGroups];
  float* to[kGroups];
  bool owner[kGroups];  // writes the window
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int at = (tid + i * threads) * 4;
    channel[i] = -1;
    if (at < q_count) {
      channel[i] = int64_t{h0 / p.q_group} * K + at;
      stride[i] = p.q.stride;
      from[i] = static_cast<const T*>(p.q.data) + channel[i];
      to[i] = shared.q + at;
      owner[i] = h0 % p.q_group == 0 && part == 0;
    } else if (at < q_count + k_count) {
      channel[i] = k_begin + int64_t{h0 / p.k_group} * K + at - q_count;
      stride[i] = p.k.stride;
      from[i] = static_cast<const T*>(p.k.data) + channel[i] - k_begin;
      to[i] = shared.k + at - q_count;
      owner[i] = h0 % p.k_group == 0 && part == 0;
    } else if (at < q_count + k_count + v_count) {
      const int v_at = at - q_count - k_count;
      channel[i] = v_begin + int64_t{h0 / p.v_group} * p.dim_v + first_row + v_at;
      stride[i] = p.v.stride;
      from[i] = static_cast<const T*>(p.v.data) + channel[i] - v_begin;
      to[i] = shared.v + v_at;
      owner[i] = h0 % p.v_group == 0;
    }
    if (channel[i] >= 0) group[i].LoadWeights(p, channel[i]);
  }
  const int row = first_row + tid * 4;
  const bool finishes = tid < cut.rows / 4;  // four rows of the output, a warp for each head
  Piece<float> norm_weight = Piece<float>::Of({1.0f, 1.0f, 1.0f, 1.0f});
  if (p.norm_weight != nullptr && finishes) {
    norm_weight = LoadPiece<kWide>(p.norm_weight + row % p.dim_v);
  }
  // The first threads have the scalars of a head each.
  float exp_a = 0.0f, scalar_bias = 0.0f;
  if (p.decay == Decay::kScalar && tid < cut.heads) {
    if (p.exp_a != nullptr) exp_a = p.exp_a[h0 + tid];
    if (p.decay_bias != nullptr) scalar_bias = p.decay_bias[h0 + tid];
  }
  // Decays of the channels, from behind: the last warps have the least to convolve.
  const int decay_at = (threads - 1 - tid) * 4, g_head = (h0 + decay_at / K) / p.g_group;
  const bool has_decay = p.decay == Decay::kVector && decay_at < cut.heads * K;
  const int64_t decay_column = int64_t{g_head} * K + decay_at % K;
  Piece<float> decay_bias;
  if (has_decay) {
    if (p.exp_a != nullptr) exp_a = p.exp_a[g_head];
    if (p.decay_bias != nullptr) decay_bias = LoadPiece<kWide>(p.decay_bias + decay_column);
  }
  float* state = reinterpret_cast<float*>(p.state + slot * p.slot_stride_bytes) +
                 (int64_t{h0} * p.dim_v + first_row) * K;
  const bool reads = slot >= 0 && !none && !fresh;
  const int passes = cut.rows * K / (warps * kPassFloats);
  if (cut.prefetch && reads && lane == 0) {
    for (int i = 0; i < passes; ++i) {
      BulkPrefetch(state + (i * warps + warp) * kPassFloats, kPassFloats * 4);
    }
  }
  PdlLaunchDependents();
  PdlWait();

#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if (channel[i] >= 0 && !none) group[i].x = LoadPiece<kWide>(from[i] + token * stride[i]);
  }
  AnyNumber decay_x, beta_x;
  AnyPiece<kWide> decay_vector;
  Piece<T> gate;
  const int64_t out_column = int64_t{h0} * p.dim_v + row;
  if (!none) {
    if (tid < cut.heads) {
      if (p.decay == Decay::kScalar) {
        decay_x.Load(p.decay_x, token * p.decay_x.stride + h0 + tid);
      }
      if (p.delta) beta_x.Load(p.beta, token * p.beta.stride + h0 + tid);
    }
    if (has_decay) decay_vector.Load(p.decay_x, token * p.decay_x.stride + decay_column);
    if (p.gate.data != nullptr && finishes) {
      gate =
          LoadPiece<kWide>(static_cast<const T*>(p.gate.data) + token * p.gate.stride + out_column);
    }
  }
  T* out = static_cast<T*>(p.out) + token * p.out_stride + out_column;
  if (slot < 0 || none) {
    if (finishes && !none) StorePiece<kWide>(out, Piece<T>{});
    return;
  }
  float* ring = memory + warp * cut.ring * kPassFloats;
  uint64_t* ring_arrived = arrived + warp * cut.ring;
  if (lane == 0 && !fresh) {
    for (int i = 0; i < min(cut.ring, passes); ++i) {
      BulkLoad(ring + i * kPassFloats, state + (i * warps + warp) * kPassFloats, kPassFloats * 4,
               &ring_arrived[i]);
    }
  }
  T* window = reinterpret_cast<T*>(p.window + slot * p.slot_stride_bytes);
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if (channel[i] >= 0) group[i].LoadPast(p, window, channel[i], fresh);
  }
  if (has_decay) {
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      d[i] = DecayOf(p, decay_vector.Value(p.decay_x, i), decay_bias[i], exp_a);
    }
    *reinterpret_cast<float4*>(shared.decay + decay_at) = {d[0], d[1], d[2], d[3]};
  }
  if (tid < cut.heads) {
    const float beta = beta_x.Value(p.beta);
    shared.scalars[2 * tid] =
        p.decay == Decay::kScalar ? DecayOf(p, decay_x.Value(p.decay_x), scalar_bias, exp_a) : 1.0f;
    shared.scalars[2 * tid + 1] = p.beta_given ? beta : p.beta_scale * FastSigmoid(beta);
  }
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if (channel[i] < 0) continue;
    float y[4];
    group[i].Values(p, y);
    *reinterpret_cast<float4*>(to[i]) = {y[0], y[1], y[2], y[3]};
  }
  __syncthreads();
  if (cut.cluster > 1 && warp == warps - 1) {
    ClusterWait();  // the peers' barriers stand
    if (p.width >= 2 && lane < cut.cluster) ArrivePeer(&windows_read, lane);
  }

  Token<K> t;
  int current = -1, place = 0, parity = 0;
  for (int i = 0; i < passes; ++i) {
    const int at = (i * warps + warp) * kPassFloats, pass_row = at / K;
    const int j = cut.heads == 1 ? 0 : pass_row / p.dim_v;
    if (j != current) {
      current = j;
      const int h = h0 + j;
      t.beta = shared.scalars[2 * j + 1];
      t.Init(p, shared.k + (h / p.k_group - h0 / p.k_group) * K,
             shared.q + (h / p.q_group - h0 / p.q_group) * K, shared.decay + j * K,
             shared.scalars[2 * j]);
    }
    float4 rows[kSlots];
    if (!fresh) BarrierWait(&ring_arrived[place], parity);
#pragma unroll
    for (int n = 0; n < kSlots; ++n) {
      rows[n] = fresh
                    ? float4{0.0f, 0.0f, 0.0f, 0.0f}
                    : reinterpret_cast<const float4*>(ring + place * kPassFloats)[n * kWarp + lane];
    }
    if (i + cut.ring < passes && !fresh) {
      __syncwarp();  // everyone has read the piece that the next one overwrites
      if (lane == 0) {
        BulkLoad(ring + place * kPassFloats, state + at + cut.ring * warps * kPassFloats,
                 kPassFloats * 4, &ring_arrived[place]);
      }
    }
    if (++place == cut.ring) {
      place = 0;
      parity ^= 1;
    }
    const int v_row =
        cut.heads == 1 ? pass_row
                       : ((h0 + j) / p.v_group - h0 / p.v_group) * p.dim_v + pass_row - j * p.dim_v;
    t.Pass(p, rows, shared.v + v_row, shared.o + pass_row, reinterpret_cast<float4*>(state + at));
  }
  __syncthreads();

  if (warp * kWarp * 4 < cut.rows) {
    float o[4] = {};
    if (finishes) {
      const float4 x = reinterpret_cast<const float4*>(shared.o)[tid];
      o[0] = x.x, o[1] = x.y, o[2] = x.z, o[3] = x.w;
    }
    if (p.norm) {
      float squares = WarpSum(o[0] * o[0] + o[1] * o[1] + o[2] * o[2] + o[3] * o[3]);
      if (cut.v_split > 1) {
        if (lane < cut.v_split) {
          const auto peer = static_cast<uint32_t>(block % cut.cluster - part + lane);
          StorePeer(shared.sums + part, peer, squares);
          ArrivePeer(&sums_sent, peer);
        }
        BarrierWait(&sums_sent, 0);
        squares = 0.0f;
        for (int i = 0; i < cut.v_split; ++i) squares += shared.sums[i];
      }
      const float scale = rsqrtf(squares / static_cast<float>(p.dim_v) + p.norm_eps);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[i] *= scale * norm_weight[i];
        if (p.gate.data != nullptr) {
          o[i] *= FastSigmoid(gate[i]) * (p.gate_sigmoid ? 1.0f : gate[i]);
        }
      }
    }
    if (finishes) StorePiece<kWide>(out, Piece<T>::Of(o));
  }
  if (p.width < 2) return;
  if (cut.cluster > 1) BarrierWait(&windows_read, 0);
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if (channel[i] >= 0 && owner[i]) group[i].StorePast(p, window, channel[i]);
  }
#endif
}

// Heads whose blocks read a window channel in common.
int SharedHeads(const MixerStep& step) {
  if (step.width < 2) return 1;
  return std::lcm(std::lcm(step.q_group, step.k_group), step.v_group);
}

Cut MakeCut(const MixerStep& step, const MixerStepPlan& plan) {
  const auto heads_of = [&](int group) { return std::max(1, plan.heads / group); };
  Cut cut;
  cut.heads = plan.heads;
  cut.v_split = plan.v_split;
  cut.rows = plan.heads * step.dim_v / plan.v_split;
  cut.q_heads = heads_of(step.q_group);
  cut.k_heads = heads_of(step.k_group);
  cut.v_heads = heads_of(step.v_group);
  if (step.width >= 2) cut.cluster = SharedHeads(step) / plan.heads * cut.v_split;
  if (step.width < 2 && step.norm) cut.cluster = cut.v_split;
  const int passes = cut.rows * step.dim_k / (plan.threads / kWarp * kPassFloats);
  cut.ring = std::min(passes, plan.ring);
  cut.prefetch =
      int64_t{step.sequences} * step.heads * step.dim_v * step.dim_k * 4 <= kPrefetchBytes;
  return cut;
}

size_t SharedBytes(const MixerStep& step, const MixerStepPlan& plan, const Cut& cut) {
  return Shared::Bytes(step, cut) +
         static_cast<size_t>(plan.threads / kWarp * cut.ring) * kPassFloats * sizeof(float);
}

bool Fits(const MixerStep& step, const MixerStepPlan& plan) {
  if (step.dim_v % plan.v_split != 0) return false;
  const Cut cut = MakeCut(step, plan);
  const int unit = plan.threads / kWarp * kPassFloats, floats = cut.rows * step.dim_k;
  const int channels = (cut.q_heads + cut.k_heads) * step.dim_k +
                       (cut.heads == 1 ? cut.rows : cut.v_heads * step.dim_v);
  // Several heads: those that share their windows, a warp to finish each.
  if (plan.heads > 1 && (plan.heads != SharedHeads(step) || plan.v_split != 1 ||
                         step.dim_v != kMaxRows || plan.heads > plan.threads / kWarp)) {
    return false;
  }
  return cut.rows <= kMaxRows * plan.heads && floats % unit == 0 && floats >= unit &&
         plan.threads / kWarp * cut.ring <= kMaxPieces &&
         channels <= plan.threads * 4 * (step.dim_k == 256 ? 2 : 1) &&
         (step.decay != Decay::kVector || plan.heads * step.dim_k <= plan.threads * 4) &&
         SharedBytes(step, plan, cut) + 1024 <=
             static_cast<size_t>(cuda::Device().max_shared_bytes) &&
         cut.cluster <= kMaxCluster;
}

// Measured on an H200 (bench/kernels/linear_mixer_bench): a head is split while its parts find
// room beside each other, in a cluster one to a multiprocessor and else several; where there is
// enough to do, heads that share a window go to one block. Whole heads take 256 threads, but half
// of them where there are many to convolve and norm: more blocks at a time.
MixerStepPlan PickPlan(const MixerStep& step) {
  constexpr int kRing = 4;
  const int64_t heads = int64_t{step.sequences} * step.heads;
  const int64_t processors = cuda::Device().multiprocessors;
  const int64_t room = processors * (step.norm ? 1 : 4);
  const int share = SharedHeads(step);
  if (share > 1 && heads >= 2 * share * processors) {
    for (const int threads : {256, 128}) {
      const MixerStepPlan plan{threads, 1, share, kRing * 128 / threads};
      if (Fits(step, plan)) return plan;
    }
  }
  for (const bool fill : {true, false}) {
    for (const int v_split : {8, 4, 2, 1}) {
      if (fill && v_split > 1 && heads * v_split > room) continue;
      const int threads = v_split > 1 || (step.norm && heads >= 4 * processors) ? 128 : 256;
      for (const int count : {threads, 384 - threads}) {
        const MixerStepPlan plan{count, v_split, 1, kRing};
        if (Fits(step, plan)) return plan;
      }
    }
  }
  return {};
}

template <int K, typename T, bool kWide>
void LaunchStep(const MixerStep& step, const MixerStepPlan& plan, Stream stream) {
  const Cut cut = MakeCut(step, plan);
  LaunchOptions options;
  options.cluster = cut.cluster;
  options.shared_bytes = SharedBytes(step, plan, cut);
  const dim3 grid(
      static_cast<unsigned>(int64_t{step.sequences} * step.heads / cut.heads * cut.v_split));
  Launch("linear_mixer_step", stream, MixerStepKernel<K, T, kWide>, grid,
         dim3(static_cast<unsigned>(plan.threads)), options, step, cut);
}

template <typename T, bool kWide>
void LaunchFor(const MixerStep& step, const MixerStepPlan& plan, Stream stream) {
  if (step.dim_k == 64) {
    LaunchStep<64, T, kWide>(step, plan, stream);
  } else if (step.dim_k == 128) {
    LaunchStep<128, T, kWide>(step, plan, stream);
  } else {
    LaunchStep<256, T, kWide>(step, plan, stream);
  }
}

// Rows whose groups of four elements can each be moved in one access.
bool Wide(const RowsOf& rows) {
  return rows.stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % (rows.is_bf16 ? 8 : 16) == 0;
}
bool Wide(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool AllWide(const MixerStep& step) {
  return Wide(step.q) && Wide(step.k) && Wide(step.v) && Wide(step.gate) &&
         (step.decay != Decay::kVector || (Wide(step.decay_x) && Wide(step.decay_bias))) &&
         Wide(step.conv_weight) && Wide(step.conv_bias) && Wide(step.window) &&
         Wide(step.norm_weight) && Wide(RowsOf{step.out, step.out_stride, step.q.is_bf16});
}

}  // namespace

bool MixerStepSupported(const MixerStep& step) {
  if (cuda::Device().major < 9) return false;
  if (step.dim_k != 64 && step.dim_k != 128 && step.dim_k != 256) return false;
  if (step.width > kMaxWidth || step.width == 1) return false;
  if ((reinterpret_cast<uintptr_t>(step.state) | static_cast<uintptr_t>(step.slot_stride_bytes)) %
          16 !=
      0) {
    return false;
  }
  MixerStep one = step;  // any batch has a plan if a single sequence has one
  one.sequences = 1;
  return PickPlan(one).threads > 0;
}

void RunMixerStep(const MixerStep& args, Stream stream, MixerStepPlan plan) {
  if (args.sequences == 0) return;
  MixerStep step = args;
  step.channels = int64_t{step.heads / step.q_group + step.heads / step.k_group} * step.dim_k +
                  int64_t{step.heads / step.v_group} * step.dim_v;
  if (plan.threads == 0) plan = PickPlan(step);
  WEIR_CHECK(MixerStepSupported(step) && Fits(step, plan))
      << "K " << step.dim_k << ", V " << step.dim_v << ", " << step.heads << " heads";
  WithActivation(step.q.is_bf16 ? DType::kBF16 : DType::kF32, [&](auto tag) {
    using T = decltype(tag);
    if (AllWide(step)) {
      LaunchFor<T, true>(step, plan, stream);
    } else {
      LaunchFor<T, false>(step, plan, stream);
    }
  });
}

}  // namespace weir::kernels::gpu
