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

// A runner of a race: compared by (max - largest max) * scale + lead, in differences, so that large
// logits cost no digits.
struct Best {
  float max;    // of its block's kept logits
  float lead;   // log2(mass of the block relative to max / E); 0 when the best is wanted
  int32_t id;   // of the block, later of its token; -1: none
  float value;  // the token's logit
};
constexpr int kPlanWords = static_cast<int>(sizeof(RowPlan) / 4);

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
  Best* partials;     // [rows, gridDim.x]
  uint32_t* arrived;  // [rows], zero between launches
  // Of each block of ids, [rows, kMaxBlocks]: the largest logit, and the masses relative to it at
  // the row's temperature and at 1. Written where a row needs them, and summed in one order however
  // many thread blocks share the row.
  float *block_max, *block_mass, *block_mass_at_one;
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

__device__ __forceinline__ Best NoBest() { return {kNever, 0.0f, -1, kNever}; }
__device__ __forceinline__ bool Better(const Best& a, const Best& b, float scale) {
  if (a.id < 0 || b.id < 0) return b.id < 0 && a.id >= 0;
  const float difference = (a.max - b.max) * scale + (a.lead - b.lead);
  return difference > 0.0f || (difference == 0.0f && a.id < b.id);
}
// The best of the lanes, in all of them.
__device__ __forceinline__ Best WarpBest(const Best& mine, float scale) {
  const float max = FromKey(__reduce_max_sync(0xffffffffu, KeyOf(mine.max)));
  const uint32_t key = mine.id < 0 ? 0 : KeyOf((mine.max - max) * scale + mine.lead);
  const bool ahead = key == __reduce_max_sync(0xffffffffu, key);
  const auto id = static_cast<uint32_t>(mine.id);  // -1 is the last of all
  const uint32_t first = __reduce_min_sync(0xffffffffu, ahead ? id : 0xffffffffu);
  const int lane = __ffs(__ballot_sync(0xffffffffu, ahead && id == first)) - 1;
  return {__shfl_sync(0xffffffffu, mine.max, lane), __shfl_sync(0xffffffffu, mine.lead, lane),
          static_cast<int32_t>(first), __shfl_sync(0xffffffffu, mine.value, lane)};
}

// Philox (core/philox.h) in registers.
__device__ __forceinline__ uint4 NoiseWords(const RowPlan& row, uint64_t stream) {
  uint4 c = make_uint4(static_cast<uint32_t>(row.draw), static_cast<uint32_t>(row.draw >> 32),
                       static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32));
  auto k0 = static_cast<uint32_t>(row.seed), k1 = static_cast<uint32_t>(row.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    c = make_uint4(__umulhi(0xCD9E8D57u, c.z) ^ c.y ^ k0, 0xCD9E8D57u * c.z,
                   __umulhi(0xD2511F53u, c.x) ^ c.w ^ k1, 0xD2511F53u * c.x);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// How far ahead a block of this mass is in the race of blocks.
__device__ __forceinline__ float LeadOf(const RowPlan& row, int block, float mass) {
  const uint4 words = NoiseWords(row, BlockNoiseStream(block));
  const uint32_t low = (block & 1) != 0 ? words.y : words.x;
  const uint32_t high = (block & 1) != 0 ? words.w : words.z;
  return log2f(mass) - log2f(ExponentialOf((block & 2) != 0 ? high : low));
}

// The token of a block that wins, with its logit; x holds -infinity for those that may not. By a
// warp, the same in all lanes.
__device__ __forceinline__ void WinnerInBlock(const RowPlan& row, int block,
                                              const float (&x)[kPerLane], Best* best) {
  const bool draws = (row.flags & kRowDraws) != 0;
  Best mine = NoBest();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = IdAt(block, half * 4);
    uint4 noise = make_uint4(0, 0, 0, 0);
    if (draws) noise = NoiseWords(row, IdNoiseStream(first));
    const uint32_t words[4] = {noise.x, noise.y, noise.z, noise.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = x[half * 4 + i];
      if (value == kNever) continue;
      const float lead = draws ? -log2f(ExponentialOf(words[i])) : 0.0f;
      const Best other = {value, lead, first + i, value};
      if (Better(other, mine, row.scale)) mine = other;
    }
  }
  mine = WarpBest(mine, row.scale);
  best->id = mine.id;
  best->value = mine.value;
}

// By a warp: the sum over the blocks of masses relative to their maxima, relative to `max`.
__device__ __forceinline__ float SumMasses(const float* block_max, const float* mass, int blocks,
                                           float max, float scale) {
  float sum = 0.0f;
#pragma unroll 4
  for (int i = threadIdx.x % kWarp; i < blocks; i += kWarp) {
    const float part = __ldcg(mass + i);
    sum += part > 0.0f ? part * exp2f((__ldcg(block_max + i) - max) * scale) : 0.0f;
  }
  return WarpSum(sum);
}

}  // namespace weir::kernels::gpu
