// What the sampling kernel is told about each row, and what its parts share.
//
// Logits are looked at in blocks of kDrawBlock ids, a warp a block, eight ids a lane: lane l holds
// ids 4 l ... 4 l + 3 of the block's first half and of its second half, so that one call of the
// generator serves four neighbours.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/draw_noise.h"

namespace weir::kernels::gpu {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / kWarp;
constexpr int kMaxBlocks = 1024;  // of kDrawBlock ids: vocabularies up to 262,144
constexpr int kPerLane = kDrawBlock / kWarp;
constexpr int kMaxCandidates = 2048;  // that are sorted in shared memory
constexpr int kCountedIds = 8192;     // whose occurrences are counted at a time
constexpr float kNever = -__builtin_huge_valf();
constexpr float kLog2E = 1.44269504088896341f;

enum RowFlags : uint32_t {
  kRowDraws = 1,      // else the best
  kRowTruncates = 2,  // draws from what top-k, top-p and min-p leave
  kRowMeasures = 4,   // the sum of all weights at the temperature is needed
  kRowLogprob = 8,
  kRowTarget = 16,  // the token is given, only its log probability is asked for
  kRowCounts = 32,  // penalties
  kRowBias = 64,
  kRowForbids = 128,
  kRowMask = 256,
};
constexpr uint32_t kRowAdjusts = kRowCounts | kRowBias | kRowForbids | kRowMask;

struct RowPlan {
  uint32_t flags;
  float
      scale;  // log2(e) / temperature: weights are 2^((x - max) * scale); 1 where nothing is drawn
  uint64_t seed, draw;
  double log2_min_p;  // -infinity: off
  float top_p;
  int32_t top_k;  // 0: off
  int32_t num_top, target;
  float repetition, presence, frequency;
  int32_t append_fed;
  // Ranges of the pool: prompt and generated ids, in this order; ids of biases, then their values;
  // forbidden ids; words of the mask.
  int32_t ids_begin, generated_begin, generated_end;
  int32_t bias_begin, bias_count, forbidden_begin, forbidden_count, mask_begin, mask_words;
};

struct SamplePlan {  // what is uploaded for a step; the pool follows the plans
  int32_t rows;
  int32_t top_pitch;  // top entries of a row among the results: the most that any row wants
  int32_t padding[2];
};

// The winner of a race among blocks so far: compared by max * scale + lead, in differences, so that
// large logits cost no digits.
struct Best {
  float max;      // of the block's kept logits
  float lead;     // log2(mass relative to max / E); 0 when the best is wanted
  int32_t block;  // -1: none
};

struct Partial {  // of one thread block
  Best best;
  float max;                // of all logits
  float mass, mass_at_one;  // relative to max, at the row's temperature and at 1
};

struct TopEntry {
  int32_t id;
  float logprob;
};

struct SampleJob {
  float* logits;
  int64_t stride;
  int32_t vocab, blocks, blocks_per_warp;
  const SamplePlan* plan;
  const RowPlan* rows;
  const int32_t* pool;
  const int32_t* fed;
  int32_t* tokens;    // the caller's
  Partial* partials;  // [rows, gridDim.x]
  uint32_t* arrived;  // [rows], zero between launches
  float* block_max;   // [rows, kMaxBlocks]
  int32_t* result_tokens;
  float* logprobs;
  int32_t* top_counts;
  TopEntry* top;  // [rows, top_pitch]
};

// Makes logits comparable: NaN becomes -infinity, +infinity the largest float, -0 becomes 0.
__device__ __forceinline__ float Comparable(float x) {
  return x != x ? kNever : fminf(x, FLT_MAX) + 0.0f;
}
// An unsigned number in the order of floats.
__device__ __forceinline__ uint32_t KeyOf(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float FromKey(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ int IdAt(int block, int i) {
  return block * kDrawBlock + (i / 4) * (kDrawBlock / 2) + (threadIdx.x % kWarp) * 4 + i % 4;
}

// The logits of a block. Other thread blocks may have changed them: past the first cache.
template <bool kVectors>
__device__ __forceinline__ void LoadBlock(const SampleJob& job, const float* logits, int block,
                                          float (&x)[kPerLane]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = IdAt(block, half * 4);
    if (kVectors && first + 4 <= job.vocab) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(logits + first));
      x[half * 4] = v.x, x[half * 4 + 1] = v.y, x[half * 4 + 2] = v.z, x[half * 4 + 3] = v.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[half * 4 + i] = first + i < job.vocab ? __ldcg(logits + first + i) : kNever;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) x[i] = Comparable(x[i]);
}

__device__ __forceinline__ float BlockMax(const float (&x)[kPerLane]) {
  float max = x[0];
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) max = fmaxf(max, x[i]);
  return FromKey(__reduce_max_sync(0xffffffffu, KeyOf(max)));
}
// Sum of 2^((x - max) * scale); max is finite.
__device__ __forceinline__ float BlockMass(const float (&x)[kPerLane], float max, float scale) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sum += exp2f((x[i] - max) * scale);
  return WarpSum(sum);
}

__device__ __forceinline__ float ExponentialOf(uint32_t bits) {
  return Exponential<float>(
      bits, [](float x) { return log1pf(-x); }, [](float x) { return logf(x); });
}

__device__ __forceinline__ bool Better(const Best& a, const Best& b, float scale) {
  if (a.block < 0) return false;
  if (b.block < 0) return true;
  const float difference = (a.max - b.max) * scale + (a.lead - b.lead);
  return difference > 0.0f || (difference == 0.0f && a.block < b.block);
}

// Much of this code runs once per row, where fetching instructions takes longer than executing
// them: hence calls and loops that are not unrolled.

// How far ahead a block of this mass is in the race of blocks.
static __device__ __noinline__ float LeadOf(const RowPlan& row, int block, float mass) {
  const auto words = Philox(row.seed, row.draw, BlockNoiseStream(block));
  uint32_t bits = words[0];
#pragma unroll
  for (int i = 1; i < 4; ++i) bits = block % 4 == i ? words[i] : bits;
  return log2f(mass) - log2f(ExponentialOf(bits));
}

// The id of a block that wins; x holds -infinity for those that may not. The same in all lanes.
static __device__ __noinline__ int32_t WinnerInBlock(const RowPlan& row, int block, const float* x,
                                                     float max) {
  float best = kNever;
  int32_t id = INT32_MAX;
  const bool draws = (row.flags & kRowDraws) != 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    std::array<uint32_t, 4> words{};
    const int first = IdAt(block, half * 4);
    if (draws) words = Philox(row.seed, row.draw, IdNoiseStream(first));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = x[half * 4 + i];
      if (value == kNever) continue;
      float key = (value - max) * row.scale;
      if (draws) key -= log2f(ExponentialOf(words[i]));
      if (key > best || (key == best && first + i < id)) best = key, id = first + i;
    }
  }
#pragma unroll 1
  for (int i = kWarp / 2; i > 0; i /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, best, i);
    const int32_t other_id = __shfl_xor_sync(0xffffffffu, id, i);
    if (other > best || (other == best && other_id < id)) best = other, id = other_id;
  }
  return id;
}

}  // namespace weir::kernels::gpu
