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

// Where the entries of a block lie: rows of head_dim, bf16 or f32, null past those that are seen.
struct KeyRows {
  const void* keys[kKeyBlock];
  const void* values[kKeyBlock];
};

// One block for one kv head.
struct KeyBlock {
  const KeyRows* rows = nullptr;
  const KeyRows* next = nullptr;  // the block after it: asked for while this one is worked on
  bool bf16 = false;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;  // head_dim rounded up to 16
  float* keys = nullptr;   // [head_dim][64]: the keys turned around, zero past those that are seen
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
  // Turns the keys of a block around.
  void (*gather)(const KeyBlock& block) = nullptr;
  // `first`: of the tiles that pass over the block, this is the first.
  void (*attend)(const KeyBlock& block, const QueryTile& tile, bool first) = nullptr;
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
