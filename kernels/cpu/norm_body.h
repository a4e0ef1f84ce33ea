// The row loops of the norms. Sums run over the row in an order that depends on its length only.
#pragma once

#include "kernels/cpu/norm_rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_loops.h"

namespace weir::kernels {
namespace {

WEIR_INLINE float InverseRoot(float x) { return 1.0f / __builtin_sqrtf(x); }

WEIR_INLINE Vec GateValue(bool sigmoid, Vec x) {
  const Vec s = Sigmoid(x);
  return sigmoid ? s : x * s;
}

WEIR_INLINE void GatedRmsGroup(const GatedRmsRows& a, const float* x, const float* gate,
                               const float* weight, float* out) {
  const bool first = gate && a.gate_first && a.normalize;
  if (first) {
    ForVectors(a.group, [&](int64_t i, int n) {
      const Vec g = GateValue(a.sigmoid, LoadCount(gate + i, n));
      StoreCount(out + i, LoadCount(x + i, n) * g, n);
    });
    x = out;
  }
  float inv = 1.0f;
  if (a.normalize) {
    const float sum = SumVectors(a.group, [&](int64_t i, int n) {
      const Vec v = LoadCount(x + i, n);
      return v * v;
    });
    inv = InverseRoot(sum / static_cast<float>(a.group) + a.eps);
  }
  if (gate && !first) {
    ForVectors(a.group, [&](int64_t i, int n) {
      Vec y = LoadCount(x + i, n) * inv;
      if (a.normalize && weight) y *= LoadCount(weight + i, n);
      StoreCount(out + i, y * GateValue(a.sigmoid, LoadCount(gate + i, n)), n);
    });
  } else {
    ForVectors(a.group, [&](int64_t i, int n) {
      Vec y = LoadCount(x + i, n) * inv;
      if (a.normalize && weight) y *= LoadCount(weight + i, n);
      StoreCount(out + i, y, n);
    });
  }
}

void GatedRms(const GatedRmsRows& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < a.n; c += a.group) {
      GatedRmsGroup(a, a.x + r * a.x_stride + c, a.gate ? a.gate + r * a.gate_stride + c : nullptr,
                    a.weight ? a.weight + (a.weight_per_group ? 0 : c) : nullptr,
                    a.out + r * a.out_stride + c);
    }
  }
}

void LayerNormRowsOf(const LayerNormRows& a, int64_t begin, int64_t end) {
  const float n_inverse = 1.0f / static_cast<float>(a.n);
  for (int64_t r = begin; r < end; ++r) {
    const float* x = a.x + r * a.x_stride;
    float* out = a.out + r * a.out_stride;
    const float mean =
        SumVectors(a.n, [&](int64_t i, int n) { return LoadCount(x + i, n); }) * n_inverse;
    const float var = SumVectors(a.n, [&](int64_t i, int n) {
      const Vec d = KeepFirst(LoadCount(x + i, n) - mean, n);
      return d * d;
    });
    const float inv = InverseRoot(var * n_inverse + a.eps);
    ForVectors(a.n, [&](int64_t i, int n) {
      Vec y = (LoadCount(x + i, n) - mean) * inv;
      if (a.weight) y *= LoadCount(a.weight + i, n);
      if (a.bias) y += LoadCount(a.bias + i, n);
      StoreCount(out + i, y, n);
    });
  }
}

void AddRms(const AddRmsRows& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    float* h = a.h + r * a.h_stride;
    float* out = a.out + r * a.out_stride;
    float sum;
    if (a.delta) {
      const float* delta = a.delta + r * a.delta_stride;
      sum = SumVectors(a.n, [&](int64_t i, int n) {
        const Vec v = Fma(LoadCount(delta + i, n), Set1(a.scale), LoadCount(h + i, n));
        StoreCount(h + i, v, n);
        return v * v;
      });
    } else {
      sum = SumVectors(a.n, [&](int64_t i, int n) {
        const Vec v = LoadCount(h + i, n);
        return v * v;
      });
    }
    const float inv = InverseRoot(sum / static_cast<float>(a.n) + a.eps);
    ForVectors(a.n, [&](int64_t i, int n) {
      StoreCount(out + i, LoadCount(h + i, n) * inv * LoadCount(a.weight + i, n), n);
    });
  }
}

void L2(const L2Rows& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < a.n; c += a.group) {
      const float* x = a.x + r * a.x_stride + c;
      float* out = a.out + r * a.out_stride + c;
      const float sum = SumVectors(a.group, [&](int64_t i, int n) {
        const Vec v = LoadCount(x + i, n);
        return v * v;
      });
      const float inv = InverseRoot(sum + a.eps) * a.scale;
      ForVectors(a.group,
                 [&](int64_t i, int n) { StoreCount(out + i, LoadCount(x + i, n) * inv, n); });
    }
  }
}

constexpr NormTable kNormOfThisFile = {GatedRms, LayerNormRowsOf, AddRms, L2};

}  // namespace
}  // namespace weir::kernels
