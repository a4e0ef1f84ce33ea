// The packed layout and the inner products of MatMul, one entry per instruction set. Plain structs
// only: the files compiled for wider vectors include this.
//
// Layout: panels of 16 output rows; the last one is filled up with zero rows.
//   f32   [panels][in][16]
//   bf16  [panels][in_pairs][16][2], in_pairs = ceil(in / 2), an odd `in` is filled up with a zero:
//         one 64-byte vector holds two neighbours of `in` for 16 outputs, the operand of vdpbf16ps.
#pragma once

#include <cstdint>

namespace weir::kernels {

inline constexpr int kPanel = 16;

// One call computes y[r, n] for all rows r and n in panels [first_panel, last_panel).
struct PanelProduct {
  const void* x = nullptr;  // [rows, x_stride], see the entry
  int64_t x_stride = 0;     // elements between rows
  int64_t rows = 0;
  const void* w = nullptr;  // panel 0
  int64_t depth = 0;        // vectors per panel: `in`, or in_pairs
  int64_t out = 0;
  int64_t first_panel = 0, last_panel = 0;
  const float* bias = nullptr;  // [out] or null
  float* y = nullptr;
  int64_t y_stride = 0;
};

// x f32, w f32: one chain of multiply-adds per element.
void PanelsF32Plain(const PanelProduct& p);
// x f32 holding values rounded to bf16, padded to an even length; w bf16 widened in registers; one
// chain of multiply-adds per element: even neighbour, odd neighbour, next pair.
void PanelsBf16Plain(const PanelProduct& p);

#if defined(__x86_64__)
void PanelsF32Avx2(const PanelProduct& p);
void PanelsBf16Avx2(const PanelProduct& p);
void PanelsF32Avx512(const PanelProduct& p);
void PanelsBf16Avx512(const PanelProduct& p);
// x bf16, padded to an even length; one chain of vdpbf16ps per element.
void PanelsBf16Avx512Bf16(const PanelProduct& p);
// f32 -> bf16, round to nearest even; denormals become zero, as vdpbf16ps would read them.
void RoundToBf16Avx512Bf16(const float* x, int64_t n, uint16_t* out);
#endif

}  // namespace weir::kernels
