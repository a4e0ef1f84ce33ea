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

constexpr int kMaxCluster = 8, kMaxPieces = 8, kMaxRows = 128;

// How a launch cuts the heads.
struct Cut {
  int rows = 0;     // of a block
  int v_split = 1;  // blocks of a head
  int cluster = 1;
};

template <int K>
struct Shared {
  float *k, *q, *decay, *v, *o, *sums;
  __device__ explicit Shared(float* base, int rows)
      : k(base), q(k + K), decay(q + K), v(decay + K), o(v + rows), sums(o + rows) {}
  static size_t Bytes(int rows) {
    return sizeof(float) * static_cast<size_t>(3 * K + 2 * rows + kMaxCluster);
  }
};

template <int K, typename T, bool kWide>
__global__ void __launch_bounds__(256) MixerStepKernel(const MixerStep p, const Cut cut) {
#if WEIR_STEP_BODY
  extern __shared__ __align__(128) float memory[];
  __shared__ uint64_t arrived[kMaxPieces], windows_read, sums_sent;
  const Shared<K> shared(memory + cut.rows * K, cut.rows);
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warp = tid / kWarp, lane = tid % kWarp, warps = threads / kWarp;
  const int block = static_cast<int>(blockIdx.x);
  const int part = block % cut.v_split, h = block / cut.v_split % p.heads;
  const int s = block / cut.v_split / p.heads;
  const int first_row = part * cut.rows;
  if (tid == 0) {
    for (int i = 0; i < kMaxPieces; ++i) BarrierInit(&arrived[i], 1);
    BarrierInit(&windows_read, cut.cluster);
    BarrierInit(&sums_sent, cut.v_split);
    FenceBarrierInit();
  }
  if (cut.cluster > 1) ClusterArrive();

  // Four channels of q, of k or of v each; with K = 256 some threads have two of those.
  constexpr int kGroups = K == 256 ? 2 : 1;
  const int q_head = h / p.q_group, k_head = h / p.k_group, v_head = h / p.v_group;
  const int64_t k_begin = int64_t{p.heads / p.q_group} * K;  // among the window's channels
  const int64_t v_begin = k_begin + int64_t{p.heads / p.k_group} * K;
  Channels<T, kWide> group[kGroups];
  int64_t channel[kGroups], stride[kGroups];  // channel -1: none
  const T* from[kGroups];
  float* to[kGroups];
  bool owner[kGroups];  // writes the window
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int at = (tid + i * threads) * 4;
    channel[i] = -1;
    if (at < K) {
      channel[i] = int64_t{q_head} * K + at;
      stride[i] = p.q.stride;
      from[i] = static_cast<const T*>(p.q.data) + channel[i];
      to[i] = shared.q + at;
      owner[i] = h % p.q_group == 0 && part == 0;
    } else if (at < 2 * K) {
      channel[i] = k_begin + int64_t{k_head} * K + at - K;
      stride[i] = p.k.stride;
      from[i] = static_cast<const T*>(p.k.data) + channel[i] - k_begin;
      to[i] = shared.k + at - K;
      owner[i] = h % p.k_group == 0 && part == 0;
    } else if (at < 2 * K + cut.rows) {
      channel[i] = v_begin + int64_t{v_head} * p.dim_v + first_row + at - 2 * K;
      stride[i] = p.v.stride;
      from[i] = static_cast<const T*>(p.v.data) + channel[i] - v_begin;
      to[i] = shared.v + at - 2 * K;
      owner[i] = h % p.v_group == 0;
    }
    if (channel[i] >= 0) group[i].LoadWeights(p, channel[i]);
  }
  const int row = first_row + tid * 4;
  const bool finishes = tid < cut.rows / 4;  // four rows of the output, all in the first warp
  Piece<float> norm_weight = Piece<float>::Of({1.0f, 1.0f, 1.0f, 1.0f});
  if (p.norm_weight != nullptr && finishes) norm_weight = LoadPiece<kWide>(p.norm_weight + row);
  const float exp_a = p.exp_a != nullptr ? p.exp_a[h / p.g_group] : 0.0f;
  const float scalar_bias =
      p.decay == Decay::kScalar && p.decay_bias != nullptr ? p.decay_bias[h] : 0.0f;
  // Decays of the channels, from behind: the last warps convolve nothing.
  const int decay_at = (threads - 1 - tid) * 4;
  const bool has_decay = p.decay == Decay::kVector && decay_at < K;
  const int64_t decay_column = int64_t{h / p.g_group} * K + decay_at;
  Piece<float> decay_bias;
  if (has_decay && p.decay_bias != nullptr) {
    decay_bias = LoadPiece<kWide>(p.decay_bias + decay_column);
  }
  PdlLaunchDependents();
  PdlWait();

  const int slot = p.slots[s];
  const bool fresh = p.fresh[s] != 0;
  const int64_t token = p.offsets != nullptr ? p.offsets[s] : s;
  const bool none = p.offsets != nullptr && p.offsets[s + 1] == token;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if (channel[i] >= 0 && !none) group[i].x = LoadPiece<kWide>(from[i] + token * stride[i]);
  }
  AnyNumber decay_x, beta_x;
  AnyPiece<kWide> decay_vector;
  Piece<T> gate;
  const int64_t out_column = int64_t{h} * p.dim_v + row;
  if (!none) {
    if (p.decay == Decay::kScalar) decay_x.Load(p.decay_x, token * p.decay_x.stride + h);
    if (p.delta) beta_x.Load(p.beta, token * p.beta.stride + h);
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
  float* state = reinterpret_cast<float*>(p.state + slot * p.slot_stride_bytes) +
                 (int64_t{h} * p.dim_v + first_row) * K;
  const int pass_floats = warps * kPassFloats;
  const int passes = cut.rows * K / pass_floats;
  if (tid == 0 && !fresh) {
    for (int i = 0; i < passes; ++i) {
      BulkLoad(memory + i * pass_floats, state + i * pass_floats,
               static_cast<uint32_t>(pass_floats) * 4, &arrived[i]);
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
  const float scalar_decay =
      p.decay == Decay::kScalar ? DecayOf(p, decay_x.Value(p.decay_x), scalar_bias, exp_a) : 1.0f;
  Token<K> t;
  t.beta = beta_x.Value(p.beta);
  if (!p.beta_given) t.beta = p.beta_scale * FastSigmoid(t.beta);
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
  t.Init(p, shared.k, shared.q, shared.decay, scalar_decay);

  for (int i = 0; i < passes; ++i) {
    const int at = i * pass_floats + warp * kPassFloats;
    float4 rows[kSlots];
    if (!fresh) BarrierWait(&arrived[i]);
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      rows[j] = fresh ? float4{0.0f, 0.0f, 0.0f, 0.0f}
                      : reinterpret_cast<const float4*>(memory + at)[j * kWarp + lane];
    }
    t.Pass(p, rows, shared.v + at / K, shared.o + at / K, reinterpret_cast<float4*>(state + at));
  }
  __syncthreads();

  if (warp == 0) {
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
        BarrierWait(&sums_sent);
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
  if (cut.cluster > 1) BarrierWait(&windows_read);
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

bool Fits(const MixerStep& step, const MixerStepPlan& plan) {
  const int rows = step.dim_v / plan.v_split, unit = plan.threads / kWarp * kPassFloats;
  const int passes = rows * step.dim_k / unit;
  const int cluster = SharedHeads(step) * plan.v_split;
  return step.dim_v % plan.v_split == 0 && rows <= kMaxRows && passes * unit == rows * step.dim_k &&
         passes >= 1 && passes <= kMaxPieces &&
         rows * step.dim_k * 4 + 8192 <= cuda::Device().max_shared_bytes &&
         (cluster <= kMaxCluster || (step.width < 2 && !step.norm));
}

// Measured on an H200 (bench/kernels/linear_mixer_bench): a head is split while its parts find
// room beside each other, in a cluster one to a multiprocessor and else several. Whole heads take
// 256 threads, but half of them where there are many to convolve and norm: more blocks at a time.
MixerStepPlan PickPlan(const MixerStep& step) {
  const int64_t heads = int64_t{step.sequences} * step.heads;
  const int64_t processors = cuda::Device().multiprocessors;
  const int64_t room = processors * (step.norm ? 1 : 4);
  for (const bool fill : {true, false}) {
    for (const int v_split : {8, 4, 2, 1}) {
      if (fill && v_split > 1 && heads * v_split > room) continue;
      const int threads = v_split > 1 || (step.norm && heads >= 8 * processors) ? 128 : 256;
      for (const int count : {threads, 384 - threads}) {
        if (Fits(step, {count, v_split})) return {count, v_split};
      }
    }
  }
  return {};
}

template <int K, typename T, bool kWide>
void LaunchStep(const MixerStep& step, const MixerStepPlan& plan, Stream stream) {
  Cut cut;
  cut.v_split = plan.v_split;
  cut.rows = step.dim_v / plan.v_split;
  cut.cluster = step.width >= 2 || step.norm ? SharedHeads(step) * cut.v_split : 1;
  LaunchOptions options;
  options.cluster = cut.cluster;
  options.shared_bytes =
      Shared<K>::Bytes(cut.rows) + static_cast<size_t>(cut.rows) * K * sizeof(float);
  const dim3 grid(static_cast<unsigned>(int64_t{step.sequences} * step.heads * cut.v_split));
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
