// Elementwise pieces between matrix products, strided rows allowed, in place allowed. Activations
// are f32 on the CPU, f32 or bf16 on CUDA (all of one op alike unless said otherwise); parameters
// are f32.
#pragma once

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/short_conv.h"

namespace weir::kernels {

// out = act(gate) * up, [rows, n].
void GateMultiply(TensorView gate, TensorView up, Activation activation, TensorView out,
                  Stream stream);
// out = act(x), [rows, n].
void Activate(TensorView x, Activation activation, TensorView out, Stream stream);
// out = a * b, [rows, n].
void Multiply(TensorView a, TensorView b, TensorView out, Stream stream);
// h += scale * delta, [rows, n]. h f32, delta of any activation type.
void AddScaled(TensorView h, TensorView delta, float scale, Stream stream);
// h (f32) [rows[i]] += weight[i] * delta[i]: scatter of a routed mixer's output. rows [n] i32
// distinct; weight [n] f32.
void ScatterAddScaled(TensorView h, TensorView delta, TensorView rows, TensorView weight,
                      Stream stream);
// out[i] = x[rows[i]], [n, width].
void GatherRows(TensorView x, TensorView rows, TensorView out, Stream stream);
// out[i] = table[ids[i]] * scale. table [vocab, n] f32 or bf16 (as stored, not packed); ids [rows]
// i32 in range (negative: a row of zeros). out f32.
void EmbeddingLookup(TensorView table, TensorView ids, float scale, TensorView out, Stream stream);

// Log decays of the gated mixers.
//   kSoftplus:      g = -exp_a[h] * softplus(x + bias)       GDN, Mamba-2, KDA (exp_a folded at
//   load) kLogSigmoid:    g = max(logsigmoid(x + bias) / normalizer, clamp_min)   GLA, simple GLA
//   kBoundedSigmoid: g = lower_bound * sigmoid(exp_a[h] * (x + bias))       KDA with lower_bound
struct LogDecayArgs {
  enum class Form : unsigned char { kSoftplus, kLogSigmoid, kBoundedSigmoid } form;
  TensorView x;      // [rows, n] f32
  TensorView bias;   // [n] f32 or undefined
  TensorView exp_a;  // [heads] f32, heads divides n: element i belongs to head i / (n / heads)
  float normalizer = 16.0f;
  float clamp_min = 0.0f;  // used when has_clamp
  bool has_clamp = false;
  float lower_bound = -5.0f;
  TensorView out;  // [rows, n] f32 always; may be x where that is f32
};
void LogDecay(const LogDecayArgs& args, Stream stream);

// beta = scale * sigmoid(x), [rows, n]. out f32 always; may be x where that is f32.
void Beta(TensorView x, float scale, TensorView out, Stream stream);

// Mamba-2 step sizes and inputs (Dao & Gu 2024): dt = clamp(softplus(x + bias), lo, hi);
// g = -exp_a[h] * dt; v[t, h, :] = dt[t, h] * xs[t, h, :].
struct Mamba2DtArgs {
  TensorView x;                // [rows, heads]
  TensorView bias;             // [heads] f32
  TensorView exp_a;            // [heads] f32 = exp(A_log)
  float lo = 0.0f, hi = 0.0f;  // hi <= lo: no upper limit
  TensorView xs;               // [rows, heads, P], strided rows allowed
  TensorView g;                // out [rows, heads] f32 always
  TensorView v;                // out [rows, heads, P], type of xs
};
void Mamba2Dt(const Mamba2DtArgs& args, Stream stream);
// out[t, h, p] += d[h] * xs[t, h, p].
void AddSkip(TensorView xs, TensorView d, TensorView out, Stream stream);

// Feature maps of linear attention, in place on [rows, heads, K]: relu, elu + 1, and division by
// the sum over K + eps.
void EluPlusOne(TensorView x, Stream stream);
void DivideBySum(TensorView x, float eps, Stream stream);
// out[t, h, :] = x[t, h, :V] / (x[t, h, V] + eps). x [rows, heads, V + 1], out [rows, heads, V],
// not the same memory: the normaliser of linear attention, read as one more column of the state.
void DivideByLast(TensorView x, float eps, TensorView out, Stream stream);

}  // namespace weir::kernels
