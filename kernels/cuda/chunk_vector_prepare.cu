// PrepareChunks: a block for each chunk and head. Every 64 threads scale one 16-token block of the
// chunk, two channels each; the products then go to warps as 16x16 blocks.
#include "kernels/cuda/chunk_vector.cuh"

namespace weir::kernels::gpu::vector_chunk {
namespace {

constexpr int kThreads = 256, kBlocks = kChunk / kBlock;
constexpr int kBlockPairs = kBlocks * (kBlocks + 1) / 2;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMaxSpan = 60.0f * kLog2E;  // of the log decays of a block, in octaves

// Shared memory, in bytes. The raw q and k arrive where what is made of them goes, and a later step
// puts its operands over an earlier one's.
template <bool kDelta>
struct Layout {
  static constexpr int kQDown = 0;                                 // q E(G - G_start)
  static constexpr int kKDown = kMatrixBytes;                      // k E(G - G_start), delta
  static constexpr int kKUp = kDelta ? 2 * kMatrixBytes : kKDown;  // k E(G_start - G)
  static constexpr int kKEnd = kKUp + kMatrixBytes;                // k E(G_end - G), 48 rows
  static constexpr int kTotals = kKEnd + (kChunk - kBlock) * 128;  // sums of a block's decays
  static constexpr int kRawK = kKDown;
  static constexpr int kM = kKEnd + kMatrixBytes;  // M, blocks (BlockAt)
  static constexpr int kBeta = kDelta ? kM + kBlockPairs * kBlock * kBlock * 4 : kM;
  static constexpr int kWide = kBeta + kChunk * 4;  // by warp
  static constexpr int kBytes = kWide + kThreads / kWarp * 4;
};
// What the delta rule puts over operands that have been used.
struct Inverse : Layout<true> {
  static constexpr int kT = kQDown;                  // (1 + M)^-1, blocks
  static constexpr int kTBeta = kKEnd + kHalfBytes;  // T, bf16 [64][64]
  static constexpr int kV = kKUp;
  static constexpr int kW = kQDown;
};
static_assert(kBlocks * kDim * 4 <= kBlock * 128);

// f32 blocks on and below the diagonal, one after the other; an element's columns are permuted so
// that the lanes of a product meet different banks.
__device__ __forceinline__ int BlockAt(int r, int s) {
  return (r * (r + 1) / 2 + s) * kBlock * kBlock;
}
__device__ __forceinline__ int InBlock(int i, int j) {
  return i * kBlock + (j ^ ((i >> 1 & 3) << 2));
}

// What a block works on.
struct Chunk {
  int64_t t0;
  int count, head;  // tokens
  char* tile;
};

struct Lane {
  int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  int group = lane / 4, pair = lane % 4 * 2;  // row and first column in an m16n8 product
};

// 64 rows of 128 channels, zeros beyond the chunk's tokens.
__device__ __forceinline__ void LoadRows(const bf16* from, int64_t stride, int count, char* to) {
  const uint32_t at = SharedAddress(to);
#pragma unroll
  for (int n = 0; n < kChunk * kDim / 8 / kThreads; ++n) {
    const int i = n * kThreads + static_cast<int>(threadIdx.x);
    const int row = i / (kDim / 8), channel = i % (kDim / 8) * 8;
    const bool in = row < count;
    CopyAsync(at + static_cast<uint32_t>(Swizzled(row, channel)),
              from + (in ? row : 0) * stride + channel, in);
  }
}

// Scales the rows of this thread's block and hands them on.
template <bool kDelta>
__device__ __forceinline__ void ScaleBlock(const Params& p, const Chunk& c, char* shared) {
  using L = Layout<kDelta>;
  LoadRows(p.q + c.t0 * p.q_stride + c.head / p.q_group * kDim, p.q_stride, c.count,
           shared + L::kQDown);
  LoadRows(p.k + c.t0 * p.k_stride + c.head / p.k_group * kDim, p.k_stride, c.count,
           shared + L::kRawK);
  CommitCopies();
  const int block = static_cast<int>(threadIdx.x) / 64;
  const int channel = static_cast<int>(threadIdx.x) % 64 * 2, first = block * kBlock;
  const float* g_at = p.g + c.t0 * p.g_stride + c.head / p.g_group * kDim + channel;
  float2 g[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const int row = first + i;
    g[i] = row < c.count ? *reinterpret_cast<const float2*>(g_at + row * p.g_stride)
                         : float2{0.0f, 0.0f};
  }
  float* beta = reinterpret_cast<float*>(shared + L::kBeta);
  if (kDelta && threadIdx.x < kChunk) {
    const int row = static_cast<int>(threadIdx.x);
    beta[row] = row < c.count ? p.beta[(c.t0 + row) * p.beta_stride + c.head] : 0.0f;
  }
  float2 total = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    g[i].x *= kLog2E, g[i].y *= kLog2E;
    total.x += g[i].x, total.y += g[i].y;
  }
  float2* totals = reinterpret_cast<float2*>(shared + L::kTotals);
  totals[(block * kDim + channel) / 2] = total;
  const bool wide = __any_sync(0xffffffffu, fminf(total.x, total.y) < -kMaxSpan);
  if (threadIdx.x % kWarp == 0) {
    reinterpret_cast<int*>(shared + L::kWide)[threadIdx.x / kWarp] = wide;
  }
  WaitForCopies<0>();
  __syncthreads();
  float2 before = {0.0f, 0.0f}, after = {0.0f, 0.0f};
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const float2 other = totals[(b * kDim + channel) / 2];
    if (b < block) before.x += other.x, before.y += other.y;
    if (b > block) after.x += other.x, after.y += other.y;
  }
  const float2 from_start = {Exp2(before.x), Exp2(before.y)};
  const float2 to_end = {Exp2(after.x), Exp2(after.y)};
  if (block == kBlocks - 1) {
    reinterpret_cast<float2*>(c.tile + TileD(kDelta))[channel / 2] = {Exp2(before.x + total.x),
                                                                      Exp2(before.y + total.y)};
  }
  const auto word = [&](int base, int at) {
    return reinterpret_cast<uint32_t*>(shared + base + at);
  };
  // From behind: differences of running sums would not do, they may be infinite.
  float2 sum = {0.0f, 0.0f};
#pragma unroll
  for (int i = kBlock - 1; i >= 0; --i) {
    const int at = Swizzled(first + i, channel);
    const uint32_t k = *word(L::kRawK, at);
    const float2 key = {Low(k) * Exp2(sum.x), High(k) * Exp2(sum.y)};
    if (block < kBlocks - 1) *word(L::kKEnd, at) = Pack(key.x, key.y);
    *reinterpret_cast<uint32_t*>(c.tile + kTileK + at) = Pack(key.x * to_end.x, key.y * to_end.y);
    sum.x += g[i].x, sum.y += g[i].y;
  }
  sum = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    sum.x += g[i].x, sum.y += g[i].y;
    const int at = Swizzled(first + i, channel);
    const uint32_t q = *word(L::kQDown, at), k = *word(L::kRawK, at);
    const float2 down = {Exp2(sum.x), Exp2(sum.y)};
    const float2 query = {Low(q) * p.scale * down.x, High(q) * p.scale * down.y};
    *word(L::kQDown, at) = Pack(query.x, query.y);
    *reinterpret_cast<uint32_t*>(c.tile + kTileQ + at) =
        Pack(query.x * from_start.x, query.y * from_start.y);
    *word(L::kKUp, at) = Pack(Low(k) * Exp2(-sum.x), High(k) * Exp2(-sum.y));
    if constexpr (kDelta) *word(L::kKDown, at) = Pack(Low(k) * down.x, High(k) * down.y);
  }
}

