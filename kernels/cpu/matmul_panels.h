// The packed layouts and the inner products of MatMul, one entry per instruction set. Plain structs
// only: the files compiled for wider vectors include this.
//
// Weights: panels of 16 output rows; the last one is filled up with zero rows. Each depth step of a
// panel is one vector of 64 bytes:
//   f32   [panels][in][16]
//   bf16  [panels][in_pairs][16][2], in_pairs = ceil(in / 2), an odd `in` is filled up with a zero:
//         two neighbours of `in` for 16 outputs, the operand of vdpbf16ps.
//
// Input: tiles of up to 16 rows, the rows of a tile interleaved, [tiles][depth][height]; how tall
// tiles are is decided by the number of rows only. An element is one depth step of one row: f32, a
// pair of bf16 (kBf16Pair) or a pair of f32 that hold values rounded to bf16 (kF32Pair).
#pragma once

#include <cstdint>

namespace weir::kernels {

inline constexpr int kPanel = 16;
inline constexpr int kMaxTile = 16;
inline constexpr int kMaxGroup = 4;

enum class TileElement : unsigned char { kF32, kBf16Pair, kF32Pair };

// Rows [first, last) of a tile: rows are dealt out evenly to ceil(rows / tallest) tiles. Internal
// linkage: see the rule for files of an instruction set in CMakeLists.txt.
struct TileRows {
  int64_t first, last;
};
static constexpr int64_t CountTiles(int64_t rows, int64_t tallest) {
  return (rows + tallest - 1) / tallest;
}
static constexpr TileRows RowsOfTile(int64_t rows, int64_t tiles, int64_t tile) {
  return {rows * tile / tiles, rows * (tile + 1) / tiles};
}

// One call computes y[r, n] for the rows of tiles [first_tile, last_tile) and the columns of panels
// [first_panel, last_panel): y = sum over depth in one chain per element, in order, then + bias.
struct PanelProduct {
  const char* x = nullptr;  // tile 0
  const char* w = nullptr;  // panel 0
  int64_t depth = 0;        // steps per panel
  int64_t rows = 0, tiles = 0;
  int64_t first_tile = 0, last_tile = 0;
  int64_t out = 0;
  int64_t first_panel = 0, last_panel = 0;
  const float* bias = nullptr;  // [out] or null
  float* y = nullptr;
  int64_t y_stride = 0;
};

// What a matrix product needs of an instruction set.
struct PanelKernel {
  TileElement element = TileElement::kF32;
  int element_bytes = 4;
  int tallest_single = 1;  // tallest tile when it is the only one: weights pass once
  int tallest_tile = 1;    // and when there are several
  // Panels per inner loop of tiles of that height, at most kMaxGroup.
  int (*group)(int rows) = nullptr;
  void (*product)(const PanelProduct& p) = nullptr;
  // Interleaves `rows` rows of x [rows, in] into one tile.
  void (*pack_tile)(const float* x, int64_t x_stride, int64_t rows, int64_t in,
                    void* tile) = nullptr;
  // 16 rows of bf16 or f32 words (32 bits each) into one panel; null rows are zeros.
  void (*interleave)(const void* const (&rows)[kPanel], int64_t words, void* panel) = nullptr;
};

// Shared by the portable and the AVX2 kernels.
void PackTileF32Plain(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile);
void PackTileF32PairPlain(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile);

// Multiply-adds in f32; bf16 weights are widened in registers, even neighbour before odd one.
extern const PanelKernel kPanelsF32Plain, kPanelsBf16Plain;
#if defined(__x86_64__)
extern const PanelKernel kPanelsF32Avx2, kPanelsBf16Avx2;
extern const PanelKernel kPanelsF32Avx512, kPanelsBf16Avx512;
void InterleaveAvx512(const void* const (&rows)[kPanel], int64_t words, void* panel);
// One chain of vdpbf16ps.
extern const PanelKernel kPanelsBf16Avx512Bf16;
#endif

// The kernel of this machine for a compute type (kF32 or kBF16).
const PanelKernel& FindPanelKernel(bool bf16);

}  // namespace weir::kernels
