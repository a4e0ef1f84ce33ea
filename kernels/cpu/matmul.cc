// MatMul: rounding of the input, choice of the instruction set, split over threads, plain products.
#include "kernels/matmul.h"

#include <algorithm>
#include <cstring>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/scratch.h"

namespace weir::kernels {
namespace {

void StoreRow(const PanelProduct& p, int64_t row, int64_t panel, const float (&sum)[kPanel]) {
  const int64_t n = panel * kPanel;
  const int64_t lanes = std::min<int64_t>(kPanel, p.out - n);
  for (int64_t i = 0; i < lanes; ++i) {
    p.y[row * p.y_stride + n + i] = p.bias != nullptr ? sum[i] + p.bias[n + i] : sum[i];
  }
}

}  // namespace

void PanelsF32Plain(const PanelProduct& p) {
  for (int64_t panel = p.first_panel; panel < p.last_panel; ++panel) {
    const float* w = static_cast<const float*>(p.w) + panel * p.depth * kPanel;
    for (int64_t r = 0; r < p.rows; ++r) {
      const float* x = static_cast<const float*>(p.x) + r * p.x_stride;
      float sum[kPanel] = {};
      for (int64_t i = 0; i < p.depth; ++i) {
        for (int lane = 0; lane < kPanel; ++lane) sum[lane] += x[i] * w[i * kPanel + lane];
      }
      StoreRow(p, r, panel, sum);
    }
  }
}

void PanelsBf16Plain(const PanelProduct& p) {
  for (int64_t panel = p.first_panel; panel < p.last_panel; ++panel) {
    const uint32_t* w = static_cast<const uint32_t*>(p.w) + panel * p.depth * kPanel;
    for (int64_t r = 0; r < p.rows; ++r) {
      const float* x = static_cast<const float*>(p.x) + r * p.x_stride;
      float sum[kPanel] = {};
      for (int64_t i = 0; i < p.depth; ++i) {
        for (int lane = 0; lane < kPanel; ++lane) {
          const uint32_t pair = w[i * kPanel + lane];
          sum[lane] += x[2 * i] * std::bit_cast<float>(pair << 16);
          sum[lane] += x[2 * i + 1] * std::bit_cast<float>(pair & 0xffff0000u);
        }
      }
      StoreRow(p, r, panel, sum);
    }
  }
}

void MatMul(TensorView x, const PackedMatrix& weight, TensorView bias, TensorView y, Stream stream) {
  const int64_t rows = x.size(0);
  WEIR_CHECK(weight.defined() && x.rank() == 2 && x.size(1) == weight.in()) << x.ToString();
  WEIR_CHECK(y.rank() == 2 && y.size(0) == rows && y.size(1) == weight.out()) << y.ToString();
  WEIR_CHECK(!bias.defined() || bias.num_elements() == weight.out()) << bias.ToString();
  if (rows == 0) return;
  PanelProduct product;
  product.rows = rows;
  product.w = weight.raw();
  product.out = weight.out();
  product.bias = bias.defined() ? bias.data<float>() : nullptr;
  product.y = y.data<float>();
  product.y_stride = y.row_stride();
  const bool bf16 = weight.compute() == DType::kBF16;
  product.depth = bf16 ? (weight.in() + 1) / 2 : weight.in();
  product.x = x.data<float>();
  product.x_stride = x.row_stride();
  if (bf16) {
    static thread_local Scratch scratch;
    product.x_stride = product.depth * 2;
    float* rounded = scratch.Of<float>(rows * product.x_stride);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = rounded + r * product.x_stride;
      for (int64_t i = 0; i < weight.in(); ++i) row[i] = ToFloat(ToBFloat16(x.row<float>(r)[i]));
      if (weight.in() % 2 != 0) row[weight.in()] = 0.0f;
    }
    product.x = rounded;
  }
  const int64_t panels = (weight.out() + kPanel - 1) / kPanel;
  stream.pool->ParallelRanges(panels, 1, [&](int64_t begin, int64_t end) {
    PanelProduct part = product;
    part.first_panel = begin;
    part.last_panel = end;
    bf16 ? PanelsBf16Plain(part) : PanelsF32Plain(part);
  });
}

}  // namespace weir::kernels