// Where a warp's lane points ldmatrix: 16 rows from `row`, 16 channels from `channel`.
__device__ __forceinline__ int RowsOfA(const Lane& l, int row, int channel) {
  return Swizzled(row + l.lane % 16, channel + l.lane / 16 * 8);
}
__device__ __forceinline__ int RowsOfB(const Lane& l, int row, int channel) {
  return Swizzled(row + l.lane % 8 + l.lane / 16 * 8, channel + l.lane / 8 % 2 * 8);
}

// Block (r, s) of q k^T or k k^T with the decays between, before masking.
template <bool kDelta>
__device__ __forceinline__ void BlockProduct(char* shared, const Lane& l, bool keys, int r, int s,
                                             float (&sums)[2][4]) {
  using L = Layout<kDelta>;
  const uint32_t a_at = SharedAddress(shared + (keys ? L::kKDown : L::kQDown));
  const uint32_t b_at = SharedAddress(shared + (r == s ? L::kKUp : L::kKEnd));
  const float2* totals = reinterpret_cast<const float2*>(shared + L::kTotals);
#pragma unroll
  for (int kk = 0; kk < kDim; kk += 16) {
    uint32_t a[4], b[4];
    LoadMatrices(a_at + static_cast<uint32_t>(RowsOfA(l, r * kBlock, kk)), a);
    LoadMatrices(b_at + static_cast<uint32_t>(RowsOfB(l, s * kBlock, kk)), b);
    if (r > s + 1) {  // the decay of the blocks between
      float2 low = {0.0f, 0.0f}, high = {0.0f, 0.0f};
      for (int m = s + 1; m < r; ++m) {
        const float2 x = totals[(m * kDim + kk + l.pair) / 2];
        const float2 y = totals[(m * kDim + kk + 8 + l.pair) / 2];
        low.x += x.x, low.y += x.y, high.x += y.x, high.y += y.y;
      }
      const uint32_t low_pair = Pack(Exp2(low.x), Exp2(low.y));
      const uint32_t high_pair = Pack(Exp2(high.x), Exp2(high.y));
      b[0] = MultiplyPairs(b[0], low_pair), b[1] = MultiplyPairs(b[1], high_pair);
      b[2] = MultiplyPairs(b[2], low_pair), b[3] = MultiplyPairs(b[3], high_pair);
    }
    Mma(sums[0], a, b[0], b[1]);
    Mma(sums[1], a, b[2], b[3]);
  }
}

