#include "kernels/norm.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/thread_pool.h"

namespace weir::kernels {
namespace {

// Fewer elements than this are not worth a second thread.
constexpr int64_t kElementsPerRange = 16384;

int64_t RowsPerRange(int64_t n) {
  return std::max<int64_t>(1, kElementsPerRange / std::max<int64_t>(n, 1));
}

void CheckSame(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.rank() == 2 && b.rank() == 2 && a.size(0) == b.size(0) && a.size(1) == b.size(1))
      << a.ToString() << " against " << b.ToString();
}

int64_t GroupOf(int64_t group, int64_t n) {
  if (group == 0) return n;
  WEIR_CHECK(group > 0 && n % group == 0) << "group " << group << " of " << n;
  return group;
}

float Gate(Activation activation, float x) {
  const float s = 1.0f / (1.0f + std::exp(-x));
  return activation == Activation::kSilu ? x * s : s;
}

float SumOfSquares(const float* x, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

}  // namespace

void RmsNorm(const RmsNormArgs& args, Stream stream) {
  GatedRmsNormArgs gated;
  gated.x = args.x;
  gated.weight = args.weight;
  gated.group = args.group;
  gated.eps = args.eps;
  gated.out = args.out;
  GatedRmsNorm(gated, stream);
}

void LayerNorm(const LayerNormArgs& args, Stream stream) {
  CheckSame(args.x, args.out);
  const int64_t n = args.x.size(1);
  const float* w = args.weight.defined() ? args.weight.data<float>() : nullptr;
  const float* b = args.bias.defined() ? args.bias.data<float>() : nullptr;
  stream.pool->ParallelRanges(args.x.size(0), RowsPerRange(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = args.x.row<float>(r);
      float* out = args.out.row<float>(r);
      float mean = 0.0f, var = 0.0f;
      for (int64_t i = 0; i < n; ++i) mean += x[i];
      mean /= static_cast<float>(n);
      for (int64_t i = 0; i < n; ++i) var += (x[i] - mean) * (x[i] - mean);
      const float inv = 1.0f / std::sqrt(var / static_cast<float>(n) + args.eps);
      for (int64_t i = 0; i < n; ++i) {
        out[i] = (x[i] - mean) * inv * (w ? w[i] : 1.0f) + (b ? b[i] : 0.0f);
      }
    }
  });
}

void AddRmsNorm(const AddRmsNormArgs& args, Stream stream) {
  CheckSame(args.h, args.out);
  if (args.delta.defined()) CheckSame(args.h, args.delta);
  const int64_t n = args.h.size(1);
  const float* w = args.weight.data<float>();
  stream.pool->ParallelRanges(args.h.size(0), RowsPerRange(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* h = args.h.row<float>(r);
      float* out = args.out.row<float>(r);
      if (args.delta.defined()) {
        const float* delta = args.delta.row<float>(r);
        for (int64_t i = 0; i < n; ++i) h[i] += args.scale * delta[i];
      }
      const float inv = 1.0f / std::sqrt(SumOfSquares(h, n) / static_cast<float>(n) + args.eps);
      for (int64_t i = 0; i < n; ++i) out[i] = h[i] * inv * w[i];
    }
  });
}

void GatedRmsNorm(const GatedRmsNormArgs& args, Stream stream) {
  CheckSame(args.x, args.out);
  if (args.gate.defined()) CheckSame(args.x, args.gate);
  const int64_t n = args.x.size(1), group = GroupOf(args.group, n);
  const float* w = args.weight.defined() ? args.weight.data<float>() : nullptr;
  WEIR_CHECK(!w || args.weight.size(0) == group || args.weight.size(0) == n)
      << "weight " << args.weight.ToString() << " for groups of " << group;
  const bool shared = w && args.weight.size(0) == group;
  stream.pool->ParallelRanges(args.x.size(0), RowsPerRange(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < n; c += group) {
        const float* x = args.x.row<float>(r) + c;
        const float* gate = args.gate.defined() ? args.gate.row<float>(r) + c : nullptr;
        const float* gw = w ? w + (shared ? 0 : c) : nullptr;
        float* out = args.out.row<float>(r) + c;
        const bool first = gate && args.gate_first && args.normalize;
        for (int64_t i = 0; i < group; ++i) {
          out[i] = first ? x[i] * Gate(args.activation, gate[i]) : x[i];
        }
        float inv = 1.0f;
        if (args.normalize) {
          inv = 1.0f / std::sqrt(SumOfSquares(out, group) / static_cast<float>(group) + args.eps);
        }
        for (int64_t i = 0; i < group; ++i) {
          float y = out[i] * inv;
          if (args.normalize && gw) y *= gw[i];
          if (gate && !first) y *= Gate(args.activation, gate[i]);
          out[i] = y;
        }
      }
    }
  });
}

void L2Norm(const L2NormArgs& args, Stream stream) {
  CheckSame(args.x, args.out);
  const int64_t n = args.x.size(1), group = GroupOf(args.group, n);
  stream.pool->ParallelRanges(args.x.size(0), RowsPerRange(n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < n; c += group) {
        const float* x = args.x.row<float>(r) + c;
        float* out = args.out.row<float>(r) + c;
        const float inv = args.scale / std::sqrt(SumOfSquares(x, group) + args.eps);
        for (int64_t i = 0; i < group; ++i) out[i] = x[i] * inv;
      }
    }
  });
}

}  // namespace weir::kernels
