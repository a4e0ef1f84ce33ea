// The recurrence of every linear-attention mixer: decay x update over a per-head state matrix.
//
// One value head, state S in R^{K x V}, token t (models: docs/hybrid-format.md; formulas: Yang et
// al., "Gated Linear Attention", 2023; "Gated Delta Networks", 2024; Kimi Linear, 2025):
//
//   S- = D_t o S_{t-1}       D_t = exp(g): none (1) | scalar per head | vector over K
//   additive: S = S- + k v^T
//   delta:    S = S- + k (beta (v - S-^T k))^T
//   o  = scale * S^T q       reads the updated state
//
// Two forms with one contract: `chunk` for packed runs of any length (prefill, mixed batches),
// `step` for exactly one token per sequence (decode). Both give the same result within rounding.
#pragma once

#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::kernels {

enum class Decay : unsigned char { kNone, kScalar, kVector };
enum class Update : unsigned char { kAdditive, kDelta };

struct RecurrenceArgs {
  Decay decay = Decay::kNone;
  Update update = Update::kAdditive;
  float scale = 1.0f;

  // Packed tokens of all sequences: f32 on the CPU; on CUDA q, k, v and out are all f32 or all
  // bf16, g and beta f32. Rows may be strided (columns of a projection).
  TensorView q;  // [tokens, heads_q, K]; value head h reads q head h / (heads / heads_q)
  TensorView k;  // [tokens, heads_k, K]; value head h reads k head h / (heads / heads_k)
  TensorView v;  // [tokens, heads_v, V]; value head h reads v head h / (heads / heads_v)
  TensorView g;  // log decay <= 0: kScalar [tokens, heads]; kVector [tokens, heads_g, K], grouped
                 // like k; kNone: undefined. kScalar with size(0) == 1: fixed per head (retnet)
  TensorView beta;  // kDelta: [tokens, heads]; else undefined
  TensorView out;   // [tokens, heads, V]; written wherever the token belongs to a sequence with
                    // slot >= 0, zeros for slot < 0; must not alias any input
  int heads = 0;  // value heads = states per sequence; a multiple of each of the head counts above

  // Sequences: sequence s owns tokens [offsets[s], offsets[s + 1]), possibly none. On CUDA copies
  // write these three, never kernels: a kernel may read them before it is its turn.
  TensorView offsets;  // [sequences + 1] i32
  // The same offsets for the host to plan by. CUDA, chunk form: required; else unused.
  const int32_t* host_offsets = nullptr;
  TensorView slots;  // [sequences] i32; negative: padding, outputs zeros and touches no state.
                     // Distinct among the non-negative.
  TensorView fresh;  // [sequences] u8; 1: the initial state is zero whatever the slot holds

  // State of sequence s, head h: f32 [V, K] (K contiguous) at
  // state + slots[s] * slot_stride_bytes + h * V * K * 4. Read, then overwritten with the final
  // state.
  void* state = nullptr;
  int64_t slot_stride_bytes = 0;

  void* scratch = nullptr;  // CUDA, chunk form: RecurrenceChunkScratchBytes of it
};

// Device scratch of the chunk form on CUDA, for any batch of at most `tokens` tokens in `sequences`
// runs with the dims and flags of `args` (tokens, offsets and pointers in it are not read). 0 on
// the CPU.
int64_t RecurrenceChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences,
                                    Stream stream);

// Prefill form: blocked matrix work over chunks of tokens. Numerically safe for any g <= 0 (every
// exponent that is evaluated is <= 0). What a token gets does not depend on what else is packed.
// Allocates only per-thread scratch that is kept for the life of the thread. CPU and CUDA: there
// enqueues only, does not allocate (RecurrenceChunkScratchBytes of `scratch`) and does not
// synchronise. REQUIRES: shapes as documented (checked, abort on mismatch: a bug of the caller).
void RecurrenceChunk(const RecurrenceArgs& args, Stream stream);

// Decode form. REQUIRES: each sequence has at most one token.
void RecurrenceStep(const RecurrenceArgs& args, Stream stream);

// Plain token-by-token loops in the order of the formula: what both forms are tested against.
void RecurrenceReference(const RecurrenceArgs& args);

}  // namespace weir::kernels
