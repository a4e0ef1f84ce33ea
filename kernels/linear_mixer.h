// Everything between the two projections of a linear-attention mixer, in one op: short convolution
// with its window, activation, q/k normalisation, gates, the recurrence on the slot's state, and
// the gated output norm. On a GPU the steps between cost more than the arithmetic; here they share
// launches.
//
// The formulas are those of the ops named beside each field (short_conv.h, norm.h, pointwise.h,
// recurrence.h); tests compare with their composition on the CPU.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "kernels/recurrence.h"
#include "kernels/short_conv.h"

namespace weir::kernels {

struct LinearMixerArgs {
  Decay decay = Decay::kNone;
  Update update = Update::kAdditive;
  int heads = 0;                              // value heads = states; a multiple of the two below
  int heads_q = 0, heads_k = 0, heads_v = 0;  // grouped as in RecurrenceArgs
  int key_dim = 0, value_dim = 0;             // K, V

  // The in-projection's rows: q at column 0 [heads_q * K], then k [heads_k * K], then v [heads_v *
  // V]. f32 or bf16, rows may be strided. Read only.
  TensorView qkv;  // [tokens, heads_q * K + heads_k * K + heads_v * V]

  // ShortConv over all columns of qkv. weight undefined: no convolution, `activation` still
  // applies. Supported: W of 2 to 4, windows of the type of qkv.
  TensorView conv_weight;                     // [channels, W] f32, W <= 8
  TensorView conv_bias;                       // [channels] f32 or undefined
  Activation activation = Activation::kSilu;  // kNone or kSilu, on q, k and v
  void* window = nullptr;  // slot 0's window, [W - 1, channels] of window_dtype, oldest first
  DType window_dtype = DType::kF32;

  // L2Norm of q and k over K (eps below); then q is multiplied by q_scale either way.
  bool l2_norm = false;
  float l2_eps = 1e-6f;
  float q_scale = 1.0f;

  // LogDecay(decay_form, decay_x + decay_bias, exp_a): kScalar [tokens, heads], kVector
  // [tokens, heads_g * K] where heads_g is heads or heads_k. fixed_decay [heads] f32 instead of all
  // that: one log decay per head (then decay == kScalar).
  LogDecayArgs::Form decay_form = LogDecayArgs::Form::kSoftplus;
  TensorView decay_x;     // f32 or bf16, strided rows allowed
  TensorView decay_bias;  // f32 or undefined
  TensorView exp_a;       // f32 [heads], kVector [heads_g]
  float normalizer = 16.0f, clamp_min = 0.0f, lower_bound = -5.0f;
  bool has_clamp = false;
  TensorView fixed_decay;
  int heads_g = 0;

  // kDelta: beta = beta_scale * sigmoid(beta_x). beta_x [tokens, heads] f32 or bf16, strided.
  TensorView beta_x;
  float beta_scale = 1.0f;

  // GatedRmsNorm over V of each head: norm_weight [V] f32 or undefined (ones), gate [tokens, heads
  // * V] or undefined, strided rows allowed.
  TensorView gate;
  Activation gate_activation = Activation::kSilu;
  TensorView norm_weight;
  float norm_eps = 1e-6f;

  TensorView out;  // [tokens, heads * V], dtype of qkv; zeros for slots < 0

  // Sequences, as in RecurrenceArgs. The first `singles` sequences have exactly one token each,
  // padding (slot < 0) too: sequence s < singles owns token s, and its offset is not read. The
  // others have any number.
  TensorView offsets, slots, fresh;       // device memory on a GPU, written by copies and never by
                                          // kernels: a kernel reads them before it is its turn
  const int32_t* host_offsets = nullptr;  // the same offsets, readable by the host; may be null
                                          // where all are singles
  int singles = 0;
  void* state = nullptr;  // slot 0's state of this mixer, f32 [heads, V, K], aligned to 16 bytes
  int64_t slot_stride_bytes = 0;  // a multiple of 16

  // Room for intermediates of the runs that are not singles: LinearMixerScratchBytes of it, aligned
  // to 256 bytes.
  void* scratch = nullptr;
};

// Whether LinearMixer runs these shapes on this stream; the decision depends on dims, flags and
// dtypes alone, never on the batch. False: compose the single ops.
bool LinearMixerSupported(const LinearMixerArgs& args, Stream stream);
// For any batch of at most `tokens` tokens in `sequences` sequences, singles counted.
int64_t LinearMixerScratchBytes(const LinearMixerArgs& args, int64_t tokens, int64_t sequences);
// Does not allocate, does not synchronise; with singles alone safe inside graph capture. CUDA.
// REQUIRES: LinearMixerSupported.
void LinearMixer(const LinearMixerArgs& args, Stream stream);

}  // namespace weir::kernels