__device__ __forceinline__ void StoreP(const Chunk& c, int row, int column, float x, float y) {
  *reinterpret_cast<uint32_t*>(c.tile + kTileP + Swizzled(row, column)) = Pack(x, y);
}

// A diagonal block whose decays span too much for a product: element by element, a lane for 4
// channels.
__device__ __noinline__ void ExactBlock(const Params& p, const Chunk c, const float* beta,
                                        bool keys, int block, float* m) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, channel = lane * 4;
  const bf16* k_at = p.k + c.t0 * p.k_stride + c.head / p.k_group * kDim + channel;
  const bf16* x_at = keys ? k_at : p.q + c.t0 * p.q_stride + c.head / p.q_group * kDim + channel;
  const int64_t x_stride = keys ? p.k_stride : p.q_stride;
  const float* g_at = p.g + c.t0 * p.g_stride + c.head / p.g_group * kDim + channel;
  for (int j = 0; j < kBlock; ++j) {
    const int64_t column = block * kBlock + j;
    float key[4] = {}, sum[4] = {};
    if (column < c.count) {
      for (int i = 0; i < 4; ++i) key[i] = Load(k_at + column * p.k_stride + i);
    }
    for (int i = 0; i < kBlock; ++i) {
      const int64_t row = block * kBlock + i;
      float product = 0.0f;
      if (i >= j && row < c.count) {
        for (int n = 0; n < 4; ++n) {
          if (i > j) sum[n] += g_at[row * p.g_stride + n] * kLog2E;
          product += Load(x_at + row * x_stride + n) * key[n] * Exp2(sum[n]);
        }
      }
      product = WarpSum(product);
      if (lane != 0) continue;
      if (keys) {
        m[BlockAt(block, block) + InBlock(i, j)] = i > j ? beta[row] * product : 0.0f;
      } else {
        Store(reinterpret_cast<bf16*>(c.tile + kTileP +
                                      Swizzled(static_cast<int>(row), static_cast<int>(column))),
              p.scale * product);
      }
    }
  }
}

