// The inner parts of attention, one table per instruction set. Plain structs only: the files
// compiled for wider vectors include this.
//
// Entries of a sequence are taken in blocks of 64 at fixed boundaries, blocks in splits of 512 at
// fixed boundaries. Within a split a running softmax goes from block to block (Dao et al.,
// "FlashAttention", 2022); splits are merged in order. What a query gets is a function of its own
// entries only: blocks and splits of which it sees nothing change no bit.
#pragma once

#include <cstdint>

namespace weir::kernels {

inline constexpr int kKeyBlock = 64;
inline constexpr int kKeySplit = 512;
inline constexpr int kMaxQueryRows = 6;

// Keys and values of one block and one kv head, as f32.
struct KeyBlock {
  float* keys = nullptr;    // [head_dim][64], zero past the entries that are there
  float* values = nullptr;  // [64][padded_dim], columns past head_dim are zero
  int64_t head_dim = 0;
  int64_t padded_dim = 0;  // head_dim rounded up to 16
};

// Up to kMaxQueryRows queries of one kv head: a query is one head of one token.
struct QueryTile {
  int rows = 0;
  const float* q = nullptr;  // [head_dim][rows], multiplied by scale * log2(e)
  // Entries of the block that a row sees: [first, last) within 0 ... 64.
  int first[kMaxQueryRows], last[kMaxQueryRows];
  // Running softmax: the largest score so far, the sum of 2^(score - max), and the sum of values
  // with these weights.
  float* max = nullptr;  // [rows]
  float* sum = nullptr;  // [rows]
  float* acc = nullptr;  // [rows][padded_dim]
};

struct AttentionKernel {
  int tile_rows = 1;  // tallest tile
  // x [n] to bf16, nearest, ties to even.
  void (*to_bf16)(const float* x, int64_t n, uint16_t* out) = nullptr;
  // Fills a block from rows of bf16 or f32; null rows are zeros.
  void (*gather)(const void* const* key_rows, const void* const* value_rows, bool bf16,
                 const KeyBlock& block) = nullptr;
  void (*attend)(const KeyBlock& block, const QueryTile& tile) = nullptr;
  // Adds a later part to an earlier one: (max, sum, acc) of one row.
  void (*merge)(float* max, float* sum, float* acc, float part_max, float part_sum,
                const float* part_acc, int64_t padded_dim) = nullptr;
  void (*finish)(float sum, const float* acc, int64_t head_dim, float* out) = nullptr;
};

extern const AttentionKernel kAttentionPlain;
#if defined(__x86_64__)
extern const AttentionKernel kAttentionAvx2, kAttentionAvx512;
#endif

}  // namespace weir::kernels
