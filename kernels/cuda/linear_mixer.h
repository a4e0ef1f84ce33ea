// The pieces of gpu::LinearMixer that live in files of their own.
#pragma once

#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/linear_mixer.h"

namespace weir::kernels::gpu {

// What the runs longer than one token give to the recurrence. Row t is token t of the batch in
// every view; contiguous; bases aligned to 256 bytes. An undefined view is not wanted.
struct PreparedRuns {
  TensorView q, k;  // [tokens, heads_q, K], [tokens, heads_k, K], dtype of qkv: convolved, biased,
                    // activated, l2-normalised where args say so; q_scale NOT applied
  TensorView v;     // [tokens, heads_v, V], dtype of qkv: convolved, biased, activated
  TensorView g;     // f32 log decays: kScalar [tokens, heads], kVector [tokens, heads_g, K]
  TensorView beta;  // f32 [tokens, heads]
};

// Writes the rows of tokens [host_offsets[first_sequence], host_offsets[sequences]) and no others,
// and moves the conv windows of those sequences on. Rows of sequences with slot < 0: zeros, and no
// window touched. A sequence may have no tokens (its window stays) or any number of them.
// REQUIRES: LinearMixerSupported(args). Enqueues only.
void PrepareRuns(const LinearMixerArgs& args, int first_sequence, const PreparedRuns& out,
                 Stream stream);

}  // namespace weir::kernels::gpu
