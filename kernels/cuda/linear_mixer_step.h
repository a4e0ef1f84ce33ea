// One kernel for everything a linear-attention mixer does with one token of each sequence; the
// recurrence alone is the same kernel with the rest switched off.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "kernels/pointwise.h"
#include "kernels/recurrence.h"

namespace weir::kernels::gpu {

// Numbers of f32 or bf16 in rows.
struct RowsOf {
  const void* data = nullptr;
  int64_t stride = 0;  // elements; 0: one row for all tokens
  bool is_bf16 = false;
};

struct MixerStep {
  // Sequence s owns token s where offsets is null, else as in RecurrenceArgs with runs of at
  // most 1.
  int sequences = 0;
  const int32_t *offsets = nullptr, *slots = nullptr;
  const uint8_t* fresh = nullptr;
  char* state = nullptr;
  int64_t slot_stride_bytes = 0;

  int heads = 0, dim_k = 0, dim_v = 0;
  int q_group = 1, k_group = 1, v_group = 1, g_group = 1;  // value heads that share one head
  RowsOf q, k, v;
  bool silu = false, l2_norm = false, delta = false;
  float l2_eps = 0.0f, q_scale = 1.0f;

  // width 0: no convolution. Channels of the window: q's heads, then k's, then v's.
  int width = 0;
  int64_t channels = 0;  // RunMixerStep sets it
  const float *conv_weight = nullptr, *conv_bias = nullptr;
  char* window = nullptr;  // of q's type

  Decay decay = Decay::kNone;
  RowsOf decay_x;  // log decays where decay_given, else inputs of the formula
  bool decay_given = false;
  LogDecayArgs::Form decay_form = LogDecayArgs::Form::kSoftplus;
  const float *decay_bias = nullptr, *exp_a = nullptr;
  float inverse_normalizer = 1.0f, clamp_min = 0.0f, lower_bound = 0.0f;  // clamp_min -inf: none

  RowsOf beta;
  bool beta_given = false;
  float beta_scale = 1.0f;

  bool norm = false;
  RowsOf gate;  // data null: none
  bool gate_sigmoid = false;
  const float* norm_weight = nullptr;
  float norm_eps = 0.0f;

  void* out = nullptr;  // of q's type, as k, v and gate are
  int64_t out_stride = 0;
};

// How to cut the work; picked by the batch when left alone.
struct MixerStepPlan {
  int threads = 0;  // of a block
  int v_split = 0;  // blocks that share a head's rows
  int heads = 1;    // of a block, where v_split is 1
  int ring = 4;     // pieces of 4 KiB a warp has in flight
};

// On the open device: dims, sharing of heads and alignment.
bool MixerStepSupported(const MixerStep& step);
void RunMixerStep(const MixerStep& step, Stream stream, MixerStepPlan plan = {});

}  // namespace weir::kernels::gpu
