// The step form for runs of a few tokens: one pass over the state, which is memory-bound.
//
// Column j of S is row j of the state as it lies in memory, and columns do not depend on each
// other: a tile of rows stays in the first-level cache while all tokens of the run pass over it.
// Both products with a row are taken before it changes:
//   S' = D S + k u^T, u = beta (v - (D k)^T S)     S'^T q = (D q)^T S + u (k^T q)
#pragma once

#include "kernels/cpu/recurrence_job.h"
#include "kernels/cpu/simd.h"

namespace weir::kernels {
namespace {

constexpr int kTileRows = 4;
// While rows are written, rows this many floats further are asked for: the read-modify-write of
// short rows keeps the hardware from running ahead by itself. Heads lie one behind the other.
constexpr int64_t kAhead = 1024;

WEIR_INLINE int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Per token [width] each, width = dim_k rounded up to vectors, filled up with zeros.
struct StepOperands {
  int64_t width;
  float *k, *decay, *decayed_k, *decayed_q;
  float kq[kStepTokens];  // scale k^T q
};

StepOperands PrepareStep(const RecurrenceJob& job) {
  StepOperands ops;
  ops.width = RoundUp(job.dim_k, kLanes);
  const int64_t size = kStepTokens * ops.width;
  ops.k = job.scratch;
  ops.decay = ops.k + size;
  ops.decayed_k = ops.decay + size;
  ops.decayed_q = ops.decayed_k + size;
  for (int64_t t = 0; t < job.tokens; ++t) {
    const float* q = job.q + t * job.q_stride;
    const float* k = job.k + t * job.k_stride;
    const float* g = job.g ? job.g + t * job.g_stride : nullptr;
    Vec decay = Set1(1.0f), kq = {};
    if (g && !job.vector_decay) decay = Exp(Set1(*g));
    for (int64_t c = 0; c < ops.width; c += kLanes) {
      const int n = job.dim_k - c < kLanes ? static_cast<int>(job.dim_k - c) : kLanes;
      const Vec kv = LoadPartial(k + c, n), qv = LoadPartial(q + c, n) * job.scale;
      if (g && job.vector_decay) decay = Exp(LoadPartial(g + c, n));
      const int64_t at = t * ops.width + c;
      Store(ops.k + at, kv);
      Store(ops.decay + at, decay);
      Store(ops.decayed_k + at, decay * kv);
      Store(ops.decayed_q + at, decay * qv);
      kq = Fma(kv, qv, kq);
    }
    ops.kq[t] = Sum(kq);
  }
  return ops;
}

// Token t passes over `kRows` rows of the state. REQUIRES: dim_k a multiple of kLanes, or `tail` of
// it lanes in the last vector.
template <int kRows>
WEIR_INLINE void StepRows(const RecurrenceJob& job, const StepOperands& ops, int64_t t, int64_t row,
                          bool fresh) {
  const int64_t K = job.dim_k, full = K / kLanes * kLanes;
  const int tail = static_cast<int>(K - full);
  float* s = job.state + row * K;
  const float* dk = ops.decayed_k + t * ops.width;
  const float* dq = ops.decayed_q + t * ops.width;
  Vec seen[kRows] = {}, read[kRows] = {};
  if (!fresh) {
    for (int64_t c = 0; c < full; c += kLanes) {
      const Vec kv = Load(dk + c), qv = Load(dq + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec x = Load(s + r * K + c);
        seen[r] = Fma(x, kv, seen[r]);
        read[r] = Fma(x, qv, read[r]);
      }
    }
    if (tail > 0) {
      const Vec kv = Load(dk + full), qv = Load(dq + full);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec x = LoadPartial(s + r * K + full, tail);
        seen[r] = Fma(x, kv, seen[r]);
        read[r] = Fma(x, qv, read[r]);
      }
    }
  }
  const float* v = job.v + t * job.v_stride + row;
  float* out = job.out + t * job.out_stride + row;
  Vec write[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    float u = v[r];
    if (job.delta) u = job.beta[t * job.beta_stride] * (v[r] - Sum(seen[r]));
    out[r] = Sum(read[r]) + u * ops.kq[t];
    write[r] = Set1(u);
  }
  const float* k = ops.k + t * ops.width;
  const float* decay = ops.decay + t * ops.width;
  for (int64_t c = 0; c < full; c += kLanes) {
    const Vec kv = Load(k + c), dv = Load(decay + c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec old = fresh ? Vec{} : Load(s + r * K + c) * dv;
      __builtin_prefetch(s + r * K + c + kAhead);
      Store(s + r * K + c, Fma(kv, write[r], old));
    }
  }
  if (tail > 0) {
    const Vec kv = Load(k + full), dv = Load(decay + full);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec old = fresh ? Vec{} : LoadPartial(s + r * K + full, tail) * dv;
      StorePartial(s + r * K + full, Fma(kv, write[r], old), tail);
    }
  }
}

void RunStep(const RecurrenceJob& job) {
  const StepOperands ops = PrepareStep(job);
  int64_t row = 0;
  for (; row + kTileRows <= job.dim_v; row += kTileRows) {
    for (int64_t t = 0; t < job.tokens; ++t) {
      StepRows<kTileRows>(job, ops, t, row, job.fresh && t == 0);
    }
  }
  for (; row < job.dim_v; ++row) {
    for (int64_t t = 0; t < job.tokens; ++t) StepRows<1>(job, ops, t, row, job.fresh && t == 0);
  }
}

}  // namespace
}  // namespace weir::kernels
