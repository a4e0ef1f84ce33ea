// The row loops of the norms, as each instruction set provides them: plain data in, rows
// [begin, end) done. Strides are floats between rows; null pointers: absent.
#pragma once

#include <stdint.h>

namespace weir::kernels {

struct GatedRmsRows {
  const float *x = nullptr, *gate = nullptr, *weight = nullptr;
  float* out = nullptr;
  int64_t x_stride = 0, gate_stride = 0, out_stride = 0;
  int64_t n = 0, group = 0;
  bool weight_per_group = false;  // weight is [group], else [n]
  bool sigmoid = false;           // gate activation; else silu
  bool gate_first = false, normalize = true;
  float eps = 0.0f;
};

struct LayerNormRows {
  const float *x = nullptr, *weight = nullptr, *bias = nullptr;
  float* out = nullptr;
  int64_t x_stride = 0, out_stride = 0, n = 0;
  float eps = 0.0f;
};

struct AddRmsRows {
  float* h = nullptr;
  const float *delta = nullptr, *weight = nullptr;
  float* out = nullptr;
  int64_t h_stride = 0, delta_stride = 0, out_stride = 0, n = 0;
  float scale = 1.0f, eps = 0.0f;
};

struct L2Rows {
  const float* x = nullptr;
  float* out = nullptr;
  int64_t x_stride = 0, out_stride = 0, n = 0, group = 0;
  float scale = 1.0f, eps = 0.0f;
};

struct NormTable {
  void (*gated_rms)(const GatedRmsRows& a, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNormRows& a, int64_t begin, int64_t end);
  void (*add_rms)(const AddRmsRows& a, int64_t begin, int64_t end);
  void (*l2)(const L2Rows& a, int64_t begin, int64_t end);
};

extern const NormTable kNormBaseline;
#if defined(__x86_64__)
extern const NormTable kNormAvx2;
extern const NormTable kNormAvx512;
#endif

}  // namespace weir::kernels
