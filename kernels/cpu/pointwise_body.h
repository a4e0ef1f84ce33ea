// The loops of the elementwise ops over one row.
#pragma once

#include "kernels/cpu/pointwise_rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_loops.h"

namespace weir::kernels {
namespace {

// Calls fn with the activation as a function of a vector: the switch stays outside the loop.
template <typename Fn>
WEIR_INLINE void WithActivation(RowActivation act, const Fn& fn) {
  switch (act) {
    case RowActivation::kNone:
      return fn([](Vec x) { return x; });
    case RowActivation::kSilu:
      return fn([](Vec x) { return Silu(x); });
    case RowActivation::kGelu:
      return fn([](Vec x) { return Gelu(x); });
    case RowActivation::kGeluTanh:
      return fn([](Vec x) { return GeluTanh(x); });
    case RowActivation::kRelu:
      return fn([](Vec x) { return Max(Vec{}, x); });
    case RowActivation::kRelu2:
      return fn([](Vec x) { return Max(Vec{}, x) * Max(Vec{}, x); });
    case RowActivation::kSigmoid:
      return fn([](Vec x) { return Sigmoid(x); });
  }
}

void ActivateRow(RowActivation act, const float* x, float* out, int64_t n) {
  WithActivation(act, [&](auto activation) {
    ForVectors(n, [&](int64_t i, int count) {
      StoreCount(out + i, activation(LoadCount(x + i, count)), count);
    });
  });
}

void GateMultiplyRow(RowActivation act, const float* gate, const float* up, float* out, int64_t n) {
  WithActivation(act, [&](auto activation) {
    ForVectors(n, [&](int64_t i, int count) {
      StoreCount(out + i, activation(LoadCount(gate + i, count)) * LoadCount(up + i, count), count);
    });
  });
}

void MultiplyRow(const float* a, const float* b, float* out, int64_t n) {
  ForVectors(n, [&](int64_t i, int count) {
    StoreCount(out + i, LoadCount(a + i, count) * LoadCount(b + i, count), count);
  });
}

void AddScaledRow(float* h, const float* delta, float scale, int64_t n) {
  ForVectors(n, [&](int64_t i, int count) {
    StoreCount(h + i, Fma(LoadCount(delta + i, count), Set1(scale), LoadCount(h + i, count)),
               count);
  });
}

void ScaleRow(const float* x, float scale, float* out, int64_t n) {
  ForVectors(n, [&](int64_t i, int count) {
    StoreCount(out + i, LoadCount(x + i, count) * scale, count);
  });
}

void ScaleBf16Row(const uint16_t* x, float scale, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    out[i] = value * scale;
  }
}

// The log decay of elements [i, i + count) whose head's exp_a is `exp_a`.
WEIR_INLINE Vec LogDecayOf(const LogDecayRow& row, int64_t i, int count, Vec exp_a) {
  Vec x = LoadCount(row.x + i, count);
  if (row.bias) x += LoadCount(row.bias + i, count);
  switch (row.form) {
    case LogDecayRow::Form::kSoftplus:
      return -exp_a * Softplus(x);
    case LogDecayRow::Form::kLogSigmoid: {
      const Vec g = -Softplus(-x) / row.normalizer;
      return row.has_clamp ? Max(Set1(row.clamp_min), g) : g;
    }
    case LogDecayRow::Form::kBoundedSigmoid:
      return Sigmoid(exp_a * x) * row.lower_bound;
  }
  return x;
}

void LogDecayOfRow(const LogDecayRow& row) {
  if (row.per_head == 1 || !row.exp_a) {
    ForVectors(row.n, [&](int64_t i, int count) {
      const Vec exp_a = row.exp_a ? LoadCount(row.exp_a + i, count) : Vec{};
      StoreCount(row.out + i, LogDecayOf(row, i, count, exp_a), count);
    });
    return;
  }
  for (int64_t first = 0; first < row.n; first += row.per_head) {
    const Vec exp_a = Set1(row.exp_a[first / row.per_head]);
    ForVectors(row.per_head, [&](int64_t i, int count) {
      StoreCount(row.out + first + i, LogDecayOf(row, first + i, count, exp_a), count);
    });
  }
}

void ScaledSigmoidRow(const float* x, float scale, float* out, int64_t n) {
  ForVectors(n, [&](int64_t i, int count) {
    StoreCount(out + i, Sigmoid(LoadCount(x + i, count)) * scale, count);
  });
}

void StepSizeRow(const float* x, const float* bias, float lo, float hi, float* out, int64_t n) {
  ForVectors(n, [&](int64_t i, int count) {
    Vec dt = Max(Set1(lo), Softplus(LoadCount(x + i, count) + LoadCount(bias + i, count)));
    if (hi > lo) dt = Min(Set1(hi), dt);
    StoreCount(out + i, dt, count);
  });
}

void EluPlusOneRow(float* x, int64_t n) {
  ForVectors(n, [&](int64_t i, int count) {
    const Vec v = LoadCount(x + i, count);
    StoreCount(x + i, v > 0.0f ? v + 1.0f : Exp(v), count);
  });
}

void DivideBySumRow(float* x, float eps, int64_t n) {
  const float sum = SumVectors(n, [&](int64_t i, int count) { return LoadCount(x + i, count); });
  const float divisor = sum + eps;
  ForVectors(n, [&](int64_t i, int count) {
    StoreCount(x + i, LoadCount(x + i, count) / divisor, count);
  });
}

constexpr PointwiseTable kPointwiseOfThisFile = {
    ActivateRow,   GateMultiplyRow,  MultiplyRow, AddScaledRow,  ScaleRow,      ScaleBf16Row,
    LogDecayOfRow, ScaledSigmoidRow, StepSizeRow, EluPlusOneRow, DivideBySumRow};

}  // namespace
}  // namespace weir::kernels
