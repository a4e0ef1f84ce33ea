#include "kernels/pointwise.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/thread_pool.h"

namespace weir::kernels {
namespace {

// Fewer elements than this are not worth a second thread.
constexpr int64_t kElementsPerRange = 16384;

void CheckSame(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.rank() == b.rank() && a.num_elements() == b.num_elements() && a.size(0) == b.size(0))
      << a.ToString() << " against " << b.ToString();
}

// Elements of one entry of dimension 0.
int64_t Width(const TensorView& x) { return x.size(0) == 0 ? 0 : x.num_elements() / x.size(0); }

template <typename Fn>
void ForRows(int64_t rows, int64_t width, Stream stream, const Fn& fn) {
  const int64_t least = std::max<int64_t>(1, kElementsPerRange / std::max<int64_t>(width, 1));
  stream.pool->ParallelRanges(rows, least, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r);
  });
}

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float Softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

float Act(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return 0.5f * x * std::erfc(-x * 0.70710678f);
    case Activation::kGeluTanh:
      return x * Sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    case Activation::kRelu:
      return std::max(x, 0.0f);
    case Activation::kRelu2:
      return std::max(x, 0.0f) * std::max(x, 0.0f);
    case Activation::kSigmoid:
      return Sigmoid(x);
  }
  return x;
}

}  // namespace

void GateMultiply(TensorView gate, TensorView up, Activation activation, TensorView out,
                  Stream stream) {
  CheckSame(gate, up);
  CheckSame(gate, out);
  const int64_t n = Width(gate);
  ForRows(gate.size(0), n, stream, [&](int64_t r) {
    const float *g = gate.row<float>(r), *u = up.row<float>(r);
    float* y = out.row<float>(r);
    for (int64_t i = 0; i < n; ++i) y[i] = Act(activation, g[i]) * u[i];
  });
}

void Activate(TensorView x, Activation activation, TensorView out, Stream stream) {
  CheckSame(x, out);
  const int64_t n = Width(x);
  ForRows(x.size(0), n, stream, [&](int64_t r) {
    const float* in = x.row<float>(r);
    float* y = out.row<float>(r);
    for (int64_t i = 0; i < n; ++i) y[i] = Act(activation, in[i]);
  });
}

void Multiply(TensorView a, TensorView b, TensorView out, Stream stream) {
  CheckSame(a, b);
  CheckSame(a, out);
  const int64_t n = Width(a);
  ForRows(a.size(0), n, stream, [&](int64_t r) {
    const float *x = a.row<float>(r), *z = b.row<float>(r);
    float* y = out.row<float>(r);
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] * z[i];
  });
}

void AddScaled(TensorView h, TensorView delta, float scale, Stream stream) {
  CheckSame(h, delta);
  const int64_t n = Width(h);
  ForRows(h.size(0), n, stream, [&](int64_t r) {
    float* y = h.row<float>(r);
    const float* x = delta.row<float>(r);
    for (int64_t i = 0; i < n; ++i) y[i] += scale * x[i];
  });
}

void ScatterAddScaled(TensorView h, TensorView delta, TensorView rows, TensorView weight,
                      Stream stream) {
  WEIR_CHECK(rows.size(0) == delta.size(0) && weight.size(0) == delta.size(0) &&
             (delta.size(0) == 0 || Width(h) == Width(delta)))
      << h.ToString() << " " << delta.ToString() << " " << rows.ToString();
  const int64_t n = Width(delta);
  ForRows(delta.size(0), n, stream, [&](int64_t i) {
    const int32_t target = rows.data<int32_t>()[i];
    WEIR_CHECK(target >= 0 && target < h.size(0)) << "row " << target << " of " << h.ToString();
    const float w = weight.data<float>()[i];
    float* y = h.row<float>(target);
    const float* x = delta.row<float>(i);
    for (int64_t c = 0; c < n; ++c) y[c] += w * x[c];
  });
}

void GatherRows(TensorView x, TensorView rows, TensorView out, Stream stream) {
  WEIR_CHECK(rows.size(0) == out.size(0) && (out.size(0) == 0 || Width(x) == Width(out)))
      << x.ToString() << " " << rows.ToString() << " " << out.ToString();
  const int64_t n = Width(out);
  ForRows(out.size(0), n, stream, [&](int64_t i) {
    const int32_t source = rows.data<int32_t>()[i];
    WEIR_CHECK(source >= 0 && source < x.size(0)) << "row " << source << " of " << x.ToString();
    std::copy_n(x.row<float>(source), n, out.row<float>(i));
  });
}

void EmbeddingLookup(TensorView table, TensorView ids, float scale, TensorView out, Stream stream) {
  WEIR_CHECK(table.rank() == 2 && out.rank() == 2 && ids.size(0) == out.size(0) &&
             table.size(1) == out.size(1))
      << table.ToString() << " " << ids.ToString() << " " << out.ToString();
  WEIR_CHECK(table.dtype() == DType::kF32 || table.dtype() == DType::kBF16) << table.ToString();
  const int64_t n = out.size(1);
  ForRows(out.size(0), n, stream, [&](int64_t i) {
    const int32_t id = ids.data<int32_t>()[i];
    WEIR_CHECK(id >= 0 && id < table.size(0)) << "id " << id << " of " << table.ToString();
    float* y = out.row<float>(i);
    if (table.dtype() == DType::kF32) {
      const float* x = table.row<float>(id);
      for (int64_t c = 0; c < n; ++c) y[c] = x[c] * scale;
    } else {
      const BFloat16* x = table.row<BFloat16>(id);
      for (int64_t c = 0; c < n; ++c) y[c] = ToFloat(x[c]) * scale;
    }
  });
}

