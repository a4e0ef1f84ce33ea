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

// Adds `mass`, relative to `max`, to `total`, relative to `total_max`.
__device__ __forceinline__ float Joined(float total, float total_max, float mass, float max,
                                        float new_max, float scale) {
  const float a = total > 0.0f ? total * exp2f((total_max - new_max) * scale) : 0.0f;
  const float b = mass > 0.0f ? mass * exp2f((max - new_max) * scale) : 0.0f;
  return a + b;
}
__device__ __forceinline__ Partial Join(const Partial& a, const Partial& b, float scale) {
  Partial joined;
  joined.best = Better(b.best, a.best, scale) ? b.best : a.best;
  joined.max = fmaxf(a.max, b.max);
  joined.mass = Joined(a.mass, a.max, b.mass, b.max, joined.max, scale);
  joined.mass_at_one = Joined(a.mass_at_one, a.max, b.mass_at_one, b.max, joined.max, kLog2E);
  return joined;
}
__device__ __forceinline__ Partial Nothing() { return {{kNever, 0.0f, -1}, kNever, 0.0f, 0.0f}; }

// The lower lanes' parts first: floats add up the same way every time. Without `sums` only the best
// and the maximum are joined.
__device__ __noinline__ Partial WarpJoin(Partial mine, float scale, bool sums) {
#pragma unroll 1
  for (int i = 1; i < kWarp; i *= 2) {
    Partial other;
    other.best.max = __shfl_xor_sync(0xffffffffu, mine.best.max, i);
    other.best.lead = __shfl_xor_sync(0xffffffffu, mine.best.lead, i);
    other.best.block = __shfl_xor_sync(0xffffffffu, mine.best.block, i);
    other.max = __shfl_xor_sync(0xffffffffu, mine.max, i);
    if (!sums) {
      if (Better(other.best, mine.best, scale)) mine.best = other.best;
      mine.max = fmaxf(mine.max, other.max);
      continue;
    }
    other.mass = __shfl_xor_sync(0xffffffffu, mine.mass, i);
    other.mass_at_one = __shfl_xor_sync(0xffffffffu, mine.mass_at_one, i);
    const bool lower = (threadIdx.x & i) == 0;
    mine = Join(lower ? mine : other, lower ? other : mine, scale);
  }
  return mine;
}

// This warp's blocks [begin, end).
template <bool kVectors>
__device__ __forceinline__ Partial Scan(const SampleJob& job, const RowPlan& row,
                                        const float* logits, float* block_max, int begin, int end,
                                        float (&next)[kPerLane]) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t flags = row.flags;
  const float scale = row.scale;
  const bool races = (flags & (kRowDraws | kRowTruncates)) == kRowDraws;
  const bool weighs = races || (flags & kRowMeasures) != 0;
  const bool at_one = (flags & kRowLogprob) != 0;
  Partial mine = Nothing();
  for (int base = begin; base < end; base += kWarp) {
    // Lane l keeps what is found out about block base + l.
    float max = kNever, mass = 0.0f, mass_at_one = 0.0f;
    const int count = min(kWarp, end - base);
    for (int j = 0; j < count; ++j) {
      float x[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) x[i] = next[i];
      if (base + j + 1 < end) LoadBlock<kVectors>(job, logits, base + j + 1, next);
      const float m = BlockMax(x);
      float s = 0.0f, s1 = 0.0f;
      if (m > kNever) {
        if (weighs) s = BlockMass(x, m, scale);
        if (at_one) s1 = weighs && scale == kLog2E ? s : BlockMass(x, m, kLog2E);
      }
      if (lane == j) max = m, mass = s, mass_at_one = s1;
    }
    const int block = base + lane;
    if (lane < count && block_max != nullptr) block_max[block] = max;
    if (max > kNever) {
      Partial found = {{max, 0.0f, block}, max, mass, mass_at_one};
      if (races) found.best.lead = LeadOf(row, block, mass);
      mine = Join(mine, found, scale);
    }
  }
  return WarpJoin(mine, scale, (flags & (kRowMeasures | kRowLogprob)) != 0);
}

// By one warp: what is reported about the token.
__device__ __forceinline__ void Report(const SampleJob& job, const RowPlan& row, int row_index,
                                       const float* logits, const Partial& all, int32_t token) {
  if (threadIdx.x % kWarp != 0) return;
  const bool target = (row.flags & kRowTarget) != 0;
  if (target) token = row.target;
  if (!target && job.tokens != nullptr) job.tokens[row_index] = token;
  job.result_tokens[row_index] = token;
  float logprob = kNever;
  if ((row.flags & kRowLogprob) != 0 && token >= 0 && all.max > kNever) {
    logprob = Comparable(__ldcg(logits + token)) - all.max - logf(all.mass_at_one);
  }
  job.logprobs[row_index] = logprob;
  if (row.num_top <= 0 || all.max == kNever) job.top_counts[row_index] = 0;
}

