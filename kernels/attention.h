// Softmax attention of decoder layers over two kinds of memory: pages (full attention, grows with the
// sequence) and a ring in the slot (local attention, bounded by the window).
#pragma once

#include "core/stream.h"
#include "core/tensor.h"

namespace weir::kernels {

// Rotary embedding, rotate-half form, in place on the first `rotary_dim` dimensions of each head:
// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) with angle position * inv_freq[i].
struct RotaryArgs {
  TensorView x;          // [tokens, heads, head_dim] f32, strided rows allowed
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
  TensorView q;    // [tokens, heads, head_dim] f32, strided rows allowed; after norm and rotary
  TensorView k;    // [tokens, kv_heads, head_dim] f32: the new keys of this batch
  TensorView v;    // [tokens, kv_heads, head_dim] f32
  TensorView out;  // [tokens, heads, head_dim] f32; zeros for sequences with slot < 0
  float scale = 1.0f;

  TensorView offsets;    // [sequences + 1] i32
  TensorView slots;      // [sequences] i32; negative: padding
  TensorView cached;     // [sequences] i32: entries already stored before this batch
};

// Full causal attention: stores the new k, v at entries cached[s] ... and attends to everything up to
// and including the token's own entry. Splits long caches along the sequence at fixed entry
// boundaries and combines the parts in fixed order: a token's result does not depend on the batch or
// on how its sequence was cut into runs. On the CPU it is the same bit for bit (of finite inputs).
void PagedAttention(const AttentionArgs& args, const PagedKv& kv, Stream stream);

// Ring of one local-attention layer in the slot: K [window, kv_heads, head_dim], then V. Entry j of a
// sequence lives at row j % window. Token t sees entries t - window + 1 ... t. Runs may be longer than
// the window. Results do not depend on cuts and neighbours, as for pages.
struct RingKv {
  void* base = nullptr;  // slot 0's ring of this layer
  int64_t slot_stride_bytes = 0;
  int window = 0;
  DType dtype = DType::kBF16;
};
void WindowAttention(const AttentionArgs& args, const RingKv& ring, Stream stream);

}  // namespace weir::kernels
