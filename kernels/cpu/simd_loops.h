// Loops over a row in vectors. See simd.h.
#pragma once

#include "kernels/cpu/simd.h"

namespace weir::kernels {
namespace {

// Calls fn(i, count) for [0, n) in vectors: count = kLanes, at the end what is left.
template <typename Fn>
WEIR_INLINE void ForVectors(int64_t n, const Fn& fn) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) fn(i, kLanes);
  if (i < n) fn(i, static_cast<int>(n - i));
}

// Sum of fn(i, count), lanes beyond count being zero, in four chains.
template <typename Fn>
WEIR_INLINE float SumVectors(int64_t n, const Fn& fn) {
  Vec sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) sum[c] += fn(i + c * kLanes, kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) sum[0] += fn(i, kLanes);
  if (i < n) sum[0] += fn(i, static_cast<int>(n - i));
  return Sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

WEIR_INLINE Vec LoadCount(const float* p, int count) {
  return count == kLanes ? Load(p) : LoadPartial(p, count);
}
WEIR_INLINE void StoreCount(float* p, Vec v, int count) {
  if (count == kLanes) {
    Store(p, v);
  } else {
    StorePartial(p, v, count);
  }
}

}  // namespace
}  // namespace weir::kernels
