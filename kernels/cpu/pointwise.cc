#include "kernels/pointwise.h"

#include <algorithm>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/pointwise_rows.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {
namespace {

static_assert(static_cast<int>(RowActivation::kNone) == static_cast<int>(Activation::kNone) &&
              static_cast<int>(RowActivation::kSilu) == static_cast<int>(Activation::kSilu) &&
              static_cast<int>(RowActivation::kGelu) == static_cast<int>(Activation::kGelu) &&
              static_cast<int>(RowActivation::kGeluTanh) ==
                  static_cast<int>(Activation::kGeluTanh) &&
              static_cast<int>(RowActivation::kRelu) == static_cast<int>(Activation::kRelu) &&
              static_cast<int>(RowActivation::kRelu2) == static_cast<int>(Activation::kRelu2) &&
              static_cast<int>(RowActivation::kSigmoid) == static_cast<int>(Activation::kSigmoid));

RowActivation RowOf(Activation activation) { return static_cast<RowActivation>(activation); }

const PointwiseTable& Table() {
#if defined(__x86_64__)
  const SimdLevel level = CurrentSimdLevel();
  if (level >= SimdLevel::kAvx512) return kPointwiseAvx512;
  if (level >= SimdLevel::kAvx2) return kPointwiseAvx2;
#endif
  return kPointwiseBaseline;
}

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

}  // namespace

void GateMultiply(TensorView gate, TensorView up, Activation activation, TensorView out,
                  Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::GateMultiply(gate, up, activation, out, stream);
  }
  CheckSame(gate, up);
  CheckSame(gate, out);
  const int64_t n = Width(gate);
  const PointwiseTable& table = Table();
  ForRows(gate.size(0), n, stream, [&](int64_t r) {
    table.gate_multiply(RowOf(activation), gate.row<float>(r), up.row<float>(r), out.row<float>(r),
                        n);
  });
}

void Activate(TensorView x, Activation activation, TensorView out, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::Activate(x, activation, out, stream);
  }
  CheckSame(x, out);
  const int64_t n = Width(x);
  const PointwiseTable& table = Table();
  ForRows(x.size(0), n, stream, [&](int64_t r) {
    table.activate(RowOf(activation), x.row<float>(r), out.row<float>(r), n);
  });
}

void Multiply(TensorView a, TensorView b, TensorView out, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::Multiply(a, b, out, stream);
  }
  CheckSame(a, b);
  CheckSame(a, out);
  const int64_t n = Width(a);
  const PointwiseTable& table = Table();
  ForRows(a.size(0), n, stream, [&](int64_t r) {
    table.multiply(a.row<float>(r), b.row<float>(r), out.row<float>(r), n);
  });
}

void AddScaled(TensorView h, TensorView delta, float scale, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::AddScaled(h, delta, scale, stream);
  }
  CheckSame(h, delta);
  const int64_t n = Width(h);
  const PointwiseTable& table = Table();
  ForRows(h.size(0), n, stream,
          [&](int64_t r) { table.add_scaled(h.row<float>(r), delta.row<float>(r), scale, n); });
}

void ScatterAddScaled(TensorView h, TensorView delta, TensorView rows, TensorView weight,
                      Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda)
      return gpu::ScatterAddScaled(h, delta, rows, weight, stream);
  }
  WEIR_CHECK(rows.size(0) == delta.size(0) && weight.size(0) == delta.size(0) &&
             (delta.size(0) == 0 || Width(h) == Width(delta)))
      << h.ToString() << " " << delta.ToString() << " " << rows.ToString();
  const int64_t n = Width(delta);
  const PointwiseTable& table = Table();
  ForRows(delta.size(0), n, stream, [&](int64_t i) {
    const int32_t target = rows.data<int32_t>()[i];
    WEIR_CHECK(target >= 0 && target < h.size(0)) << "row " << target << " of " << h.ToString();
    table.add_scaled(h.row<float>(target), delta.row<float>(i), weight.data<float>()[i], n);
  });
}

void GatherRows(TensorView x, TensorView rows, TensorView out, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::GatherRows(x, rows, out, stream);
  }
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
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::EmbeddingLookup(table, ids, scale, out, stream);
  }
  WEIR_CHECK(table.rank() == 2 && out.rank() == 2 && ids.size(0) == out.size(0) &&
             table.size(1) == out.size(1))
      << table.ToString() << " " << ids.ToString() << " " << out.ToString();
  WEIR_CHECK(table.dtype() == DType::kF32 || table.dtype() == DType::kBF16) << table.ToString();
  const int64_t n = out.size(1);
  const PointwiseTable& rows = Table();
  ForRows(out.size(0), n, stream, [&](int64_t i) {
    const int32_t id = ids.data<int32_t>()[i];
    WEIR_CHECK(id < table.size(0)) << "id " << id << " of " << table.ToString();
    float* y = out.row<float>(i);
    if (id < 0) {
      std::fill_n(y, n, 0.0f);
    } else if (table.dtype() == DType::kF32) {
      rows.scale(table.row<float>(id), scale, y, n);
    } else {
      rows.scale_bf16(reinterpret_cast<const uint16_t*>(table.row<BFloat16>(id)), scale, y, n);
    }
  });
}