void LogDecay(const LogDecayArgs& args, Stream stream) {
  CheckSame(args.x, args.out);
  const int64_t n = Width(args.x);
  const float* bias = args.bias.defined() ? args.bias.data<float>() : nullptr;
  const bool per_head = args.form != LogDecayArgs::Form::kLogSigmoid;
  const float* exp_a = per_head ? args.exp_a.data<float>() : nullptr;
  WEIR_CHECK(!per_head || n == 0 || (args.exp_a.size(0) > 0 && n % args.exp_a.size(0) == 0))
      << args.exp_a.ToString() << " for " << args.x.ToString();
  const int64_t per = per_head && n > 0 ? n / args.exp_a.size(0) : 1;
  ForRows(args.x.size(0), n, stream, [&](int64_t r) {
    const float* in = args.x.row<float>(r);
    float* y = args.out.row<float>(r);
    for (int64_t i = 0; i < n; ++i) {
      const float x = in[i] + (bias ? bias[i] : 0.0f);
      switch (args.form) {
        case LogDecayArgs::Form::kSoftplus:
          y[i] = -exp_a[i / per] * Softplus(x);
          break;
        case LogDecayArgs::Form::kLogSigmoid:
          y[i] = -Softplus(-x) / args.normalizer;
          if (args.has_clamp) y[i] = std::max(y[i], args.clamp_min);
          break;
        case LogDecayArgs::Form::kBoundedSigmoid:
          y[i] = args.lower_bound * Sigmoid(exp_a[i / per] * x);
          break;
      }
    }
  });
}

void Beta(TensorView x, float scale, TensorView out, Stream stream) {
  CheckSame(x, out);
  const int64_t n = Width(x);
  ForRows(x.size(0), n, stream, [&](int64_t r) {
    const float* in = x.row<float>(r);
    float* y = out.row<float>(r);
    for (int64_t i = 0; i < n; ++i) y[i] = scale * Sigmoid(in[i]);
  });
}

void Mamba2Dt(const Mamba2DtArgs& args, Stream stream) {
  const int64_t heads = args.x.size(1), P = args.xs.size(2);
  WEIR_CHECK(args.xs.rank() == 3 && args.xs.size(0) == args.x.size(0) && args.xs.size(1) == heads)
      << args.xs.ToString() << " for " << args.x.ToString();
  CheckSame(args.x, args.g);
  CheckSame(args.xs, args.v);
  const float *bias = args.bias.data<float>(), *exp_a = args.exp_a.data<float>();
  ForRows(args.x.size(0), heads * P, stream, [&](int64_t r) {
    const float *x = args.x.row<float>(r), *xs = args.xs.row<float>(r);
    float *g = args.g.row<float>(r), *v = args.v.row<float>(r);
    for (int64_t h = 0; h < heads; ++h) {
      float dt = std::max(Softplus(x[h] + bias[h]), args.lo);
      if (args.hi > args.lo) dt = std::min(dt, args.hi);
      g[h] = -exp_a[h] * dt;
      for (int64_t p = 0; p < P; ++p) v[h * P + p] = dt * xs[h * P + p];
    }
  });
}

void AddSkip(TensorView xs, TensorView d, TensorView out, Stream stream) {
  CheckSame(xs, out);
  const int64_t heads = xs.size(1), P = xs.size(2);
  WEIR_CHECK(d.size(0) == heads) << d.ToString() << " for " << xs.ToString();
  ForRows(xs.size(0), heads * P, stream, [&](int64_t r) {
    const float* x = xs.row<float>(r);
    float* y = out.row<float>(r);
    for (int64_t i = 0; i < heads * P; ++i) y[i] += d.data<float>()[i / P] * x[i];
  });
}

void EluPlusOne(TensorView x, Stream stream) {
  const int64_t n = Width(x);
  ForRows(x.size(0), n, stream, [&](int64_t r) {
    float* y = x.row<float>(r);
    for (int64_t i = 0; i < n; ++i) y[i] = y[i] > 0.0f ? y[i] + 1.0f : std::exp(y[i]);
  });
}

void DivideBySum(TensorView x, float eps, Stream stream) {
  const int64_t K = x.size(x.rank() - 1), n = Width(x);
  ForRows(x.size(0), n, stream, [&](int64_t r) {
    float* row = x.row<float>(r);
    for (int64_t i = 0; i < n; i += K) {
      float sum = 0.0f;
      for (int64_t c = 0; c < K; ++c) sum += row[i + c];
      for (int64_t c = 0; c < K; ++c) row[i + c] /= sum + eps;
    }
  });
}

}  // namespace weir::kernels