// P to the tile and M to shared memory, both masked. Blocks above the diagonal of P are zeros,
// those of M are not written.
template <bool kDelta>
__device__ __forceinline__ void Products(const Params& p, const Chunk& c, char* shared,
                                         const Lane& l) {
  using L = Layout<kDelta>;
  float* m = kDelta ? reinterpret_cast<float*>(shared + L::kM) : nullptr;
  const float* beta = reinterpret_cast<const float*>(shared + L::kBeta);
  const int* wide = reinterpret_cast<const int*>(shared + L::kWide);
  constexpr int kKinds = kDelta ? 2 : 1;
  for (int task = l.warp; task < kBlockPairs * kKinds; task += kThreads / kWarp) {
    const bool keys = kDelta && task % 2 == 1;
    int r = 0, s = task / kKinds;
    while (s > r) s -= ++r;
    if (r == s && (wide[2 * r] | wide[2 * r + 1]) != 0) {
      ExactBlock(p, c, beta, keys, r, m);
      continue;
    }
    float sums[2][4] = {};
    BlockProduct<kDelta>(shared, l, keys, r, s, sums);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = l.group + half * 8, j = n * 8 + l.pair;
        float x = sums[n][half * 2], y = sums[n][half * 2 + 1];
        const int row = r * kBlock + i, column = s * kBlock + j;
        if (r == s) {
          const int last = keys ? i - 1 : i;
          x = j <= last ? x : 0.0f;
          y = j + 1 <= last ? y : 0.0f;
        }
        if (keys) {
          *reinterpret_cast<float2*>(m + BlockAt(r, s) + InBlock(i, j)) = {beta[row] * x,
                                                                           beta[row] * y};
        } else {
          StoreP(c, row, column, x, y);
        }
      }
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * 8; i += kThreads) {
    const int row = i / 8, column = i % 8 * 8;
    if (column / kBlock > row / kBlock) {
      *reinterpret_cast<uint4*>(c.tile + kTileP + Swizzled(row, column)) = {0, 0, 0, 0};
    }
  }
}

// Column `lane` of the inverse of 1 + m, a block on M's diagonal.
__device__ __forceinline__ void InvertBlock(const float* m, float* t, int lane) {
  float x[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    float sum[2] = {i == lane ? 1.0f : 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < i; ++j) sum[j % 2] = fmaf(-m[InBlock(i, j)], x[j], sum[j % 2]);
    x[i] = sum[0] + sum[1];
  }
  if (lane < kBlock) {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) t[InBlock(i, lane)] = x[i];
  }
}

// sums += a b for blocks in shared memory.
__device__ __forceinline__ void BlockTf32(const float* a, const float* b, const Lane& l,
                                          float (&sums)[2][4]) {
  const int column = l.lane % 4;
#pragma unroll
  for (int kk = 0; kk < kBlock; kk += 8) {
    const uint32_t left[4] = {
        Tf32(a[InBlock(l.group, kk + column)]), Tf32(a[InBlock(l.group + 8, kk + column)]),
        Tf32(a[InBlock(l.group, kk + column + 4)]), Tf32(a[InBlock(l.group + 8, kk + column + 4)])};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t right[2] = {Tf32(b[InBlock(kk + column, n * 8 + l.group)]),
                                 Tf32(b[InBlock(kk + column + 4, n * 8 + l.group)])};
      MmaTf32(sums[n], left, right);
    }
  }
}
__device__ __forceinline__ void StoreBlock(float* to, const Lane& l, float sign,
                                           const float (&sums)[2][4]) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    *reinterpret_cast<float2*>(to + InBlock(l.group, n * 8 + l.pair)) = {sign * sums[n][0],
                                                                         sign * sums[n][1]};
    *reinterpret_cast<float2*>(to + InBlock(l.group + 8, n * 8 + l.pair)) = {sign * sums[n][2],
                                                                             sign * sums[n][3]};
  }
}

