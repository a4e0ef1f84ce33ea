// Normalisations. All compute in f32; rows are independent, so results do not depend on the batch.
// "f32" of an activation below reads "f32, on CUDA f32 or bf16, x and out alike"; weights are f32.
#pragma once

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/short_conv.h"

namespace weir::kernels {

// y = x / sqrt(mean(x^2) + eps) * weight, over groups of `group` consecutive elements of a row.
// (1 + w is folded into the weight at load.)
struct RmsNormArgs {
  TensorView x;       // [rows, n] f32, strided rows allowed
  TensorView weight;  // [n], or [group] shared by all groups; undefined: ones. f32
  int64_t group = 0;  // divides n; 0: n
  float eps = 1e-6f;
  TensorView out;  // [rows, n] f32; may be x
};
void RmsNorm(const RmsNormArgs& args, Stream stream);

// y = (x - mean) / sqrt(var + eps) * weight + bias over a row.
struct LayerNormArgs {
  TensorView x;             // [rows, n] f32 (the residual stream); out: the activations' type
  TensorView weight, bias;  // [n] f32; undefined: ones, zeros
  float eps = 1e-5f;
  TensorView out;  // [rows, n] f32; may be x
};
void LayerNorm(const LayerNormArgs& args, Stream stream);

// h += scale * delta; y = rms_norm(h) in one pass: what joins two blocks. delta undefined: norm
// only. The residual stream h is f32 on every device; delta and out have the activations' type.
struct AddRmsNormArgs {
  TensorView h;      // [rows, n] f32, updated in place
  TensorView delta;  // [rows, n] f32 or undefined
  float scale = 1.0f;
  TensorView weight;  // [n] f32
  float eps = 1e-6f;
  TensorView out;  // [rows, n] f32
};
void AddRmsNorm(const AddRmsNormArgs& args, Stream stream);

// The output norm of linear-attention mixers:
//   gate_first = false: y = rms(x) * weight * act(gate)        (GLA, GDN, KDA)
//   gate_first = true:  y = rms(x * act(gate)) * weight        (Mamba-2)
//   normalize = false:  y = x * act(gate)
// act: kSilu or kSigmoid. gate undefined: plain rms norm.
struct GatedRmsNormArgs {
  TensorView x;       // [rows, n] f32
  TensorView gate;    // [rows, n] f32, strided rows allowed, or undefined
  TensorView weight;  // [group] or [n] f32; undefined: ones
  int64_t group = 0;  // divides n; 0: n
  float eps = 1e-6f;
  Activation activation = Activation::kSilu;
  bool gate_first = false;
  bool normalize = true;
  TensorView out;  // [rows, n] f32; may be x
};
void GatedRmsNorm(const GatedRmsNormArgs& args, Stream stream);

// y = x / sqrt(sum(x^2) + eps) * scale over groups of `group` elements (q, k of the delta rules).
struct L2NormArgs {
  TensorView x;  // [rows, n] f32, strided rows allowed
  int64_t group = 0;
  float eps = 1e-6f;
  float scale = 1.0f;
  TensorView out;  // [rows, n] f32; may be x
};
void L2Norm(const L2NormArgs& args, Stream stream);

}  // namespace weir::kernels
