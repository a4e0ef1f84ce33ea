// Matrix products in portable code, and the packing of tiles and panels that they share with
// others.
#include <bit>
#include <cstring>

#include "core/dtype.h"
#include "kernels/cpu/matmul_panels.h"

namespace weir::kernels {
namespace {

// Sums of one panel for one row: `term(acc, w, x)` adds one depth step.
template <typename Weight, typename Step>
void Product(const PanelProduct& p, int element_floats, const Step& step) {
  for (int64_t tile = p.first_tile; tile < p.last_tile; ++tile) {
    const TileRows rows = RowsOfTile(p.rows, p.tiles, tile);
    const int64_t height = rows.last - rows.first;
    const float* x = reinterpret_cast<const float*>(p.x) + rows.first * p.depth * element_floats;
    for (int64_t panel = p.first_panel; panel < p.last_panel; ++panel) {
      const Weight* w = reinterpret_cast<const Weight*>(p.w) + panel * p.depth * kPanel;
      const int64_t lanes = p.out - panel * kPanel < kPanel ? p.out - panel * kPanel : kPanel;
      for (int64_t r = 0; r < height; ++r) {
        float sum[kPanel] = {};
        for (int64_t i = 0; i < p.depth; ++i) {
          const float* element = x + (i * height + r) * element_floats;
          for (int lane = 0; lane < kPanel; ++lane) step(sum[lane], w[i * kPanel + lane], element);
        }
        float* y = p.y + (rows.first + r) * p.y_stride + panel * kPanel;
        const float* bias = p.bias == nullptr ? nullptr : p.bias + panel * kPanel;
        for (int64_t lane = 0; lane < lanes; ++lane) {
          y[lane] = bias == nullptr ? sum[lane] : sum[lane] + bias[lane];
        }
      }
    }
  }
}

int OnePanel(int) { return 1; }

void ProductF32(const PanelProduct& p) {
  Product<float>(p, 1, [](float& sum, float w, const float* x) { sum += w * x[0]; });
}

void ProductBf16(const PanelProduct& p) {
  Product<uint32_t>(p, 2, [](float& sum, uint32_t pair, const float* x) {
    sum += std::bit_cast<float>(pair << 16) * x[0];
    sum += std::bit_cast<float>(pair & 0xffff0000u) * x[1];
  });
}

void Interleave(const void* const (&rows)[kPanel], int64_t words, void* panel) {
  auto* out = static_cast<uint32_t*>(panel);
  for (int64_t i = 0; i < words; ++i) {
    for (int lane = 0; lane < kPanel; ++lane) {
      uint32_t word = 0;
      if (rows[lane] != nullptr) {
        std::memcpy(&word, static_cast<const char*>(rows[lane]) + i * 4, sizeof(word));
      }
      out[i * kPanel + lane] = word;
    }
  }
}

}  // namespace

void PackTileF32Plain(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile) {
  float* out = static_cast<float*>(tile);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < in; ++i) out[i * rows + r] = x[r * x_stride + i];
  }
}

void PackTileF32PairPlain(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile) {
  float* out = static_cast<float*>(tile);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < in; ++i) {
      out[(i / 2 * rows + r) * 2 + i % 2] = ToFloat(ToBFloat16(x[r * x_stride + i]));
    }
    if (in % 2 != 0) out[(in / 2 * rows + r) * 2 + 1] = 0.0f;
  }
}

const PanelKernel kPanelsF32Plain = {TileElement::kF32, 4,         1, 1, OnePanel, ProductF32,
                                     PackTileF32Plain,  Interleave};
const PanelKernel kPanelsBf16Plain = {TileElement::kF32Pair, 8,         1, 1, OnePanel, ProductBf16,
                                      PackTileF32PairPlain,  Interleave};

}  // namespace weir::kernels
