// Attention: planning, and kernels for any shape and type. attention_prepare.cu has the step before
// (norm, rotary, store), attention_decode.cu and sm90/attention_prefill.cu what is hot.
#include "kernels/cuda/attention.cuh"

#include <algorithm>
#include <climits>
#include <cmath>

#include "core/check.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kStoreThreads = 256;
constexpr int kAttendWarps = 8;
// Keys that a warp of the generic kernel takes at a time.
constexpr int kKeys = 4;

__device__ __forceinline__ float As(const float*, float x) { return x; }
__device__ __forceinline__ float As(const bf16*, float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

// Key or value rows of one kv head, wherever they are: rows of the activations read as stored.
template <typename T, typename KV>
struct Entry {
  const KV* stored = nullptr;
  const T* fresh = nullptr;
  __device__ __forceinline__ float operator[](int d) const {
    return stored != nullptr ? Load(stored + d)
                             : As(static_cast<const KV*>(nullptr), Load(fresh + d));
  }
};

// A block per token and head; its warps take keys in turn, each with a softmax of its own, joined
// at the end. What a token gets depends on its position only. Elements: of a row per lane.
template <typename T, typename KV, int kElements>
__global__ void __launch_bounds__(kAttendWarps* kWarp) AttendKernel(const AttentionParams p) {
  constexpr int kUnroll = kElements > 8 ? 1 : kElements;  // huge heads: any code will do
  extern __shared__ float accumulators[];                 // [warps, head_dim]
  __shared__ float maxima[kAttendWarps], sums[kAttendWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int token = blockIdx.x, head = blockIdx.y, kv_head = head / p.group;
  PdlLaunchDependents();
  PdlWait();
  const TokenPlace t = PlaceOf(p, token);
  if (!t.mine || t.slot < 0) return;
  const bool ring = p.kv.table == nullptr;
  const int window = ring ? p.kv.block_tokens : INT_MAX;
  const int first = t.entry >= window ? t.entry - window + 1 : 0;
  const int begin = p.offsets[t.seq], cached = p.cached[t.seq];

  float q[kElements], acc[kElements] = {};
  const T* q_row = static_cast<const T*>(p.q) + token * p.q_stride + head * p.head_dim;
#pragma unroll kUnroll
  for (int i = 0; i < kElements; ++i) {
    const int d = lane + i * kWarp;
    q[i] = d < p.head_dim ? Load(q_row + d) * p.scale_log2 : 0.0f;
  }
  float max = -INFINITY, sum = 0.0f;
  for (int base = first + warp * kKeys; base <= t.entry; base += kAttendWarps * kKeys) {
    Entry<T, KV> values[kKeys];
    float scores[kKeys];
    float block_max = max;
    for (int u = 0; u < kKeys; ++u) {
      const int j = base + u;
      scores[u] = -INFINITY;
      if (j > t.entry) continue;
      Entry<T, KV> key;
      if (ring && j >= cached) {
        const int64_t row = begin + j - cached;
        key.fresh = static_cast<const T*>(p.k) + row * p.k_stride + kv_head * p.head_dim;
        values[u].fresh = static_cast<const T*>(p.v) + row * p.v_stride + kv_head * p.head_dim;
      } else {
        key.stored = KeyAt<KV>(p, t.seq, t.slot, j, kv_head);
        values[u].stored = key.stored + ValueOffset(p);
      }
      float dot = 0.0f;
#pragma unroll kUnroll
      for (int i = 0; i < kElements; ++i) {
        const int d = lane + i * kWarp;
        if (d < p.head_dim) dot += q[i] * key[d];
      }
      scores[u] = WarpSum(dot);
      block_max = fmaxf(block_max, scores[u]);
    }
    const float rescale = exp2f(max - block_max);
    max = block_max;
    sum *= rescale;
#pragma unroll kUnroll
    for (int i = 0; i < kElements; ++i) acc[i] *= rescale;
    for (int u = 0; u < kKeys; ++u) {
      if (base + u > t.entry) break;
      const float weight = exp2f(scores[u] - max);
      sum += weight;
#pragma unroll kUnroll
      for (int i = 0; i < kElements; ++i) {
        const int d = lane + i * kWarp;
        if (d < p.head_dim) acc[i] += weight * values[u][d];
      }
    }
  }
  if (lane == 0) {
    maxima[warp] = max;
    sums[warp] = sum;
  }
#pragma unroll kUnroll
  for (int i = 0; i < kElements; ++i) {
    const int d = lane + i * kWarp;
    if (d < p.head_dim) accumulators[warp * p.head_dim + d] = acc[i];
  }
  __syncthreads();
  for (int w = 0; w < kAttendWarps; ++w) max = w == 0 ? maxima[0] : fmaxf(max, maxima[w]);
  float weights[kAttendWarps];
  sum = 0.0f;
  for (int w = 0; w < kAttendWarps; ++w) {
    weights[w] = exp2f(maxima[w] - max);
    sum += weights[w] * sums[w];
  }
  for (int d = threadIdx.x; d < p.head_dim; d += blockDim.x) {
    float total = 0.0f;
    for (int w = 0; w < kAttendWarps; ++w) total += weights[w] * accumulators[w * p.head_dim + d];
    total /= sum;
    const int64_t at = int64_t{head} * p.head_dim + d;
    if (p.gate != nullptr) {
      const float gate = Load(static_cast<const T*>(p.gate) + token * p.gate_stride + at);
      total *= 1.0f / (1.0f + expf(-gate));
    }
    Store(static_cast<T*>(p.out) + token * p.out_stride + at, total);
  }
}

// The last `window` entries of a run, after all that the run overwrites has been read.
template <typename T, typename KV>
__global__ void StoreRingKernel(const AttentionParams p) {
  PdlLaunchDependents();
  PdlWait();
  const int token = blockIdx.x;
  const TokenPlace t = PlaceOf(p, token);
  if (!t.mine || t.slot < 0) return;
  if (token < p.offsets[t.seq + 1] - p.kv.block_tokens) return;  // overwritten within the run
  KV* keys = KeyAt<KV>(p, t.seq, t.slot, t.entry, 0);
  KV* values = keys + ValueOffset(p);
  const T* k = static_cast<const T*>(p.k) + token * p.k_stride;
  const T* v = static_cast<const T*>(p.v) + token * p.v_stride;
  for (int d = threadIdx.x; d < p.kv_heads * p.head_dim; d += blockDim.x) {
    Store(keys + d, Load(k + d));
    Store(values + d, Load(v + d));
  }
}

void LaunchAttend(const AttentionParams& p, DType activation, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = sizeof(float) * kAttendWarps * p.head_dim;
  const dim3 grid(p.tokens, p.heads), block(kAttendWarps * kWarp);
  WithTypes(activation, p.kv.bf16, [&](auto act, auto kv) {
    using T = decltype(act);
    using KV = decltype(kv);
    const char* op = "Attention, any shape";
    if (p.head_dim <= 4 * kWarp) {
      Launch(op, stream, AttendKernel<T, KV, 4>, grid, block, options, p);
    } else if (p.head_dim <= 8 * kWarp) {
      Launch(op, stream, AttendKernel<T, KV, 8>, grid, block, options, p);
    } else {
      WEIR_CHECK(p.head_dim <= 32 * kWarp) << "heads of " << p.head_dim;
      Launch(op, stream, AttendKernel<T, KV, 32>, grid, block, options, p);
    }
  });
}

void LaunchStoreRing(const AttentionParams& p, DType activation, Stream stream) {
  WithTypes(activation, p.kv.bf16, [&](auto act, auto kv) {
    Launch("WindowAttention, store", stream, StoreRingKernel<decltype(act), decltype(kv)>,
           dim3(p.tokens), dim3(kStoreThreads), {}, p);
  });
}

AttentionParams MakeParams(const AttentionArgs& a, DType kv) {
  WEIR_CHECK(a.q.rank() == 3 && a.k.rank() == 3 && a.v.rank() == 3 && a.out.rank() == 3);
  const int64_t tokens = a.q.size(0), heads = a.q.size(1), head_dim = a.q.size(2);
  const int64_t kv_heads = a.k.size(1), sequences = a.slots.num_elements();
  WEIR_CHECK(a.k.size(0) == tokens && a.k.size(2) == head_dim) << a.k.ToString();
  WEIR_CHECK(a.v.size(0) == tokens && a.v.size(1) == kv_heads && a.v.size(2) == head_dim)
      << a.v.ToString();
  WEIR_CHECK(a.out.size(0) == tokens && a.out.size(1) == heads && a.out.size(2) == head_dim)
      << a.out.ToString();
  WEIR_CHECK(kv_heads > 0 && heads % kv_heads == 0) << heads << " / " << kv_heads;
  WEIR_CHECK(a.offsets.num_elements() == sequences + 1) << a.offsets.ToString();
  WEIR_CHECK(a.cached.num_elements() == sequences) << a.cached.ToString();
  WEIR_CHECK(a.k.dtype() == a.q.dtype() && a.v.dtype() == a.q.dtype() &&
             a.out.dtype() == a.q.dtype());
  WEIR_CHECK(kv == DType::kF32 || kv == DType::kBF16) << DTypeName(kv);
  AttentionParams p{};
  p.q = a.q.raw();
  p.k = a.k.raw();
  p.v = a.v.raw();
  p.out = a.out.raw();
  p.q_stride = a.q.row_stride();
  p.k_stride = a.k.row_stride();
  p.v_stride = a.v.row_stride();
  p.out_stride = a.out.row_stride();
  if (a.gate.defined()) {
    WEIR_CHECK(a.gate.dtype() == a.q.dtype() && a.gate.size(0) == tokens) << a.gate.ToString();
    p.gate = a.gate.raw();
    p.gate_stride = a.gate.row_stride();
  }
  p.heads = static_cast<int>(heads);
  p.kv_heads = static_cast<int>(kv_heads);
  p.group = static_cast<int>(heads / kv_heads);
  p.head_dim = static_cast<int>(head_dim);
  p.scale_log2 = a.scale * 1.44269504088896341f;
  p.offsets = a.offsets.data<int32_t>();
  p.slots = a.slots.data<int32_t>();
  p.cached = a.cached.data<int32_t>();
  p.sequences = static_cast<int>(sequences);
  p.tokens = static_cast<int>(tokens);
  if (a.q_norm.defined()) p.q_norm = a.q_norm.data<float>();
  if (a.k_norm.defined()) p.k_norm = a.k_norm.data<float>();
  p.norm_eps = a.norm_eps;
  if (a.inv_freq.defined() && a.inv_freq.num_elements() > 0) {
    WEIR_CHECK(a.positions.num_elements() == tokens) << a.positions.ToString();
    p.positions = a.positions.data<int32_t>();
    p.inv_freq = a.inv_freq.data<float>();
    p.half = static_cast<int>(a.inv_freq.num_elements());
    WEIR_CHECK(2 * p.half <= head_dim) << a.inv_freq.ToString();
  }
  p.kv.bf16 = kv == DType::kBF16;
  p.min_run = 1;
  p.max_run = INT_MAX;
  return p;
}

// Whether the batch has sequences of one token, and longer ones. Without host copies (in a captured
// graph) only the counts tell.
struct Runs {
  bool singles = false, longer = false;
};
Runs FindRuns(const AttentionArgs& args, const AttentionParams& p) {
  if (args.host_offsets == nullptr) {
    return p.tokens == p.sequences ? Runs{true, false} : Runs{true, true};
  }
  Runs runs;
  for (int i = 0; i < p.sequences; ++i) {
    const int32_t run = args.host_offsets[i + 1] - args.host_offsets[i];
    runs.singles |= run == 1;
    runs.longer |= run > 1;
  }
  return runs;
}

// Which kernel a sequence gets depends on the length of its own run only.
void Attend(const AttentionArgs& args, AttentionParams p, Stream stream) {
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return;
  const DType activation = args.q.dtype();
  const Runs runs = FindRuns(args, p);
  if (DecodeSupported(p, activation)) {
    if (runs.singles) {
      WEIR_CHECK(args.scratch != nullptr) << "attention without scratch";
      p.max_run = 1;
      LaunchDecode(p, args.max_entries, args.scratch, stream);
    }
    if (!runs.longer) return;
    p.min_run = 2;
    p.max_run = INT_MAX;
  }
  LaunchPrepare(p, activation, stream);
  if (PrefillSupported(p, activation)) {
    LaunchPrefill(p, args.host_offsets, stream);
  } else {
    LaunchAttend(p, activation, stream);
  }
  if (p.kv.table == nullptr) LaunchStoreRing(p, activation, stream);
}

}  // namespace

int64_t AttentionScratchBytes(int heads, int kv_heads, int head_dim, int64_t /*tokens*/,
                              int64_t sequences, int64_t max_entries, DType activation) {
  if (activation != DType::kBF16) return 0;
  return DecodeScratchBytes(heads, kv_heads, head_dim, sequences, max_entries);
}

void PagedAttention(const AttentionArgs& args, const PagedKv& kv, Stream stream) {
  WEIR_CHECK(kv.page_tokens > 0) << kv.page_tokens;
  AttentionParams p = MakeParams(args, kv.dtype);
  p.kv.base = static_cast<char*>(kv.base) + kv.layer_offset_bytes;
  p.kv.block_bytes = kv.page_stride_bytes;
  p.kv.table = kv.block_table.data<int32_t>();
  p.kv.table_stride = kv.block_table.row_stride();
  p.kv.block_tokens = kv.page_tokens;
  Attend(args, p, stream);
}

void WindowAttention(const AttentionArgs& args, const RingKv& ring, Stream stream) {
  WEIR_CHECK(ring.window > 0) << ring.window;
  AttentionParams p = MakeParams(args, ring.dtype);
  p.kv.base = static_cast<char*>(ring.base);
  p.kv.block_bytes = ring.slot_stride_bytes;
  p.kv.block_tokens = ring.window;
  Attend(args, p, stream);
}

}  // namespace weir::kernels::gpu
