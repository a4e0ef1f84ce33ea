// What the two kernels of the scalar-decay prefill share. A sequence is cut into chunks of 64
// tokens.
//
//   Prepare  one block per chunk and group of value heads, all chunks at once: everything that does
//   not need
//            the state. With G the running sum of log decays in the chunk and E = exp:
//              P[i, j] = scale (q_i . k_j) E(G_i - G_j)                      for j <= i, else 0
//              T = (I + M)^-1 diag(beta),  M[i, j] = beta_i (k_i . k_j) E(G_i - G_j) for j < i
//              (delta)
//            as a record of bf16 tiles in the swizzle of the tensor cores, and E(G), E(G_end - G),
//            scale E(G).
//   Serial   one warpgroup per sequence, value head and 64 values, chunk after chunk, the
//   transposed state in
//            accumulators:
//              V' = T (V - E(G) K S)        (additive: V)
//              O  = scale E(G) Q S + P V'
//              S  = E(G_end) S + (E(G_end - G) V')^T K
//
// (Yang et al., "Gated Delta Networks", 2024; state in registers as in FlashInfer's Hopper kernel.)
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/stream.h"
#include "kernels/recurrence.h"

namespace weir::kernels::gpu::sm90 {

constexpr int kChunk = 64;

constexpr int kMaxGroup = 4;  // value heads that one block of Prepare serves

// A record: P, T (delta), then as f32 E(G), E(G_end - G) and scale E(G). Delta: then for each 16
// rows of T whether bf16 is too coarse for them (strongly negative eigenvalues of repeated keys:
// large entries of both signs that cancel), and a tile that holds what T lacks there, which is
// written and read only then.
constexpr int kRecordTile = kChunk * kChunk * 2;
constexpr int kRecordGates = 3 * kChunk * 4;
constexpr int kRecordFlags = 128;
constexpr int RecordGatesAt(bool delta) { return (delta ? 2 : 1) * kRecordTile; }
constexpr int RecordLoaded(bool delta) {
  return RecordGatesAt(delta) + kRecordGates + (delta ? kRecordFlags : 0);
}
constexpr int RecordBytes(bool delta) { return RecordLoaded(delta) + (delta ? kRecordTile : 0); }

// A sequence of fewer chunks is not worth splitting.
constexpr int kSplitChunks = 32;

struct ScalarChunkParams {
  // Chunk c of sequence s is in slot offsets[s] / 64 + s + c: in order, none twice, and each kernel
  // finds them without a table.
  const int32_t* offsets;
  const int32_t* slots;
  const uint8_t* fresh;
  int sequences;
  int heads, per_q, per_k, per_v;  // value heads, and how many share one head of q, k, v
  int group;  // value heads that a block of Prepare serves: one head of q and k
  float scale;
  const void* q;
  const void* k;
  int64_t q_row, k_row;  // elements
  const float* g;        // null: no decay
  int64_t g_row;         // 0: fixed per head
  const float* beta;     // null: additive
  int64_t beta_row;
  void* out;
  int64_t out_row;
  int v_dim;
  float* state;
  int64_t slot_stride;  // floats
  uint8_t* records;     // [chunk slots, heads, RecordBytes]
  // Additive, few sequences: [sequences, heads, v_dim / 64, 2, 64, K] states before the first and
  // before the second half of a sequence; null: no sequence is split.
  float* halves;
};

__host__ __device__ inline int64_t ChunkSlots(int64_t tokens, int64_t sequences) {
  return tokens / kChunk + sequences;
}

ScalarChunkParams MakeScalarChunkParams(const RecurrenceArgs& args);
void ScalarChunkPrepare(const ScalarChunkParams& params, int k_dim, int64_t chunk_slots,
                        Stream stream);
void ScalarChunkSerial(const ScalarChunkParams& params, int k_dim, const CUtensorMap& q_map,
                       const CUtensorMap& k_map, const CUtensorMap& v_map, Stream stream);

}  // namespace weir::kernels::gpu::sm90
