// The state-free half of the scalar-decay prefill (see chunk_scalar.cuh).
#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sm90/chunk_scalar.cuh"
#include "kernels/cuda/sm90/mma.cuh"
#include "kernels/cuda/sm90/tma.cuh"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace weir::kernels::gpu::sm90 {
namespace {

constexpr int kThreads = 128;
constexpr int kStride =
    68;  // floats between rows of M: conflict-free for MultiplyBlock, 16-byte rows
constexpr float kLog2E = 1.4426950408889634f;
// exp of this many log2 units is 0 in f32 already, so a gate below it acts the same, and sums stay
// exact enough (and finite) for the differences between later tokens.
constexpr float kLeastLog2 = -150.0f;
// Rows of T whose entries' sizes add up to more than this are kept, and computed, with more than 8
// bits.
constexpr float kLargeRow = 16.0f;

template <int kK, bool kDelta>
struct Shared {
  union {
    struct {
      uint8_t k[kK / 64 * kTileBytes], q[kK / 64 * kTileBytes];
    };
    struct {
      uint8_t record[2][(kDelta ? 2 : 1) * kRecordTile];  // one is copied out, one written
      alignas(16) float m[kDelta ? kChunk * kStride : 4];
    };
  };
  float log_decay[kMaxGroup][kChunk];  // running sums, log2
  float beta[kMaxGroup][kChunk];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The sequence that chunk slot `slot` belongs to: the last one that starts at or before it.
__device__ __forceinline__ int SequenceOfSlot(const ScalarChunkParams& p, int slot) {
  int low = 0, high = p.sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (p.offsets[middle] / kChunk + middle <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <int kK>
__device__ __forceinline__ void LoadRows(uint8_t* tiles, const bf16* from, int64_t row_stride,
                                         int length) {
  constexpr int kPieces = kK / 8;
  for (int i = threadIdx.x; i < kChunk * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool valid = row < length;
    CopyAsync16(tiles + piece / 8 * kTileBytes + TileOffset(row, piece % 8 * 8),
                from + (valid ? row * row_stride + piece * 8 : 0), valid);
  }
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// By one warp: running sums of the log decays (log2 units) and beta of value head h; what the
// record says of the gates.
__device__ __forceinline__ void LoadGates(const ScalarChunkParams& p, int h, int64_t t0, int length,
                                          float* log_decay, float* beta, float* gates) {
  const int lane = threadIdx.x % 32;
  float x[2], b[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    x[i] = p.g != nullptr && t < length ? p.g[(t0 + t) * p.g_row + h] : 0.0f;
    b[i] = p.beta != nullptr && t < length ? p.beta[(t0 + t) * p.beta_row + h] : 0.0f;
  }
  x[0] = fmaxf(x[0] * kLog2E, kLeastLog2);
  x[1] = fmaxf(x[1] * kLog2E, kLeastLog2) + x[0];
  float sum = x[1];
#pragma unroll
  for (int i = 1; i < 32; i *= 2) {
    const float before = __shfl_up_sync(0xffffffffu, sum, i);
    if (lane >= i) sum += before;
  }
  const float end = __shfl_sync(0xffffffffu, sum, 31);
  x[0] += sum - x[1];
  x[1] = sum;
  reinterpret_cast<float2*>(log_decay)[lane] = make_float2(x[0], x[1]);
  reinterpret_cast<float2*>(beta)[lane] = make_float2(b[0], b[1]);
  auto* to = reinterpret_cast<float2*>(gates) + lane;
  const float e0 = Exp2(x[0]), e1 = Exp2(x[1]);
  to[0] = make_float2(e0, e1);
  to[kChunk / 2] = make_float2(Exp2(end - x[0]), Exp2(end - x[1]));
  to[kChunk] = make_float2(e0 * p.scale, e1 * p.scale);
}

// The 16 x 16 unit lower triangle at m (strict lower part given), inverted in place by one warp:
// each of 16 lanes substitutes forward for one column, which is stable for any entries.
__device__ __forceinline__ void InvertDiagonal(float* m) {
  const int lane = threadIdx.x % 32;
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float row[16];
#pragma unroll
    for (int j = 0; j < i; j += 4) {
      const float4 four = *reinterpret_cast<const float4*>(m + i * kStride + j);
      row[j] = four.x, row[j + 1] = four.y, row[j + 2] = four.z, row[j + 3] = four.w;
    }
    float even = lane == i ? 1.0f : 0.0f, odd = 0.0f;
#pragma unroll
    for (int j = 0; j < i; ++j) {
      if (j % 2 == 0) {
        even = fmaf(-row[j], x[j], even);
      } else {
        odd = fmaf(-row[j], x[j], odd);
      }
    }
    x[i] = even + odd;
  }
  __syncwarp();
  if (lane < 16) {
#pragma unroll
    for (int i = 0; i < 16; ++i) m[i * kStride + lane] = x[i];
  }
}

// Block row `block` of T = (I + M)^-1 diag(beta), from M with its diagonal blocks inverted:
//   T[i, j] = -(sum over k = j + 1..i of T[i, k] M[k, j]) T[j, j].
template <bool kExact>
__device__ __forceinline__ void InverseRow(float (&t)[4][8], int block, const float* m,
                                           const float* beta) {
  const int lane = threadIdx.x % 32, row = lane / 4, pair = 2 * (lane % 4);
  const auto multiply = [](float(&d)[8], const float(&a)[8], const float* b) {
    if (kExact) {
      MultiplyBlockExactly(d, a, b, kStride);
    } else {
      MultiplyBlock(d, a, b, kStride);
    }
  };
#pragma unroll
  for (int j = 3; j >= 0; --j) {
    if (j > block) {
#pragma unroll
      for (int i = 0; i < 8; ++i) t[j][i] = 0.0f;
    } else if (j == block) {
      const float* at = m + (16 * block + row) * kStride + 16 * block + pair;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        t[j][4 * n] = at[8 * n], t[j][4 * n + 1] = at[8 * n + 1];
        t[j][4 * n + 2] = at[8 * kStride + 8 * n], t[j][4 * n + 3] = at[8 * kStride + 8 * n + 1];
      }
    } else {
      float sum[8] = {};
#pragma unroll
      for (int k = 3; k > 0; --k) {
        if (k > j && k <= block) multiply(sum, t[k], m + 16 * k * kStride + 16 * j);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sum[i] = -sum[i];
        t[j][i] = 0.0f;
      }
      multiply(t[j], sum, m + 16 * j * kStride + 16 * j);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float* b = beta + 16 * j + pair;
#pragma unroll
    for (int i = 0; i < 8; ++i) t[j][i] *= b[i / 4 * 8 + i % 2];
  }
}

// Row `block` of T to the tile, rounded; to the record what that lacks, where it matters.
__device__ __forceinline__ void StoreInverse(float (&t)[4][8], int block, const float* m,
                                             const float* beta, uint8_t* tile, uint8_t* record) {
  const int lane = threadIdx.x % 32, row = lane / 4, pair = 2 * (lane % 4);
  float sum[2] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 2 % 2] += fabsf(t[j][i]);
  }
  // The sum over a row bounds what its roundings do. Four lanes share it: if it is large, so is
  // one's part.
  const bool large = __any_sync(0xffffffffu, fmaxf(sum[0], sum[1]) > kLargeRow / 4);
  if (large) InverseRow<true>(t, block, m, beta);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const SplitPair s = Split(t[j][2 * i], t[j][2 * i + 1]);
      packed[i] = s.high;
      if (large) {
        *reinterpret_cast<uint32_t*>(
            record + RecordLoaded(true) +
            TileOffset(16 * block + row + i % 2 * 8, 16 * j + i / 2 * 8 + pair)) = s.low;
      }
    }
    const int matrix = lane / 8, r = 16 * block + matrix % 2 * 8 + lane % 8;
    StoreMatrices(SharedAddress(tile) + TileOffset(r, 16 * j + matrix / 2 * 8), packed[0],
                  packed[1], packed[2], packed[3]);
  }
  if (lane == 0) {
    reinterpret_cast<int*>(record + RecordGatesAt(true) + kRecordGates)[block] = large ? 1 : 0;
  }
}

