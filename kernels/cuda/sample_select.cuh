// Truncation and top log probabilities, by one thread block for a whole row, exactly and without
// sorting the vocabulary.
//
// Usually few ids are wanted: the K-th largest of the block maxima bounds the K-th largest logit
// from below, and what reaches it is few enough to be sorted. Otherwise the cut is found digit by
// digit (radix selection), by count or by mass. Either way the result is a Cut, and the races are
// run over what it keeps.
#pragma once

#include "kernels/cuda/sample_rows.cuh"

namespace weir::kernels::gpu {

constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// A prefix of the order "larger first, equal ones by id".
struct Cut {
  uint32_t key;  // of the last logit kept
  int32_t id;    // the largest id kept among its equals
};

union SelectShared {
  uint64_t candidates[kMaxCandidates];  // key, then ~id: descending is the order of a Cut
  struct {
    uint32_t count[kDigits];
    // Masses in steps of 2^-31, so that their sum depends on no order; carries counted apart.
    uint32_t mass[kDigits], carry[kDigits];
  } digits;
  uint32_t occurrences[kCountedIds];
};

struct SampleShared {
  SelectShared select;
  Best best[kSampleWarps];
  double sums[kSampleWarps];
  uint32_t counts[kSampleWarps];
  RowPlan row;
  int32_t rows;
  float max, mass, mass_at_one;  // of the row
  double number;
  uint32_t word, other;
};

// What the parts of a selection have in common.
struct Selection {
  const SampleJob& job;
  const RowPlan& plan;
  const float* logits;
  const float* block_max;
  SampleShared& shared;
  float max;    // of the row
  float scale;  // of weights

  __device__ float Weight(float x) const { return exp2f((x - max) * scale); }
};

__device__ __forceinline__ bool Kept(const Cut& cut, uint32_t key, int32_t id) {
  return key > cut.key || (key == cut.key && id <= cut.id);
}
constexpr uint32_t kLowestKey = 0x00800000u;  // of -FLT_MAX: all that is not -infinity

// Sum over the thread block, the same in all threads.
__device__ __forceinline__ double ThreadsSum(double x, double* shared) {
#pragma unroll
  for (int i = kWarp / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < kSampleWarps; ++i) sum += shared[i];
  return sum;
}

// Calls body(block, lane, x) by whole warps for every block whose maximum's key is at least
// `least`; then, a few hundred blocks at a time, turn(block) in the lane that a block was called
// with.
template <bool kVectors, typename Body, typename Turn>
__device__ __forceinline__ void ForBlocks(const Selection& s, uint32_t least, const Body& body,
                                          const Turn& turn) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Neighbouring blocks go to different warps: large logits may stand together.
#pragma unroll 1
  for (int base = 0; base < s.job.blocks; base += kSampleThreads) {
    const int mine = base + lane * kSampleWarps + warp;
    const bool wanted = mine < s.job.blocks && KeyOf(__ldcg(s.block_max + mine)) >= least;
    uint32_t left = __ballot_sync(0xffffffffu, wanted);
    int at = __ffs(left) - 1;
    float next[kPerLane];
    if (left != 0) LoadBlock<kVectors>(s.job, s.logits, base + at * kSampleWarps + warp, next);
#pragma unroll 1
    while (left != 0) {
      const int now = at;
      float x[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) x[i] = next[i];
      left &= left - 1;
      at = __ffs(left) - 1;
      if (left != 0) LoadBlock<kVectors>(s.job, s.logits, base + at * kSampleWarps + warp, next);
      body(base + now * kSampleWarps + warp, now, x);
    }
    turn(mine);
  }
}

// Sorts the first `count` candidates, a power of two of them, descending.
__device__ __forceinline__ void Sort(uint64_t* at, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < count / 2; i += kSampleThreads) {
        const int low = 2 * i - (i & (stride - 1)), high = low + stride;
        const uint64_t a = at[low], b = at[high];
        if ((a < b) == ((low & size) == 0)) at[low] = b, at[high] = a;
      }
    }
  }
  __syncthreads();
}
__device__ __forceinline__ int PowerOfTwo(int count) {
  return count <= 2 ? 2 : 1 << (32 - __clz(count - 1));
}