void LogDecay(const LogDecayArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::LogDecay(args, stream);
  }
  CheckSame(args.x, args.out);
  const int64_t n = Width(args.x);
  WEIR_CHECK(!args.bias.defined() || n == 0 || args.bias.num_elements() == n)
      << args.bias.ToString() << " for " << args.x.ToString();
  LogDecayRow common;
  common.form = LogDecayRow::Form::kLogSigmoid;
  if (args.form == LogDecayArgs::Form::kSoftplus) common.form = LogDecayRow::Form::kSoftplus;
  if (args.form == LogDecayArgs::Form::kBoundedSigmoid) {
    common.form = LogDecayRow::Form::kBoundedSigmoid;
  }
  if (args.form != LogDecayArgs::Form::kLogSigmoid && n > 0) {
    WEIR_CHECK(args.exp_a.defined() && args.exp_a.size(0) > 0 && n % args.exp_a.size(0) == 0)
        << args.exp_a.ToString() << " for " << args.x.ToString();
    common.exp_a = args.exp_a.data<float>();
    common.per_head = n / args.exp_a.size(0);
  }
  common.bias = args.bias.defined() ? args.bias.data<float>() : nullptr;
  common.n = n;
  common.normalizer = args.normalizer;
  common.clamp_min = args.clamp_min;
  common.has_clamp = args.has_clamp;
  common.lower_bound = args.lower_bound;
  const PointwiseTable& table = Table();
  ForRows(args.x.size(0), n, stream, [&](int64_t r) {
    LogDecayRow row = common;
    row.x = args.x.row<float>(r);
    row.out = args.out.row<float>(r);
    table.log_decay(row);
  });
}

void Beta(TensorView x, float scale, TensorView out, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::Beta(x, scale, out, stream);
  }
  CheckSame(x, out);
  const int64_t n = Width(x);
  const PointwiseTable& table = Table();
  ForRows(x.size(0), n, stream,
          [&](int64_t r) { table.scaled_sigmoid(x.row<float>(r), scale, out.row<float>(r), n); });
}

void Mamba2Dt(const Mamba2DtArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::Mamba2Dt(args, stream);
  }
  const int64_t heads = args.x.size(1);
  WEIR_CHECK(args.xs.rank() == 3 && args.xs.size(0) == args.x.size(0) && args.xs.size(1) == heads)
      << args.xs.ToString() << " for " << args.x.ToString();
  WEIR_CHECK(args.bias.num_elements() == heads && args.exp_a.num_elements() == heads)
      << args.bias.ToString() << " " << args.exp_a.ToString() << " for " << heads << " heads";
  CheckSame(args.x, args.g);
  CheckSame(args.xs, args.v);
  const int64_t P = args.xs.size(2);
  const float *bias = args.bias.data<float>(), *exp_a = args.exp_a.data<float>();
  const PointwiseTable& table = Table();
  ForRows(args.x.size(0), heads * P, stream, [&](int64_t r) {
    const float* xs = args.xs.row<float>(r);
    float *g = args.g.row<float>(r), *v = args.v.row<float>(r);
    table.step_size(args.x.row<float>(r), bias, args.lo, args.hi, g, heads);
    for (int64_t h = 0; h < heads; ++h) {
      table.scale(xs + h * P, g[h], v + h * P, P);
      g[h] *= -exp_a[h];
    }
  });
}

void AddSkip(TensorView xs, TensorView d, TensorView out, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::AddSkip(xs, d, out, stream);
  }
  CheckSame(xs, out);
  WEIR_CHECK(xs.rank() == 3 && d.num_elements() == xs.size(1))
      << d.ToString() << " for " << xs.ToString();
  const int64_t heads = xs.size(1), P = xs.size(2);
  const PointwiseTable& table = Table();
  ForRows(xs.size(0), heads * P, stream, [&](int64_t r) {
    for (int64_t h = 0; h < heads; ++h) {
      table.add_scaled(out.row<float>(r) + h * P, xs.row<float>(r) + h * P, d.data<float>()[h], P);
    }
  });
}

void EluPlusOne(TensorView x, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::EluPlusOne(x, stream);
  }
  const int64_t n = Width(x);
  const PointwiseTable& table = Table();
  ForRows(x.size(0), n, stream, [&](int64_t r) { table.elu_plus_one(x.row<float>(r), n); });
}

void DivideBySum(TensorView x, float eps, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::DivideBySum(x, eps, stream);
  }
  const int64_t K = x.size(x.rank() - 1), n = Width(x);
  const PointwiseTable& table = Table();
  ForRows(x.size(0), n, stream, [&](int64_t r) {
    float* row = x.row<float>(r);
    for (int64_t i = 0; i < n; i += K) table.divide_by_sum(row + i, eps, K);
  });
}

}  // namespace weir::kernels