// P as a bf16 tile and, for delta, M as floats, from the products with all keys of the chunk.
template <bool kDelta>
__device__ __forceinline__ void MaskProducts(const float (&qk)[32], const float (&kk)[32],
                                             float scale, const float* log_decay, const float* beta,
                                             uint8_t* p_tile, float* m) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = 16 * warp + lane / 4, pair = 2 * (lane % 4);
  const float g[2] = {log_decay[row], log_decay[row + 8]};
  float b[2] = {};
  if (kDelta) b[0] = beta[row], b[1] = beta[row + 8];
#pragma unroll
  for (int s = 0; s < 4; ++s) {  // 16 columns each
    uint32_t packed[4] = {};
    if (s <= warp) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int column = 16 * s + 8 * n + pair;
        const float2 gj = *reinterpret_cast<const float2*>(log_decay + column);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = row + 8 * r, at = 8 * s + 4 * n + 2 * r;
          const float d0 = column <= i ? Exp2(g[r] - gj.x) : 0.0f;
          const float d1 = column + 1 <= i ? Exp2(g[r] - gj.y) : 0.0f;
          packed[2 * n + r] = PackBf16(column <= i ? qk[at] * (d0 * scale) : 0.0f,
                                       column + 1 <= i ? qk[at + 1] * (d1 * scale) : 0.0f);
          if (kDelta) {
            *reinterpret_cast<float2*>(m + i * kStride + column) =
                make_float2(column < i ? kk[at] * (d0 * b[r]) : 0.0f,
                            column + 1 < i ? kk[at + 1] * (d1 * b[r]) : 0.0f);
          }
        }
      }
    }
    const int matrix = lane / 8, r = 16 * warp + (matrix % 2) * 8 + lane % 8;
    StoreMatrices(SharedAddress(p_tile) + TileOffset(r, 16 * s + (matrix / 2) * 8), packed[0],
                  packed[1], packed[2], packed[3]);
  }
}