// A key that `count` block maxima reach, and not many more; the lowest where there are fewer.
__device__ __forceinline__ uint32_t BlockBound(const Selection& s, int count) {
  static_assert(kMaxBlocks == 2 * kSampleThreads);
  uint32_t keys[2];
  for (int i = 0; i < 2; ++i) {
    const int block = static_cast<int>(threadIdx.x) + i * kSampleThreads;
    keys[i] = block < s.job.blocks ? KeyOf(__ldcg(s.block_max + block)) : 0;
  }
  // Bit by bit; soon enough it is close enough.
  const int enough = count + count / 4 + 8;
  uint32_t bound = 0;
#pragma unroll 1
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const int reach = __syncthreads_count(keys[0] >= (bound | bit)) +
                      __syncthreads_count(keys[1] >= (bound | bit));
    if (reach >= count) bound |= bit;
    if (reach >= count && reach <= enough) break;
  }
  return max(bound, kLowestKey);
}

// Sorts all that `cut` keeps into the candidates. Their number; more than kMaxCandidates: too many.
template <bool kVectors>
__device__ __forceinline__ int Gather(const Selection& s, const Cut& cut) {
  uint64_t* list = s.shared.select.candidates;
  __syncthreads();
  if (threadIdx.x == 0) s.shared.word = 0;
  __syncthreads();
  ForBlocks<kVectors>(
      s, cut.key,
      [&](int block, int, const float(&x)[kPerLane]) {
        const int lane = threadIdx.x % kWarp;
        int mine = 0;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) mine += Kept(cut, KeyOf(x[i]), IdAt(block, i));
        int before = mine;
#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
          const int other = __shfl_up_sync(0xffffffffu, before, i);
          if (lane >= i) before += other;
        }
        int at = 0;
        if (lane == kWarp - 1)
          at = static_cast<int>(atomicAdd(&s.shared.word, static_cast<uint32_t>(before)));
        at = __shfl_sync(0xffffffffu, at, kWarp - 1) + before - mine;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          const uint32_t key = KeyOf(x[i]);
          const int32_t id = IdAt(block, i);
          if (!Kept(cut, key, id)) continue;
          if (at < kMaxCandidates) list[at] = uint64_t{key} << 32 | ~static_cast<uint32_t>(id);
          ++at;
        }
      },
      [](int) {});
  __syncthreads();
  const int count = static_cast<int>(s.shared.word);
  if (count > kMaxCandidates) return count;
  const int size = PowerOfTwo(count);
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kSampleThreads) list[i] = 0;
  Sort(list, size);
  return count;
}

__device__ __forceinline__ float CandidateValue(const SampleShared& shared, int i) {
  return FromKey(static_cast<uint32_t>(shared.select.candidates[i] >> 32));
}
__device__ __forceinline__ Cut CutAt(const SampleShared& shared, int i) {
  const uint64_t c = shared.select.candidates[i];
  return {static_cast<uint32_t>(c >> 32), static_cast<int32_t>(~static_cast<uint32_t>(c))};
}

// How many of the first `count` sorted candidates it takes to reach `fraction` of `total` (0: of
// their own sum); count + 1 when they do not.
__device__ __forceinline__ int ReachMass(const Selection& s, int count, double fraction,
                                         double total) {
  const int each = (count + kSampleThreads - 1) / kSampleThreads;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = static_cast<int>(threadIdx.x) * each;
  double sum = 0;
  for (int i = first; i < min(first + each, count); ++i)
    sum += s.Weight(CandidateValue(s.shared, i));
  double before = sum;  // inclusive over the lanes, then over the warps
#pragma unroll
  for (int i = 1; i < kWarp; i *= 2) {
    const double other = __shfl_up_sync(0xffffffffu, before, i);
    if (lane >= i) before += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) s.shared.sums[warp] = before;
  if (threadIdx.x == 0) s.shared.word = static_cast<uint32_t>(count) + 1;
  __syncthreads();
  double all = 0, earlier = 0;
  for (int i = 0; i < kSampleWarps; ++i) {
    if (i < warp) earlier += s.shared.sums[i];
    all += s.shared.sums[i];
  }
  const double target = fraction * (total > 0 ? total : all);
  double reached = earlier + before - sum;
  if (first < count && reached < target) {
    for (int i = first; i < min(first + each, count); ++i) {
      reached += s.Weight(CandidateValue(s.shared, i));
      if (reached >= target) {
        atomicMin(&s.shared.word, static_cast<uint32_t>(i) + 1);
        break;
      }
    }
  }
  __syncthreads();
  int reach = static_cast<int>(s.shared.word);
  if (target <= 0) reach = 1;
  // Rounding may keep the sum of all just below itself.
  if (!(total > 0) && reach > count) reach = count;
  return reach;
}

