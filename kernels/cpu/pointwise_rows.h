// The loops of the elementwise ops over one row, as each instruction set provides them. In place
// allowed wherever the op allows it.
#pragma once

#include <stdint.h>

namespace weir::kernels {

// The order of Activation in kernels/short_conv.h (checked in pointwise.cc).
enum class RowActivation : unsigned char {
  kNone,
  kSilu,
  kGelu,
  kGeluTanh,
  kRelu,
  kRelu2,
  kSigmoid
};

struct LogDecayRow {
  enum class Form : unsigned char { kSoftplus, kLogSigmoid, kBoundedSigmoid } form;
  const float* x = nullptr;
  const float* bias = nullptr;   // [n] or null
  const float* exp_a = nullptr;  // [n / per_head]
  int64_t n = 0, per_head = 1;
  float normalizer = 1.0f, clamp_min = 0.0f, lower_bound = 0.0f;
  bool has_clamp = false;
  float* out = nullptr;
};

struct PointwiseTable {
  // out = act(x); out = act(gate) * up; out = a * b
  void (*activate)(RowActivation act, const float* x, float* out, int64_t n);
  void (*gate_multiply)(RowActivation act, const float* gate, const float* up, float* out,
                        int64_t n);
  void (*multiply)(const float* a, const float* b, float* out, int64_t n);
  // h += scale * delta; out = scale * x
  void (*add_scaled)(float* h, const float* delta, float scale, int64_t n);
  void (*scale)(const float* x, float scale, float* out, int64_t n);
  void (*scale_bf16)(const uint16_t* x, float scale, float* out, int64_t n);
  void (*log_decay)(const LogDecayRow& row);
  // out = scale * sigmoid(x)
  void (*scaled_sigmoid)(const float* x, float scale, float* out, int64_t n);
  // out = max(softplus(x + bias), lo), at most hi where hi > lo
  void (*step_size)(const float* x, const float* bias, float lo, float hi, float* out, int64_t n);
  // x = x + 1 for x > 0, else e^x
  void (*elu_plus_one)(float* x, int64_t n);
  // x /= sum(x) + eps
  void (*divide_by_sum)(float* x, float eps, int64_t n);
};

extern const PointwiseTable kPointwiseBaseline;
#if defined(__x86_64__)
extern const PointwiseTable kPointwiseAvx2;
extern const PointwiseTable kPointwiseAvx512;
#endif

}  // namespace weir::kernels
