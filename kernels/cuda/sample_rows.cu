// One pass over the logits of a row, shared by several thread blocks: penalties where there are
// any, then maxima, sums and the race of blocks of ids. The last thread block of a row to arrive
// finishes it: the token of the winning block, or truncation (sample_select.cuh), and log
// probabilities. Sums are taken in an order that depends on the shape alone.
#include "kernels/cuda/sample_rows.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/sample_select.cuh"

namespace weir::kernels::gpu {
namespace {

// Penalties, bias, forbidden ids and the mask on ids [begin, end), by the whole thread block.
__device__ __noinline__ void Adjust(const SampleJob& job, const RowPlan& row, int row_index,
                                    float* logits, int begin, int end, uint32_t* occurrences) {
  constexpr uint32_t kSeen = 0x80000000u;  // in the prompt; the rest counts generated ones
  if ((row.flags & kRowCounts) != 0) {
    const bool generated_count = row.presence != 0.0f || row.frequency != 0.0f;
    const int first = row.repetition != 1.0f ? row.ids_begin : row.generated_begin;
    for (int slice = begin; slice < end; slice += kCountedIds) {
      const int size = min(kCountedIds, end - slice);
      for (int i = threadIdx.x; i < size; i += kSampleThreads) occurrences[i] = 0;
      __syncthreads();
      for (int i = first + static_cast<int>(threadIdx.x); i < row.generated_end;
           i += kSampleThreads) {
        const auto at = static_cast<uint32_t>(job.pool[i] - slice);
        if (at >= static_cast<uint32_t>(size)) continue;
        if (i < row.generated_begin) {
          atomicOr(&occurrences[at], kSeen);
        } else {
          atomicAdd(&occurrences[at], 1u);
        }
      }
      if (row.append_fed != 0 && threadIdx.x == 0) {
        const auto at = static_cast<uint32_t>(job.fed[row_index] - slice);
        if (at < static_cast<uint32_t>(size)) atomicAdd(&occurrences[at], 1u);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += kSampleThreads) {
        const uint32_t seen = occurrences[i];
        if (seen == 0) continue;
        float x = __ldcg(logits + slice + i);
        if (row.repetition != 1.0f) x = x > 0 ? x / row.repetition : x * row.repetition;
        const auto count = static_cast<float>(seen & ~kSeen);
        if (generated_count && count > 0) {
          x -= __fadd_rn(row.presence, __fmul_rn(row.frequency, count));
        }
        logits[slice + i] = x;
      }
      __syncthreads();
    }
  }
  const auto inside = [&](int id) { return id >= begin && id < end; };
  if ((row.flags & kRowBias) != 0) {
    const int32_t* ids = job.pool + row.bias_begin;
    for (int i = threadIdx.x; i < row.bias_count; i += kSampleThreads) {
      if (inside(ids[i])) atomicAdd(logits + ids[i], __int_as_float(ids[row.bias_count + i]));
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < row.forbidden_count; i += kSampleThreads) {
    const int id = job.pool[row.forbidden_begin + i];
    if (inside(id)) logits[id] = kNever;
  }
  if ((row.flags & kRowMask) != 0) {
    const auto* words = reinterpret_cast<const uint32_t*>(job.pool) + row.mask_begin;
    for (int id = begin + static_cast<int>(threadIdx.x); id < end; id += kSampleThreads) {
      if (id / 32 >= row.mask_words || (words[id / 32] >> (id % 32) & 1) == 0) logits[id] = kNever;
    }
  }
  __threadfence_block();
  __syncthreads();
}

// This warp's blocks [begin, end): the winner of its race, and what the row needs to know of each.
template <bool kVectors>
__device__ __forceinline__ Best Scan(const SampleJob& job, const RowPlan& row, int row_index,
                                     const float* logits, int begin, int end,
                                     float (&next)[kPerLane]) {
  const int lane = threadIdx.x % kWarp;
  const float scale = row.scale;
  const bool races = (row.flags & (kRowDraws | kRowTruncates)) == kRowDraws;
  const bool measures = (row.flags & kRowMeasures) != 0, at_one = (row.flags & kRowLogprob) != 0;
  const bool remembers = measures || at_one || row.num_top > 0 || (row.flags & kRowTruncates) != 0;
  const int64_t first = int64_t{row_index} * kMaxBlocks + lane;
  Best best = NoBest();
  float x[kPerLane];
#pragma unroll 1
  for (int base = begin; base < end; base += kWarp) {
    // Lane l keeps what is found out about block base + l.
    float max = kNever, mass = 0.0f, mass_at_one = 0.0f;
    const int count = min(kWarp, end - base);
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) x[i] = next[i];
      if (base + j + 1 < end) LoadBlock<kVectors>(job, logits, base + j + 1, next);
      const float m = BlockMax(x);
      float s = 0.0f, s1 = 0.0f;
      if (m > kNever && (races || measures)) s = BlockMass(x, m, scale);
      if (m > kNever && at_one) s1 = BlockMass(x, m, kLog2E);
      if (lane == j) max = m, mass = s, mass_at_one = s1;
    }
    if (lane < count && remembers) {
      job.block_max[first + base] = max;
      if (measures) job.block_mass[first + base] = mass;
      if (at_one) job.block_mass_at_one[first + base] = mass_at_one;
    }
    if (max > kNever) {
      const Best found = {max, races ? LeadOf(row, base + lane, mass) : 0.0f, base + lane, kNever};
      if (Better(found, best, scale)) best = found;
    }
  }
  best = WarpBest(best, scale);
  if (best.id >= 0 && (row.flags & (kRowTruncates | kRowTarget)) == 0) {
    const int block = best.id;
    if (end - begin > 1) LoadBlock<kVectors>(job, logits, block, x);  // else it is still here
    WinnerInBlock(row, block, x, &best);
  }
  return best;
}

// By one warp: what is reported about the token.
__device__ __forceinline__ void Report(const SampleJob& job, const SampleShared& shared,
                                       int row_index, const float* logits, const Best& best,
                                       bool logprob) {
  if (threadIdx.x % kWarp != 0) return;
  const RowPlan& row = shared.row;
  int32_t token = best.id;
  float value = best.value;
  if ((row.flags & kRowTarget) != 0) {
    token = row.target;
    value = Comparable(__ldcg(logits + token));
  } else if (job.tokens != nullptr) {
    job.tokens[row_index] = token;
  }
  job.result_tokens[row_index] = token;
  job.logprobs[row_index] = logprob ? value - shared.max - logf(shared.mass_at_one) : kNever;
}

// What this thread wrote, and all wrote before the last barrier, is seen by who arrives later.
__device__ __forceinline__ uint32_t Arrive(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// By one warp, all thread blocks of the row having arrived: what the row needs beyond the winner.
__device__ __forceinline__ void Measure(const SampleJob& job, int row_index, const Best& best,
                                        SampleShared& shared) {
  const RowPlan& row = shared.row;
  const int64_t first = int64_t{row_index} * kMaxBlocks;
  float max = best.max;  // the largest of all, where the race is not one of chance
  if ((row.flags & (kRowDraws | kRowTruncates)) == kRowDraws) {
    uint32_t key = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < job.blocks; i += kWarp) {
      key = ::max(key, KeyOf(__ldcg(job.block_max + first + i)));
    }
    max = FromKey(__reduce_max_sync(0xffffffffu, key));
  }
  float mass = 0.0f, mass_at_one = 0.0f;
  if ((row.flags & kRowMeasures) != 0) {
    mass = SumMasses(job.block_max + first, job.block_mass + first, job.blocks, max, row.scale);
  }
  if ((row.flags & kRowLogprob) != 0) {
    mass_at_one =
        SumMasses(job.block_max + first, job.block_mass_at_one + first, job.blocks, max, kLog2E);
  }
  if (threadIdx.x == 0) {
    shared.max = max;
    shared.mass = mass;
    shared.mass_at_one = mass_at_one;
  }
  __syncwarp();
}

template <bool kVectors>
__device__ __noinline__ void FinishSelecting(const SampleJob& job, int row_index,
                                             const float* logits, Best best, SampleShared& shared) {
  const RowPlan& row = shared.row;
  const float* block_max = job.block_max + int64_t{row_index} * kMaxBlocks;
  const Selection selection = {job, row, logits, block_max, shared, shared.max, row.scale};
  int top_count = 0;
  Cut cut = Select<kVectors>(selection, shared.mass, &top_count);
  const float log_sum = logf(shared.mass_at_one);
  for (int i = threadIdx.x; i < top_count; i += kSampleThreads) {
    const int64_t at = int64_t{row_index} * job.plan->top_pitch + i;
    job.top[at] = {CutAt(shared, i).id, CandidateValue(shared, i) - shared.max - log_sum};
  }
  if (threadIdx.x == 0) job.top_counts[row_index] = top_count;
  if ((row.flags & kRowTruncates) != 0) {
    const Cut min_p = MinPCut(selection);
    if (min_p.key > cut.key) cut = min_p;
    best = DrawKept<kVectors>(selection, cut);
  }
  if (threadIdx.x < kWarp) {
    Report(job, shared, row_index, logits, best, (row.flags & kRowLogprob) != 0);
  }
}

template <bool kVectors>
__global__ __launch_bounds__(kSampleThreads,
                             2) void SampleKernel(__grid_constant__ const SampleJob job) {
  __shared__ SampleShared shared;
  PdlLaunchDependents();
  PdlWait();
  const int row_index = static_cast<int>(blockIdx.y), split = static_cast<int>(gridDim.x);
  float* logits = job.logits + row_index * job.stride;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = static_cast<int>(blockIdx.x) * kSampleWarps * job.blocks_per_warp;
  const int begin = min(first + warp * job.blocks_per_warp, job.blocks);
  const int end = min(begin + job.blocks_per_warp, job.blocks);
  const int last = min(first + kSampleWarps * job.blocks_per_warp, job.blocks);
  float next[kPerLane];
  if (begin < end) LoadBlock<kVectors>(job, logits, begin, next);  // while the plan is read
  if (threadIdx.x < kPlanWords) {
    reinterpret_cast<uint32_t*>(&shared.row)[threadIdx.x] =
        __ldcg(reinterpret_cast<const uint32_t*>(job.rows + row_index) + threadIdx.x);
  } else if (threadIdx.x == kPlanWords) {
    shared.rows = __ldcg(&job.plan->rows);
  }
  __syncthreads();
  if (row_index >= shared.rows) return;
  const RowPlan& row = shared.row;
  const uint32_t flags = row.flags;
  const float scale = row.scale;
  const bool selects = (flags & kRowTruncates) != 0 || row.num_top > 0;
  if ((flags & kRowAdjusts) != 0 && first < last) {
    Adjust(job, row, row_index, logits, first * kDrawBlock, min(last * kDrawBlock, job.vocab),
           shared.select.occurrences);
    if (begin < end) LoadBlock<kVectors>(job, logits, begin, next);
  }
  const Best mine = Scan<kVectors>(job, row, row_index, logits, begin, end, next);
  if (lane == 0) shared.best[warp] = mine;
  __syncthreads();
  // From here on the first warp is enough, unless there is something to select.
  if (warp > 0 && !selects) return;
  Best best = NoBest();
  if (warp == 0) {
    best = WarpBest(lane < kSampleWarps ? shared.best[lane] : NoBest(), scale);
    bool finishes = true;
    if (split > 1) {
      auto* parts = reinterpret_cast<float4*>(job.partials + int64_t{row_index} * split);
      uint32_t before = 0;
      if (lane == 0) {
        __stcg(parts + blockIdx.x,
               make_float4(best.max, best.lead, __int_as_float(best.id), best.value));
        before = Arrive(job.arrived + row_index);
      }
      finishes = __shfl_sync(0xffffffffu, before, 0) + 1 == static_cast<uint32_t>(split);
      if (finishes) {
        __syncwarp();
        best = NoBest();
        static_assert(kMaxBlocks / kSampleWarps <= 2 * kWarp);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (lane + i * kWarp >= split) continue;
          const float4 part = __ldcg(parts + lane + i * kWarp);
          const Best other = {part.x, part.y, __float_as_int(part.z), part.w};
          if (Better(other, best, scale)) best = other;
        }
        best = WarpBest(best, scale);
        if (lane == 0) job.arrived[row_index] = 0;
      }
    }
    const bool anything = best.id >= 0;
    if (finishes && anything && (selects || (flags & kRowLogprob) != 0)) {
      Measure(job, row_index, best, shared);
    }
    if (finishes && !(selects && anything)) {
      Report(job, shared, row_index, logits, best, anything && (flags & kRowLogprob) != 0);
      if (lane == 0) job.top_counts[row_index] = 0;
    }
    if (selects && lane == 0) shared.word = finishes && anything;
  }
  if (!selects) return;
  __syncthreads();
  if (shared.word == 0) return;
  __syncthreads();  // the word is used again
  FinishSelecting<kVectors>(job, row_index, logits, best, shared);
}

}  // namespace

int SampleSplit(int64_t rows, int64_t vocab) {
  const int64_t blocks = CeilDiv(vocab, kDrawBlock);
  const int64_t at_once = int64_t{cuda::Device().multiprocessors} * 2;
  const int64_t most =
      std::min<int64_t>(CeilDiv(blocks, kSampleWarps), at_once / std::max<int64_t>(rows, 1));
  return static_cast<int>(std::max<int64_t>(most, 1));
}

void LaunchSample(const SampleJob& given, int64_t rows, Stream stream) {
  SampleJob job = given;
  const int split = SampleSplit(rows, job.vocab);
  job.blocks = static_cast<int32_t>(CeilDiv(job.vocab, kDrawBlock));
  job.blocks_per_warp = static_cast<int32_t>(CeilDiv(job.blocks, int64_t{split} * kSampleWarps));
  const bool vectors =
      reinterpret_cast<uintptr_t>(job.logits) % 16 == 0 && (rows == 1 || job.stride % 4 == 0);
  Launch("Sample", stream, vectors ? SampleKernel<true> : SampleKernel<false>,
         dim3(static_cast<unsigned>(split), static_cast<unsigned>(rows)), dim3(kSampleThreads), {},
         job);
}

}  // namespace weir::kernels::gpu