// The id of the n-th (from 1) of the logits equal to `key` that `limit` keeps, by id.
template <bool kVectors>
__device__ __forceinline__ int32_t NthEqual(const Selection& s, uint32_t key, const Cut& limit,
                                            uint32_t n) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Blocks in the order of ids, a contiguous share for each warp.
  const int each = (s.job.blocks + kSampleWarps - 1) / kSampleWarps;
  const int begin = warp * each, end = min(begin + each, s.job.blocks);
  auto equal = [&](int block, const float(&x)[kPerLane], int half) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is = KeyOf(x[half * 4 + i]) == key && Kept(limit, key, IdAt(block, half * 4 + i));
      bits |= static_cast<uint32_t>(is) << i;
    }
    return bits;
  };
  uint32_t mine = 0;
  for (int block = begin; block < end; ++block) {
    if (KeyOf(__ldcg(s.block_max + block)) < key) continue;
    float x[kPerLane];
    LoadBlock<kVectors>(s.job, s.logits, block, x);
    mine += __popc(equal(block, x, 0)) + __popc(equal(block, x, 1));
  }
#pragma unroll
  for (int i = kWarp / 2; i > 0; i /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, i);
  __syncthreads();
  if (lane == 0) s.shared.counts[warp] = mine;
  if (threadIdx.x == 0) s.shared.word = INT32_MAX;
  __syncthreads();
  uint32_t before = 0;
  for (int i = 0; i < warp; ++i) before += s.shared.counts[i];
  if (before < n && before + mine >= n) {  // it is in this warp's share
    for (int block = begin; block < end && before < n; ++block) {
      if (KeyOf(__ldcg(s.block_max + block)) < key) continue;
      float x[kPerLane];
      LoadBlock<kVectors>(s.job, s.logits, block, x);
      for (int half = 0; half < 2; ++half) {
        const uint32_t bits = equal(block, x, half);
        uint32_t through = __popc(bits);
#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
          const uint32_t other = __shfl_up_sync(0xffffffffu, through, i);
          if (lane >= i) through += other;
        }
        uint32_t at = before + through - __popc(bits);
        for (int i = 0; i < 4; ++i) {
          if ((bits >> i & 1) == 0) continue;
          if (++at == n) s.shared.word = static_cast<uint32_t>(IdAt(block, half * 4 + i));
        }
        before += __shfl_sync(0xffffffffu, through, kWarp - 1);
      }
    }
  }
  __syncthreads();
  return static_cast<int32_t>(s.shared.word);
}

