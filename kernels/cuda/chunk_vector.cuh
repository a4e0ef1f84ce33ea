// The prefill form with a decay per key channel, on tensor cores (bf16 operands, f32 sums).
//
// Sequences are cut into chunks of 64 tokens. With G the running sum of log decays in a chunk and
// E = exp, the chunk's work that does not need the state is done for all chunks at once
// (PrepareChunks), the rest chunk after chunk (ScanChunks). Per chunk and head they share a tile:
//   Q~ = scale Q E(G)      K^ = K E(G_end - G)      D = E(G_end)
//   P[i, j] = scale sum_c q_ic k_jc E(G_ic - G_jc), j <= i
// and for the delta rule, with M[i, j] = beta_i sum_c k_ic k_jc E(G_ic - G_jc), j < i, and
// T = (1 + M)^-1 diag(beta):   W = T (K E(G))      U = T V.
// Then with S the state before the chunk: V' = U - W S (additive: V), O = Q~ S + P V',
// S <- D S + K^T V'.
//
// No exponent that is evaluated is positive but for one: products between blocks of 16 tokens are
// anchored at the border before the later block (Yang et al., "Gated Linear Attention", 2023), and
// within a block, where its decays span less than e^60, at the block's start; where they span more,
// such a block is summed element by element.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace weir::kernels::gpu::vector_chunk {

constexpr int kChunk = 64, kBlock = 16;  // tokens
constexpr int kDim = 128;                // K and V

// Byte offsets in a tile. Q, K and W are [64 tokens][128 channels] bf16 as two [64][64] halves
// whose rows are 128 bytes with the 16-byte pieces permuted by the row (Swizzled); P is one
// [64][64]. U is in the order of the accumulators of an m16n8 product of V rows and tokens: [8
// groups of 16 V rows][4 pairs of n8][32 lanes][16 bytes].
constexpr int kHalfBytes = kChunk * 128, kMatrixBytes = 2 * kHalfBytes;
constexpr int kTileQ = 0, kTileK = kTileQ + kMatrixBytes, kTileP = kTileK + kMatrixBytes;
constexpr int kTileW = kTileP + kHalfBytes;
constexpr int TileD(bool delta) { return delta ? kTileW + kMatrixBytes : kTileW; }
constexpr int kTileU = TileD(true) + kDim * 4;
constexpr int TileBytes(bool delta) {
  return delta ? kTileU + kMatrixBytes : TileD(false) + kDim * 4;
}
constexpr int kUGroupBytes = 2048;

// Where element (row, channel) of a matrix of 64-channel halves is, in bytes.
__device__ __forceinline__ int Swizzled(int row, int channel) {
  return (channel >> 6) * kHalfBytes + row * 128 + ((((channel >> 3) & 7) ^ (row & 7)) << 4) +
         (channel & 7) * 2;
}

struct Params {
  const bf16 *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  int q_group, k_group, v_group, g_group;  // value heads that share one head of each
  const float* g;
  int64_t g_stride;
  const float* beta;
  int64_t beta_stride;
  bf16* out;
  int64_t out_stride;
  float scale;
  int heads, sequences;
  const int32_t *offsets, *slots;
  const uint8_t* fresh;
  char* state;
  int64_t slot_stride_bytes;
  // The chunks of this launch among all of the batch, and their tiles, [chunk][head].
  int first_chunk, chunks;
  char* tiles;
};

// Chunk numbers of sequence s begin here: numbers are unique and may have gaps.
__host__ __device__ __forceinline__ int FirstChunk(const int32_t* offsets, int s) {
  return (offsets[s] - offsets[0]) / kChunk + s;
}

// The sequence that chunk number `chunk` may belong to, by a whole warp.
__device__ __forceinline__ int FindSequence(const Params& p, int chunk) {
  int s = 0;
  for (int i = 0; i < p.sequences; i += kWarp) {
    const int mine = i + static_cast<int>(threadIdx.x) % kWarp;
    const unsigned before =
        __ballot_sync(0xffffffffu, mine < p.sequences && FirstChunk(p.offsets, mine) <= chunk);
    s += __popc(before);
    if (before != 0xffffffffu) break;
  }
  return s - 1;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void LoadMatrices(uint32_t at, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void LoadTransposed(uint32_t at, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ uint32_t Transpose(uint32_t m) {
  uint32_t to;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(m));
  return to;
}

// c += a b, a [16][16], b [16][8] bf16.
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c += a b, a [16][8], b [8][8] tf32.
__device__ __forceinline__ void MmaTf32(float (&c)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t Tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// x in the lower half.
__device__ __forceinline__ uint32_t Pack(float x, float y) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
}
__device__ __forceinline__ float Low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float High(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ uint32_t MultiplyPairs(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                         *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// Launches over p.chunks chunks; `delta` as in RecurrenceArgs.
void PrepareChunks(const Params& p, bool delta, Stream stream);
void ScanChunks(const Params& p, bool delta, Stream stream);
// The same where HasWarpgroupScan; v has `tokens` rows.
bool HasWarpgroupScan();
void ScanChunksWarpgroup(const Params& p, bool delta, int64_t tokens, Stream stream);

}  // namespace weir::kernels::gpu::vector_chunk