// T(r, s) = -T(r, r) sum over s <= n < r of M(r, n) T(n, s), distance by distance.
__device__ __forceinline__ void Invert(const float* m, float* t, const Lane& l) {
  if (l.warp < kBlocks) {
    const int at = BlockAt(l.warp, l.warp);
    InvertBlock(m + at, t + at, l.lane);
  }
  __syncthreads();
  for (int distance = 1; distance < kBlocks; ++distance) {
    const int s = l.warp, r = s + distance;
    if (r < kBlocks) {
      float* to = t + BlockAt(r, s);
      float sums[2][4] = {};
      for (int n = s; n < r; ++n) BlockTf32(m + BlockAt(r, n), t + BlockAt(n, s), l, sums);
      StoreBlock(to, l, 1.0f, sums);
      __syncwarp();
      float product[2][4] = {};
      BlockTf32(t + BlockAt(r, r), to, l, product);
      __syncwarp();
      StoreBlock(to, l, -1.0f, product);
    }
    __syncthreads();
  }
}

// T diag(beta) as bf16; blocks above the diagonal are not written.
__device__ __forceinline__ void RoundT(const float* t, const float* beta, char* to) {
  constexpr int kPairsOfBlock = kBlock * kBlock / 2;
  for (int i = static_cast<int>(threadIdx.x); i < kBlockPairs * kPairsOfBlock; i += kThreads) {
    int r = 0, s = i / kPairsOfBlock;
    while (s > r) s -= ++r;
    const int row = i % kPairsOfBlock / (kBlock / 2), column = i % (kBlock / 2) * 2;
    const float2 x = *reinterpret_cast<const float2*>(t + BlockAt(r, s) + InBlock(row, column));
    const float* scale = beta + s * kBlock + column;
    *reinterpret_cast<uint32_t*>(to + Swizzled(r * kBlock + row, s * kBlock + column)) =
        Pack(x.x * scale[0], x.y * scale[1]);
  }
}

// W = T K, with K = k E(G): warp w has the channels [16 w, 16 w + 16).
__device__ __forceinline__ void MultiplyKeys(char* shared, const Lane& l) {
  using L = Inverse;
  const uint32_t t_at = SharedAddress(shared + L::kTBeta);
  const uint32_t k_at = SharedAddress(shared + L::kKDown);
  const float* totals = reinterpret_cast<const float*>(shared + L::kTotals) + l.warp * 16 + l.group;
  float w[kBlocks][2][4] = {};
  float2 before = {0.0f, 0.0f};  // of channels group and group + 8
#pragma unroll
  for (int s = 0; s < kBlocks; ++s) {
    uint32_t k[4];
    LoadTransposed(k_at + static_cast<uint32_t>(RowsOfA(l, s * kBlock, l.warp * 16)), k);
    if (s > 0) {
      before.x += totals[(s - 1) * kDim], before.y += totals[(s - 1) * kDim + 8];
      const float low = Exp2(before.x), high = Exp2(before.y);
      k[0] = MultiplyPairs(k[0], Pack(low, low)), k[1] = MultiplyPairs(k[1], Pack(low, low));
      k[2] = MultiplyPairs(k[2], Pack(high, high)), k[3] = MultiplyPairs(k[3], Pack(high, high));
    }
#pragma unroll
    for (int r = s; r < kBlocks; ++r) {
      uint32_t t[4];
      LoadMatrices(t_at + static_cast<uint32_t>(RowsOfA(l, r * kBlock, s * kBlock)), t);
      Mma(w[r][0], t, k[0], k[1]);
      Mma(w[r][1], t, k[2], k[3]);
    }
  }
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int row = r * kBlock + l.group, channel = l.warp * 16 + n * 8 + l.pair;
      *reinterpret_cast<uint32_t*>(shared + L::kW + Swizzled(row, channel)) =
          Pack(w[r][n][0], w[r][n][1]);
      *reinterpret_cast<uint32_t*>(shared + L::kW + Swizzled(row + 8, channel)) =
          Pack(w[r][n][2], w[r][n][3]);
    }
  }
}