// The shortest prefix inside `limit` that holds `count` logits, or with `by_mass` at least
// `fraction` of the mass of `limit`. `limit` itself when there are not so many.
template <bool kVectors>
__device__ __forceinline__ Cut RadixCut(const Selection& s, const Cut& limit, bool by_mass,
                                        uint32_t count, double fraction) {
  auto& digits = s.shared.select.digits;
  uint32_t prefix = 0;
  double wanted = count;  // of what is inside the prefix
  uint32_t equals = 0;
  float reference = s.max;  // masses are counted relative to the weight of this
  for (int level = 0; level < 3; ++level) {
    const int bits = level == 2 ? 32 - 2 * kDigitBits : kDigitBits;
    const int shift = level == 0 ? 32 - kDigitBits : level == 1 ? 32 - 2 * kDigitBits : 0;
    __syncthreads();
    for (int i = threadIdx.x; i < kDigits; i += kSampleThreads) {
      digits.count[i] = digits.mass[i] = digits.carry[i] = 0;
    }
    __syncthreads();
    // Blocks below what the prefix can hold need no look.
    const uint32_t least = level == 0 ? limit.key : max(limit.key, prefix << (shift + bits));
    ForBlocks<kVectors>(
        s, least,
        [&](int block, int, const float(&x)[kPerLane]) {
#pragma unroll
          for (int i = 0; i < kPerLane; ++i) {
            const uint32_t key = KeyOf(x[i]);
            if (!Kept(limit, key, IdAt(block, i))) continue;
            if (level > 0 && key >> (shift + bits) != prefix) continue;
            const uint32_t digit = key >> shift & ((1u << bits) - 1);
            atomicAdd(&digits.count[digit], 1u);
            if (by_mass) {
              const float weight = exp2f(fminf((x[i] - reference) * s.scale, 0.0f));
              const uint32_t steps = __float2uint_rn(weight * 0x1p31f);
              if (atomicAdd(&digits.mass[digit], steps) + steps < steps) {
                atomicAdd(&digits.carry[digit], 1u);
              }
            }
          }
        },
        [](int) {});
    __syncthreads();
    // One warp goes down from the highest digit: few steps, once a level.
    if (threadIdx.x < kWarp) {
      auto value = [&](int digit) {
        return by_mass ? (static_cast<double>(digits.carry[digit]) * 0x1p32 + digits.mass[digit]) *
                             0x1p-31
                       : static_cast<double>(digits.count[digit]);
      };
      const int lane = static_cast<int>(threadIdx.x), top = (1 << bits) - 1;
      if (level == 0) {
        double total = 0;
        uint32_t all = 0;
        for (int i = lane; i <= top; i += kWarp) total += value(i), all += digits.count[i];
#pragma unroll
        for (int i = kWarp / 2; i > 0; i /= 2) {
          total += __shfl_xor_sync(0xffffffffu, total, i);
          all += __shfl_xor_sync(0xffffffffu, all, i);
        }
        if (by_mass) wanted = fraction * total;
        if (!by_mass && all <= count) wanted = -1;  // all of them
      }
      double above = 0;  // of the digits passed
      int found = -1, last = -1;
      for (int base = top; base >= 0 && found < 0 && wanted >= 0; base -= kWarp) {
        const int digit = base - lane;
        double through = digit >= 0 ? value(digit) : 0;
        const bool any = digit >= 0 && digits.count[digit] > 0;
#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
          const double other = __shfl_up_sync(0xffffffffu, through, i);
          if (lane >= i) through += other;
        }
        const uint32_t reach = __ballot_sync(0xffffffffu, any && above + through >= wanted);
        const uint32_t some = __ballot_sync(0xffffffffu, any);
        if (reach != 0) {
          found = base - (__ffs(reach) - 1);
          const double before = __shfl_up_sync(0xffffffffu, through, 1);
          const double mine = lane > 0 ? before : 0.0;
          above += __shfl_sync(0xffffffffu, mine, __ffs(reach) - 1);
        } else {
          if (some != 0) last = base - (31 - __clz(some));
          above += __shfl_sync(0xffffffffu, through, kWarp - 1);
        }
      }
      if (lane == 0) {
        // Rounding may leave the mass short of its own sum: then the lowest there is.
        const bool short_of_it = found < 0 && wanted >= 0;
        if (short_of_it) found = last, above = 0, wanted = 1e30;
        s.shared.word = static_cast<uint32_t>(found);
        s.shared.other = found >= 0 ? digits.count[found] : 0;
        s.shared.number = wanted < 0 ? wanted : wanted - above;
      }
    }
    __syncthreads();
    wanted = s.shared.number;
    if (wanted < 0 || static_cast<int>(s.shared.word) < 0) return limit;
    prefix = prefix << bits | s.shared.word;
    equals = s.shared.other;
    if (by_mass && level < 2) {
      // From here on relative to the largest that the prefix can hold.
      const int below = level == 0 ? 32 - kDigitBits : 32 - 2 * kDigitBits;
      const float largest = FromKey(prefix << below | ((1u << below) - 1));
      const float next = largest < reference ? largest : reference;  // false for a NaN
      wanted *= exp2(fmin((static_cast<double>(reference) - next) * s.scale, 1000.0));
      reference = next;
    }
  }
  // `equals` logits are exactly prefix; how many of them?
  double needed = wanted;
  if (by_mass) {
    const double weight = exp2((static_cast<double>(FromKey(prefix)) - reference) * s.scale);
    needed = weight > 0 ? ceil(wanted / weight * (1 - 1e-9)) : equals;
  }
  if (needed < 1) needed = 1;
  if (needed >= equals) return prefix == limit.key ? limit : Cut{prefix, INT32_MAX};
  return {prefix, NthEqual<kVectors>(s, prefix, limit, static_cast<uint32_t>(needed))};
}

