// Softmax attention of decoder layers over two kinds of memory: pages (full attention, grows with
// the sequence) and a ring in the slot (local attention, bounded by the window).
#pragma once

#include "core/stream.h"
#include "core/tensor.h"

namespace weir::kernels {

// Rotary embedding, rotate-half form, in place on the first `rotary_dim` dimensions of each head:
// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) with angle position * inv_freq[i].
struct RotaryArgs {
  TensorView x;          // [tokens, heads, head_dim] f32 (CUDA: or bf16), strided rows allowed
  TensorView positions;  // [tokens] i32, absolute
  TensorView inv_freq;   // [rotary_dim / 2] f32 (scaling folded in at load)
  float attention_factor = 1.0f;  // multiplies cos and sin
};
void Rotary(const RotaryArgs& args, Stream stream);

// Paged KV of one layer. Token j of a sequence lives in page block_table[s, j / page_tokens] at row
// j % page_tokens. A page holds all layers; this layer's part begins at layer_offset_bytes and is
//   K: [page_tokens, kv_heads, head_dim], then V: the same. dtype f32 or bf16.
struct PagedKv {
  void* base = nullptr;
  int64_t page_stride_bytes = 0;
  int64_t layer_offset_bytes = 0;
  int page_tokens = 0;
  DType dtype = DType::kBF16;
  TensorView block_table;  // [sequences, max_pages] i32; rows may hold garbage past what is needed
};

struct AttentionArgs {
  // Activations: f32 on the CPU, on CUDA all f32 or all bf16.
  TensorView q;    // [tokens, heads, head_dim], strided rows allowed; after norm and rotary
  TensorView k;    // [tokens, kv_heads, head_dim]: the new keys of this batch
  TensorView v;    // [tokens, kv_heads, head_dim]
  TensorView out;  // [tokens, heads, head_dim]; zeros for sequences with slot < 0
  TensorView
      gate;  // [tokens, heads * head_dim], strided rows; out *= sigmoid(gate). undefined: none
  float scale = 1.0f;

  TensorView offsets;  // [sequences + 1] i32
  TensorView slots;    // [sequences] i32; negative: padding
  TensorView cached;   // [sequences] i32: entries already stored before this batch

  // What the op does to q and k first, in this order; each undefined: not done.
  TensorView q_norm, k_norm;  // RmsNorm over head_dim, weight [head_dim] f32
  float norm_eps = 1e-6f;
  TensorView positions;  // [tokens] i32
  TensorView inv_freq;   // Rotary

  // CUDA only. Host copies for planning: offsets and cached (null inside graph capture, where every
  // sequence has one token), and an upper bound of cached + run over the sequences.
  const int32_t* host_offsets = nullptr;
  const int32_t* host_cached = nullptr;
  int32_t max_entries = 0;
  void* scratch = nullptr;  // AttentionScratchBytes of it
};

// Device scratch on CUDA for any batch of at most these sizes; 0 on the CPU.
int64_t AttentionScratchBytes(int heads, int kv_heads, int head_dim, int64_t tokens,
                              int64_t sequences, int64_t max_entries, DType activation,
                              Stream stream);

// Full causal attention: stores the new k, v at entries cached[s] ... and attends to everything up
// to and including the token's own entry. Splits long caches along the sequence at fixed entry
// boundaries and combines the parts in fixed order: a token's result does not depend on the batch
// or on how its sequence was cut into runs. On the CPU it is the same bit for bit (of finite
// inputs).
void PagedAttention(const AttentionArgs& args, const PagedKv& kv, Stream stream);

// Ring of one local-attention layer in the slot: K [window, kv_heads, head_dim], then V. Entry j of
// a sequence lives at row j % window. Token t sees entries t - window + 1 ... t. Runs may be longer
// than the window. Results do not depend on cuts and neighbours, as for pages.
struct RingKv {
  void* base = nullptr;  // slot 0's ring of this layer
  int64_t slot_stride_bytes = 0;
  int window = 0;
  DType dtype = DType::kBF16;
};
void WindowAttention(const AttentionArgs& args, const RingKv& ring, Stream stream);

}  // namespace weir::kernels
