// ScanChunks: a block for 64 rows of the state of one head of one sequence. Its warps have 16 rows
// each, in registers as the accumulators of m16n8 products, and share nothing but the operands.
#include "kernels/cuda/chunk_vector.cuh"

namespace weir::kernels::gpu::vector_chunk {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kRows = kWarps * 16;
constexpr int kTokenTiles = kChunk / 8, kChannelTiles = kDim / 8;

template <bool kDelta>
struct Stages {
  static constexpr int kTile = TileBytes(kDelta);
  // What goes to shared memory: Q, K, P, W, D, or Q, K, P, D and behind them this block's columns
  // of V.
  static constexpr int kFromTile = kDelta ? kTileU : kTile;
  static constexpr int kBytes = (kDelta ? kFromTile : kFromTile + kHalfBytes + 127) / 128 * 128;
  static constexpr int kCount = 2;
};

struct Scan {
  int64_t begin;          // first token
  int first_row;          // of the state
  int head, first, last;  // chunks of the sequence
  int tokens;             // of the sequence
  const char* tiles;      // tile of chunk `first`
  int64_t tile_stride;
};

template <bool kDelta>
__device__ __forceinline__ void LoadStage(const Params& p, const Scan& c, int chunk, char* stage) {
  using S = Stages<kDelta>;
  if (chunk < c.last) {
    const char* tile = c.tiles + (chunk - c.first) * c.tile_stride;
    const uint32_t to = SharedAddress(stage);
    for (int i = static_cast<int>(threadIdx.x) * 16; i < S::kFromTile; i += kThreads * 16) {
      CopyAsync(to + static_cast<uint32_t>(i), tile + i, true);
    }
    if constexpr (!kDelta) {
      const bf16* v = p.v + c.begin * p.v_stride + c.head / p.v_group * kDim + c.first_row;
      for (int i = static_cast<int>(threadIdx.x); i < kChunk * kRows / 8; i += kThreads) {
        const int row = i / (kRows / 8), channel = i % (kRows / 8) * 8;
        const int token = chunk * kChunk + row;
        const bool in = token < c.tokens;
        CopyAsync(to + static_cast<uint32_t>(S::kFromTile + Swizzled(row, channel)),
                  v + (in ? token : 0) * p.v_stride + channel, in);
      }
    }
  }
  CommitCopies();
}

// Lane addresses of ldmatrix: 16 rows from `row`, 16 channels from `channel`.
__device__ __forceinline__ uint32_t RowsOfA(int lane, int row, int channel) {
  return static_cast<uint32_t>(Swizzled(row + lane % 16, channel + lane / 16 * 8));
}
__device__ __forceinline__ uint32_t RowsOfB(int lane, int row, int channel) {
  return static_cast<uint32_t>(
      Swizzled(row + lane % 8 + lane / 16 * 8, channel + lane / 8 % 2 * 8));
}

// Two neighbouring tiles of accumulators as the left operand of the next product.
__device__ __forceinline__ void AsOperand(const float (&x)[4], const float (&y)[4],
                                          uint32_t (&a)[4]) {
  a[0] = Pack(x[0], x[1]), a[1] = Pack(x[2], x[3]);
  a[2] = Pack(y[0], y[1]), a[3] = Pack(y[2], y[3]);
}

using State = float[kChannelTiles][4];
using Tokens = float[kTokenTiles][4];  // [16 V rows][64 tokens]

// What one chunk does to a warp's rows: `out` gets O^T. `u` are U's numbers of this lane.
template <bool kDelta>
__device__ __forceinline__ void RunChunk(const char* stage, int warp, int lane,
                                         const uint4 (&u)[kTokenTiles / 2], State& state,
                                         Tokens& out) {
  using S = Stages<kDelta>;
  const uint32_t base = SharedAddress(stage);
  Tokens seen = {};
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
#pragma unroll
  for (int kk = 0; kk < kDim; kk += 16) {
    uint32_t a[4];
    AsOperand(state[kk / 8], state[kk / 8 + 1], a);
#pragma unroll
    for (int n = 0; n < kTokenTiles; n += 2) {
      uint32_t b[4];
      if constexpr (kDelta) {
        LoadMatrices(base + kTileW + RowsOfB(lane, n * 8, kk), b);
        Mma(seen[n], a, b[0], b[1]);
        Mma(seen[n + 1], a, b[2], b[3]);
      }
      LoadMatrices(base + kTileQ + RowsOfB(lane, n * 8, kk), b);
      Mma(out[n], a, b[0], b[1]);
      Mma(out[n + 1], a, b[2], b[3]);
    }
  }
  uint32_t v[kTokenTiles / 2][4];  // V'^T as the left operand
#pragma unroll
  for (int i = 0; i < kTokenTiles / 2; ++i) {
    if constexpr (kDelta) {
      const float x[4] = {Low(u[i].x) - seen[2 * i][0], High(u[i].x) - seen[2 * i][1],
                          Low(u[i].y) - seen[2 * i][2], High(u[i].y) - seen[2 * i][3]};
      const float y[4] = {Low(u[i].z) - seen[2 * i + 1][0], High(u[i].z) - seen[2 * i + 1][1],
                          Low(u[i].w) - seen[2 * i + 1][2], High(u[i].w) - seen[2 * i + 1][3]};
      AsOperand(x, y, v[i]);
    } else {
      LoadTransposed(base + S::kFromTile + RowsOfB(lane, i * 16, warp * 16), v[i]);
    }
  }
  const float2* decay = reinterpret_cast<const float2*>(stage + TileD(kDelta));
#pragma unroll
  for (int i = 0; i < kChannelTiles; ++i) {
    const float2 d = decay[i * 4 + lane % 4];
    state[i][0] *= d.x, state[i][1] *= d.y, state[i][2] *= d.x, state[i][3] *= d.y;
  }
#pragma unroll
  for (int s = 0; s < kTokenTiles / 2; ++s) {
#pragma unroll
    for (int n = 2 * s; n < kTokenTiles; n += 2) {
      uint32_t b[4];
      LoadMatrices(base + kTileP + RowsOfB(lane, n * 8, s * 16), b);
      Mma(out[n], v[s], b[0], b[1]);
      Mma(out[n + 1], v[s], b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < kChannelTiles; n += 2) {
      uint32_t b[4];
      LoadTransposed(base + kTileK + RowsOfA(lane, s * 16, n * 8), b);
      Mma(state[n], v[s], b[0], b[1]);
      Mma(state[n + 1], v[s], b[2], b[3]);
    }
  }
}

__device__ __forceinline__ void StoreOut(const Params& p, const Scan& c, int chunk, int warp,
                                         int lane, const Tokens& out) {
  bf16* at =
      p.out + c.begin * p.out_stride + c.head * kDim + c.first_row + warp * 16 + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    const uint32_t low = Transpose(Pack(out[n][0], out[n][1]));
    const uint32_t high = Transpose(Pack(out[n][2], out[n][3]));
    const int token = chunk * kChunk + n * 8 + lane / 4;
    if (token >= c.tokens) continue;
    *reinterpret_cast<uint32_t*>(at + token * p.out_stride) = low;
    *reinterpret_cast<uint32_t*>(at + token * p.out_stride + 8) = high;
  }
}

// The state's rows of a warp; a lane has two neighbouring channels of rows g and g + 8.
template <typename Fn>
__device__ __forceinline__ void ForState(const Params& p, const Scan& c, int slot, int warp,
                                         int lane, const Fn& fn) {
  float* at = reinterpret_cast<float*>(p.state + slot * p.slot_stride_bytes) +
              (int64_t{c.head} * kDim + c.first_row + warp * 16 + lane / 4) * kDim + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kChannelTiles; ++i) {
    fn(i, reinterpret_cast<float2*>(at + i * 8), reinterpret_cast<float2*>(at + 8 * kDim + i * 8));
  }
}