// The cut of min-p: the least logit whose weight, the best's being 1, is large enough.
__device__ __forceinline__ Cut MinPCut(const Selection& s) {
  const auto enough = [&](float x) {
    return (static_cast<double>(x) - s.max) * s.scale >= s.plan.log2_min_p;
  };
  const double near = s.max + s.plan.log2_min_p / s.scale;
  if (!(near > -FLT_MAX)) return {kLowestKey, INT32_MAX};
  uint32_t key = KeyOf(static_cast<float>(near));
  for (int i = 0; i < 4 && enough(FromKey(key - 1)); ++i) --key;  // a rounding or two away
  for (int i = 0; i < 4 && !enough(FromKey(key)); ++i) ++key;
  return {max(key, kLowestKey), INT32_MAX};
}

// The races over what the cut keeps: the token and its logit, in the first warp.
template <bool kVectors>
__device__ __forceinline__ Best DrawKept(const Selection& s, const Cut& cut) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  auto keep = [&](int block, const float(&all)[kPerLane], float(&x)[kPerLane]) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      x[i] = Kept(cut, KeyOf(all[i]), IdAt(block, i)) ? all[i] : kNever;
    }
  };
  Best best = NoBest();
  float max = kNever, mass = 0.0f;  // of this lane's block
  ForBlocks<kVectors>(
      s, cut.key,
      [&](int block, int owner, const float(&all)[kPerLane]) {
        float x[kPerLane];
        keep(block, all, x);
        const float m = BlockMax(x);
        if (m == kNever) return;
        const float sum = BlockMass(x, m, s.scale);
        if (lane == owner) max = m, mass = sum;
      },
      [&](int block) {
        if (max > kNever) {
          const Best mine = {max, LeadOf(s.plan, block, mass), block, kNever};
          if (Better(mine, best, s.scale)) best = mine;
        }
        max = kNever, mass = 0.0f;
      });
  best = WarpBest(best, s.scale);
  __syncthreads();
  if (lane == 0) s.shared.best[warp] = best;
  __syncthreads();
  best = WarpBest(lane < kSampleWarps ? s.shared.best[lane] : NoBest(), s.scale);
  if (best.id < 0 || warp > 0) return best;
  float all[kPerLane], x[kPerLane];
  LoadBlock<kVectors>(s.job, s.logits, best.id, all);
  keep(best.id, all, x);
  WinnerInBlock(s.plan, best.id, x, &best);
  return best;
}

// Leaves the `top` best in the candidates and says what truncation keeps.
template <bool kVectors>
__device__ __forceinline__ Cut Select(const Selection& s, double mass, int* top_count) {
  const RowPlan& plan = s.plan;
  const Cut everything = {kLowestKey, INT32_MAX};
  const bool truncates = (plan.flags & kRowTruncates) != 0;
  const bool by_count = truncates && plan.top_k > 0, by_mass = truncates && plan.top_p < 1.0f;
  const int top = max(plan.num_top, 0);
  *top_count = 0;
  // With top-p alone: few first, then more.
  for (int look = 64; look <= 512; look *= 8) {
    int wanted = max(top, by_count ? plan.top_k : by_mass ? look : 0);
    if (wanted == 0) return everything;  // min-p alone
    if (wanted > kMaxCandidates / 2) break;
    const uint32_t bound = BlockBound(s, wanted);
    const int count = Gather<kVectors>(s, {bound, INT32_MAX});
    if (count > kMaxCandidates) break;
    *top_count = min(top, count);
    int keep = count;
    if (by_count) keep = min(plan.top_k, count);
    if (by_mass) {
      keep = ReachMass(s, keep, plan.top_p, by_count ? 0.0 : mass);
      if (keep > count && bound == kLowestKey) keep = count;  // a rounding short of everything
    }
    if (keep <= count) return by_count || by_mass ? CutAt(s.shared, max(keep, 1) - 1) : everything;
    if (by_count) break;
  }
  Cut cut = everything;
  if (by_count) cut = RadixCut<kVectors>(s, cut, false, static_cast<uint32_t>(plan.top_k), 0);
  if (by_mass) cut = RadixCut<kVectors>(s, cut, true, 0, plan.top_p);
  if (top > 0) {
    const Cut first = RadixCut<kVectors>(s, everything, false, static_cast<uint32_t>(top), 0);
    *top_count = min(Gather<kVectors>(s, first), top);
  }
  return cut;
}

}  // namespace weir::kernels::gpu