#endif

template <int kK, bool kDelta>
__global__ void __launch_bounds__(kThreads, 3)
    PrepareKernel(const __grid_constant__ ScalarChunkParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<kK, kDelta>*>(shared_bytes);
  PdlWait();
  PdlLaunchDependents();
  const int slot = blockIdx.x;
  const int s = SequenceOfSlot(p, slot);
  const int begin = p.offsets[s], end = p.offsets[s + 1];
  const int64_t t0 = begin + int64_t{slot - (begin / kChunk + s)} * kChunk;
  if (t0 >= end || p.slots[s] < 0) return;
  const int length = static_cast<int>(min(int64_t{kChunk}, end - t0));
  const int h0 = blockIdx.y * p.group;

  LoadRows<kK>(shared.k, static_cast<const bf16*>(p.k) + t0 * p.k_row + h0 / p.per_k * kK, p.k_row,
               length);
  LoadRows<kK>(shared.q, static_cast<const bf16*>(p.q) + t0 * p.q_row + h0 / p.per_q * kK, p.q_row,
               length);
  constexpr int kTiles = RecordGatesAt(kDelta);
  constexpr int kRecord = RecordBytes(kDelta);
  uint8_t* records = p.records + (int64_t{slot} * p.heads + h0) * kRecord;
  const int warp = threadIdx.x / 32;
  if (warp < p.group) {
    LoadGates(p, h0 + warp, t0, length, shared.log_decay[warp], shared.beta[warp],
              reinterpret_cast<float*>(records + warp * kRecord + kTiles));
  }
  CopyAsyncWait();
  ProxyFence();
  __syncthreads();

  float qk[32], kk[32];
  MmaFence();
#pragma unroll
  for (int i = 0; i < kK / 16; ++i) {
    const int tile = i / 4 * kTileBytes;
    const uint64_t step = i % 4 * kRowTileStep;
    Mma(qk, RowTile(shared.q + tile) + step, RowTile(shared.k + tile) + step, i > 0);
    if (kDelta) Mma(kk, RowTile(shared.k + tile) + step, RowTile(shared.k + tile) + step, i > 0);
  }
  MmaCommit();
  MmaWait<0>();
  Pin(qk);
  if (kDelta) Pin(kk);
  __syncthreads();  // what follows overwrites the tiles

  for (int r = 0; r < p.group; ++r) {
    uint8_t* tiles = shared.record[r % 2];
    MaskProducts<kDelta>(qk, kk, p.scale, shared.log_decay[r], shared.beta[r], tiles, shared.m);
    if (kDelta) {
      __syncwarp();
      InvertDiagonal(shared.m + warp * 16 * (kStride + 1));
      __syncthreads();
      // The last row is the most work: not always on the same quarter of the multiprocessor.
      const int block = static_cast<int>((warp + blockIdx.x + blockIdx.y) % 4);
      float t[4][8];
      InverseRow<false>(t, block, shared.m, shared.beta[r]);
      StoreInverse(t, block, shared.m, shared.beta[r], tiles + kRecordTile, records + r * kRecord);
    }
    ProxyFence();
    if (threadIdx.x == 0) CopyOutWait();  // the other buffer is free
    __syncthreads();
    if (threadIdx.x == 0) CopyBytesOut(records + r * kRecord, tiles, kTiles);
  }
  if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

template <int kK, bool kDelta>
void LaunchPrepare(const ScalarChunkParams& p, int64_t chunk_slots, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = sizeof(Shared<kK, kDelta>);
  Launch("ScalarChunk prepare", stream, PrepareKernel<kK, kDelta>,
         dim3(static_cast<unsigned>(chunk_slots), static_cast<unsigned>(p.heads / p.group)),
         dim3(kThreads), options, p);
}

}  // namespace

void ScalarChunkPrepare(const ScalarChunkParams& p, int k_dim, int64_t chunk_slots, Stream stream) {
  const bool delta = p.beta != nullptr;
  if (k_dim == 128) {
    (delta ? LaunchPrepare<128, true> : LaunchPrepare<128, false>)(p, chunk_slots, stream);
  } else {
    (delta ? LaunchPrepare<64, true> : LaunchPrepare<64, false>)(p, chunk_slots, stream);
  }
}

}  // namespace weir::kernels::gpu::sm90