// U^T = V^T T^T, likewise.
__device__ __forceinline__ void MultiplyValues(const Chunk& c, char* shared, const Lane& l) {
  using L = Inverse;
  const uint32_t t_at = SharedAddress(shared + L::kTBeta);
  const uint32_t v_at = SharedAddress(shared + L::kV);
  float u[2 * kBlocks][4] = {};
#pragma unroll
  for (int s = 0; s < kBlocks; ++s) {
    uint32_t v[4];
    LoadTransposed(v_at + static_cast<uint32_t>(RowsOfB(l, s * kBlock, l.warp * 16)), v);
#pragma unroll
    for (int r = s; r < kBlocks; ++r) {
      uint32_t t[4];
      LoadMatrices(t_at + static_cast<uint32_t>(RowsOfA(l, r * kBlock, s * kBlock)), t);
      Mma(u[2 * r], v, t[0], t[2]);
      Mma(u[2 * r + 1], v, t[1], t[3]);
    }
  }
  uint4* u_at = reinterpret_cast<uint4*>(c.tile + kTileU + l.warp * kUGroupBytes);
#pragma unroll
  for (int r = 0; r < kBlocks; ++r) {
    const float(&x)[4] = u[2 * r], (&y)[4] = u[2 * r + 1];
    u_at[r * kWarp + l.lane] = {Pack(x[0], x[1]), Pack(x[2], x[3]), Pack(y[0], y[1]),
                                Pack(y[2], y[3])};
  }
}

template <bool kDelta>
__global__ void __launch_bounds__(kThreads, 3) PrepareKernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) char shared[];
  using L = Layout<kDelta>;
  PdlLaunchDependents();
  PdlWait();
  const int number = p.first_chunk + static_cast<int>(blockIdx.y);
  const int s = FindSequence(p, number);
  const int begin = p.offsets[s] + (number - FirstChunk(p.offsets, s)) * kChunk;
  const int end = p.offsets[s + 1];
  if (begin >= end || p.slots[s] < 0) return;
  Chunk c;
  c.t0 = begin;
  c.count = min(end - begin, kChunk);
  c.head = static_cast<int>(blockIdx.x);
  c.tile = p.tiles + (int64_t{blockIdx.y} * p.heads + c.head) * (TileBytes(kDelta));
  const Lane l;
  ScaleBlock<kDelta>(p, c, shared);
  __syncthreads();
  Products<kDelta>(p, c, shared, l);
  if constexpr (kDelta) {
    __syncthreads();
    LoadRows(p.v + c.t0 * p.v_stride + c.head / p.v_group * kDim, p.v_stride, c.count,
             shared + Inverse::kV);
    CommitCopies();
    float* t = reinterpret_cast<float*>(shared + Inverse::kT);
    Invert(reinterpret_cast<const float*>(shared + L::kM), t, l);
    RoundT(t, reinterpret_cast<const float*>(shared + L::kBeta), shared + Inverse::kTBeta);
    WaitForCopies<0>();
    __syncthreads();
    MultiplyKeys(shared, l);
    MultiplyValues(c, shared, l);
    __syncthreads();
    const uint4* from = reinterpret_cast<const uint4*>(shared + Inverse::kW);
    uint4* to = reinterpret_cast<uint4*>(c.tile + kTileW);
    for (int i = static_cast<int>(threadIdx.x); i < kMatrixBytes / 16; i += kThreads) {
      to[i] = from[i];
    }
  }
}

template <bool kDelta>
void LaunchPrepare(const Params& p, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = Layout<kDelta>::kBytes;
  Launch("recurrence_chunk_prepare", stream, PrepareKernel<kDelta>,
         dim3(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.chunks)), dim3(kThreads),
         options, p);
}

}  // namespace

void PrepareChunks(const Params& p, bool delta, Stream stream) {
  if (delta) {
    LaunchPrepare<true>(p, stream);
  } else {
    LaunchPrepare<false>(p, stream);
  }
}

}  // namespace weir::kernels::gpu::vector_chunk