template <bool kVectors>
__device__ __noinline__ void FinishSelecting(const SampleJob& job, const RowPlan& row,
                                             int row_index, const float* logits, const Partial& all,
                                             SampleShared& shared) {
  const Selection selection = {
      job,    row,     logits,   job.block_max + int64_t{row_index} * kMaxBlocks,
      shared, all.max, row.scale};
  int top_count = 0;
  const Cut cut = Select<kVectors>(selection, all.mass, &top_count);
  const float log_sum = logf(all.mass_at_one);
  for (int i = threadIdx.x; i < top_count; i += kSampleThreads) {
    const int64_t at = int64_t{row_index} * job.plan->top_pitch + i;
    job.top[at] = {CutAt(shared, i).id, CandidateValue(shared, i) - all.max - log_sum};
  }
  if (threadIdx.x == 0) job.top_counts[row_index] = top_count;
  int32_t token = -1;
  if ((row.flags & kRowTruncates) != 0) {
    token = DrawKept<kVectors>(selection, cut);
  } else if (all.best.block >= 0 && (row.flags & kRowTarget) == 0) {
    float x[kPerLane];
    LoadBlock<kVectors>(job, logits, all.best.block, x);
    token = WinnerInBlock(row, all.best.block, x, all.best.max);
  }
  if (threadIdx.x < kWarp) Report(job, row, row_index, logits, all, token);
}

template <bool kVectors>
__global__ __launch_bounds__(kSampleThreads,
                             2) void SampleKernel(__grid_constant__ const SampleJob job) {
  __shared__ SampleShared shared;
  PdlWait();
  PdlLaunchDependents();
  const int row_index = static_cast<int>(blockIdx.y), split = static_cast<int>(gridDim.x);
  float* logits = job.logits + row_index * job.stride;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = static_cast<int>(blockIdx.x) * kSampleWarps * job.blocks_per_warp;
  const int begin = min(first + warp * job.blocks_per_warp, job.blocks);
  const int end = min(begin + job.blocks_per_warp, job.blocks);
  const int last = min(first + kSampleWarps * job.blocks_per_warp, job.blocks);
  float next[kPerLane];
  if (begin < end) LoadBlock<kVectors>(job, logits, begin, next);  // while the plan is read
  if (row_index >= job.plan->rows) return;
  const RowPlan& row = job.rows[row_index];
  const uint32_t flags = row.flags;
  const float scale = row.scale;
  const bool selects = (flags & kRowTruncates) != 0 || row.num_top > 0;
  if ((flags & kRowAdjusts) != 0 && first < last) {
    __syncthreads();
    Adjust(job, row, row_index, logits, first * kDrawBlock, min(last * kDrawBlock, job.vocab),
           shared.select.occurrences);
    if (begin < end) LoadBlock<kVectors>(job, logits, begin, next);
  }
  float* block_max = selects ? job.block_max + int64_t{row_index} * kMaxBlocks : nullptr;
  const Partial mine = Scan<kVectors>(job, row, logits, block_max, begin, end, next);
  if (lane == 0) shared.partials[warp] = mine;
  // Maxima of blocks and adjusted logits, for whoever finishes the row.
  if (selects || (flags & kRowAdjusts) != 0) __threadfence();
  __syncthreads();
  // From here on the first warp is enough, unless there is something to select.
  if (warp > 0 && !selects) return;
  if (warp == 0) {
    const bool sums = (flags & (kRowMeasures | kRowLogprob)) != 0;
    Partial all = WarpJoin(lane < kSampleWarps ? shared.partials[lane] : Nothing(), scale, sums);
    bool arrived_last = true;
    if (split > 1) {
      uint32_t before = 0;
      if (lane == 0) {
        job.partials[int64_t{row_index} * split + blockIdx.x] = all;
        __threadfence();
        before = atomicAdd(job.arrived + row_index, 1u);
        __threadfence();
      }
      arrived_last = __shfl_sync(0xffffffffu, before, 0) + 1 == static_cast<uint32_t>(split);
      if (arrived_last) {
        all = Nothing();
        const Partial* parts = job.partials + int64_t{row_index} * split;
#pragma unroll 1
        for (int i = lane; i < split; i += kWarp) {
          const auto* words = reinterpret_cast<const float*>(parts + i);
          const Partial part = {
              {__ldcg(words), __ldcg(words + 1), __float_as_int(__ldcg(words + 2))},
              __ldcg(words + 3),
              __ldcg(words + 4),
              __ldcg(words + 5)};
          all = Join(all, part, scale);
        }
        all = WarpJoin(all, scale, sums);
        if (lane == 0) job.arrived[row_index] = 0;
      }
    }
    if (!selects || all.max == kNever) {
      if (arrived_last) {
        int32_t token = -1;
        if (all.best.block >= 0 && (flags & kRowTarget) == 0) {
          float x[kPerLane];
          LoadBlock<kVectors>(job, logits, all.best.block, x);
          token = WinnerInBlock(row, all.best.block, x, all.best.max);
        }
        Report(job, row, row_index, logits, all, token);
      }
      arrived_last = false;
    }
    if (selects && lane == 0) {
      shared.row = all;
      shared.word = arrived_last;
    }
  }
  if (!selects) return;
  __syncthreads();
  if (shared.word == 0) return;
  const Partial all = shared.row;
  FinishSelecting<kVectors>(job, row, row_index, logits, all, shared);
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