// A run of a sequence without a slot.
__device__ __forceinline__ void ZeroOut(const Params& p, const Scan& c) {
  for (int i = static_cast<int>(threadIdx.x); i < c.tokens * kRows / 2; i += kThreads) {
    bf16* at = p.out + (c.begin + i / (kRows / 2)) * p.out_stride + c.head * kDim + c.first_row;
    reinterpret_cast<uint32_t*>(at)[i % (kRows / 2)] = 0;
  }
}

template <bool kDelta>
__global__ void __launch_bounds__(kThreads, 1) ScanKernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) char shared[];
  using S = Stages<kDelta>;
  PdlLaunchDependents();
  PdlWait();
  const int s = static_cast<int>(blockIdx.z), slot = p.slots[s];
  Scan c;
  c.begin = p.offsets[s];
  c.tokens = static_cast<int>(p.offsets[s + 1] - c.begin);
  c.head = static_cast<int>(blockIdx.y);
  c.first_row = static_cast<int>(blockIdx.x) * kRows;
  if (slot < 0) {
    if (p.first_chunk == 0) ZeroOut(p, c);
    return;
  }
  const int number = FirstChunk(p.offsets, s);
  c.first = max(0, p.first_chunk - number);
  c.last = min((c.tokens + kChunk - 1) / kChunk, p.first_chunk + p.chunks - number);
  if (c.first >= c.last) return;
  c.tile_stride = int64_t{p.heads} * S::kTile;
  c.tiles = p.tiles + (number + c.first - p.first_chunk) * c.tile_stride + c.head * S::kTile;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < S::kCount - 1; ++i) {
    LoadStage<kDelta>(p, c, c.first + i, shared + i * S::kBytes);
  }
  State state;
  const bool fresh = c.first == 0 && p.fresh[s] != 0;
  ForState(p, c, slot, warp, lane, [&](int i, const float2* low, const float2* high) {
    const float2 x = fresh ? float2{0.0f, 0.0f} : *low, y = fresh ? float2{0.0f, 0.0f} : *high;
    state[i][0] = x.x, state[i][1] = x.y, state[i][2] = y.x, state[i][3] = y.y;
  });
  const char* u_at =
      c.tiles + kTileU + (c.first_row / 16 + warp) * kUGroupBytes + lane * sizeof(uint4);
  uint4 u[kTokenTiles / 2] = {}, next[kTokenTiles / 2] = {};
  const auto load_u = [&](int chunk, uint4(&to)[kTokenTiles / 2]) {
#pragma unroll
    for (int i = 0; i < kTokenTiles / 2; ++i) {
      to[i] = *reinterpret_cast<const uint4*>(u_at + (chunk - c.first) * c.tile_stride +
                                              i * kWarp * static_cast<int>(sizeof(uint4)));
    }
  };
  if constexpr (kDelta) load_u(c.first, next);
  int stage = 0;
  for (int chunk = c.first; chunk < c.last; ++chunk) {
    WaitForCopies<S::kCount - 2>();
    __syncthreads();
    const int loaded = stage == 0 ? S::kCount - 1 : stage - 1;
    LoadStage<kDelta>(p, c, chunk + S::kCount - 1, shared + loaded * S::kBytes);
    if constexpr (kDelta) {
#pragma unroll
      for (int i = 0; i < kTokenTiles / 2; ++i) u[i] = next[i];
      if (chunk + 1 < c.last) load_u(chunk + 1, next);
    }
    Tokens out;
    RunChunk<kDelta>(shared + stage * S::kBytes, warp, lane, u, state, out);
    StoreOut(p, c, chunk, warp, lane, out);
    stage = stage + 1 == S::kCount ? 0 : stage + 1;
  }
  ForState(p, c, slot, warp, lane, [&](int i, float2* low, float2* high) {
    *low = {state[i][0], state[i][1]};
    *high = {state[i][2], state[i][3]};
  });
}

template <bool kDelta>
void LaunchScan(const Params& p, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = static_cast<size_t>(Stages<kDelta>::kCount) * Stages<kDelta>::kBytes;
  Launch("recurrence_chunk_scan", stream, ScanKernel<kDelta>,
         dim3(kDim / kRows, static_cast<unsigned>(p.heads), static_cast<unsigned>(p.sequences)),
         dim3(kThreads), options, p);
}

}  // namespace

void ScanChunks(const Params& p, bool delta, Stream stream) {
  if (delta) {
    LaunchScan<true>(p, stream);
  } else {
    LaunchScan<false>(p, stream);
  }
}

}  // namespace weir::kernels::gpu::vector_chunk
