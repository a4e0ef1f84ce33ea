// ScanChunks on Hopper: a warpgroup for 64 rows of the state of one head of one sequence, the state
// in its accumulators and, rounded, its register operand. A producer warp fetches the tiles.
#include "kernels/cuda/chunk_vector.cuh"
#include "kernels/cuda/sm90/mma.cuh"
#include "kernels/cuda/sm90/tma.cuh"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace weir::kernels::gpu::vector_chunk {
namespace {

constexpr int kGroup = 128, kRows = 64;  // threads and state rows of a warpgroup
[[maybe_unused]] constexpr int kMaxStages = 3;
// Two consumers of 240 registers and a producer of 24 fill the register file; one consumer has 255
// anyway.
[[maybe_unused]] constexpr int kConsumerRegisters = 240, kProducerRegisters = 24;
constexpr int Threads(int groups) { return groups * kGroup + (groups == 1 ? kWarp : kGroup); }

// Shared memory of a stage: the tile up to D, then for each warpgroup its part of U, or V.
template <bool kDelta, int kGroups>
struct Stage {
  static constexpr int kFromTile = TileD(kDelta) + kDim * 4;
  static constexpr int kValues = (kFromTile + 1023) / 1024 * 1024;
  static constexpr int kBytes = kValues + kGroups * kHalfBytes;
  static constexpr int kStages = kGroups == 1 ? 3 : 2;
  // Behind the stages: two tiles of output for each warpgroup.
  static constexpr int kOut = kStages * kBytes;
  static constexpr int kTotal = kOut + kGroups * 2 * kHalfBytes;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using sm90::BarrierArrive;
using sm90::BarrierWait;
using sm90::Pin;

struct Item {
  int64_t begin;        // first token of the sequence
  int tokens;           // of the sequence
  int head, first_row;  // rows of the state
  int first, last;      // chunks of the sequence
  const char* tiles;    // the tile of chunk `first`
  int64_t tile_stride;
};

template <bool kDelta, int kGroups>
__device__ __forceinline__ void Produce(const Params& p, const Item& item, const CUtensorMap* v_map,
                                        char* shared, uint64_t* full, uint64_t* empty) {
  using S = Stage<kDelta, kGroups>;
  int stage = 0, round = 0;
  for (int c = item.first; c < item.last; ++c) {
    if (round > 0) BarrierWait(&empty[stage], (round - 1) & 1);
    char* to = shared + stage * S::kBytes;
    sm90::BarrierArriveExpect(&full[stage], S::kFromTile + kGroups * kHalfBytes);
    const char* tile = item.tiles + (c - item.first) * item.tile_stride;
    sm90::CopyBytes(to, tile, S::kFromTile, &full[stage]);
    if constexpr (kDelta) {
      sm90::CopyBytes(to + S::kValues, tile + kTileU + item.first_row / 16 * kUGroupBytes,
                      kGroups * kHalfBytes, &full[stage]);
    } else {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        sm90::CopyTile(to + S::kValues + i * kHalfBytes, v_map,
                       item.head / p.v_group * kDim + item.first_row + i * kRows,
                       static_cast<int>(item.begin) + c * kChunk, &full[stage]);
      }
    }
    if (++stage == S::kStages) stage = 0, ++round;
  }
}

// V^T as the left operand; tokens beyond `count` belong to others and may be anything.
__device__ __forceinline__ void LoadValues(uint32_t (&v)[16], const char* tile, int count) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp % 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    uint32_t r[4];
    LoadTransposed(
        SharedAddress(tile) + static_cast<uint32_t>(Swizzled(16 * s + lane % 8 + lane / 16 * 8,
                                                             16 * warp + lane / 8 % 2 * 8)),
        r);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[4 * s + i] = r[i];
  }
  if (count < kChunk) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int t = 16 * (i / 4) + i % 4 / 2 * 8 + 2 * (lane % 4);
      v[i] = t + 1 < count ? v[i] : t < count ? v[i] & 0xffffu : 0u;
    }
  }
}

// U^T - x as the left operand.
__device__ __forceinline__ void Subtract(uint32_t (&v)[16], const char* u, const float (&x)[32]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp % 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint4* at = reinterpret_cast<const uint4*>(u + warp * kUGroupBytes) + lane;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint4 values = at[i * kWarp];
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* seen = x + 8 * i + 2 * j;
      v[4 * i + j] = Pack(Low(words[j]) - seen[0], High(words[j]) - seen[1]);
    }
  }
}

// 64 tokens x 64 values through shared memory, then whole rows to global memory.
__device__ __forceinline__ void StoreOut(const float (&o)[32], char* tile, int barrier, bf16* out,
                                         int64_t stride, int count) {
  const int thread = static_cast<int>(threadIdx.x) % kGroup, warp = thread / kWarp;
  const int lane = thread % kWarp;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const float* x = o + 8 * s;
    sm90::StoreMatricesTransposed(
        SharedAddress(tile) + static_cast<uint32_t>(Swizzled(16 * s + lane % 8 + lane / 16 * 8,
                                                             16 * warp + lane / 8 % 2 * 8)),
        Pack(x[0], x[1]), Pack(x[2], x[3]), Pack(x[4], x[5]), Pack(x[6], x[7]));
  }
  sm90::NamedBarrier(barrier, kGroup);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 16 * i, piece = thread % 8;
    const uint4 x = *reinterpret_cast<const uint4*>(tile + Swizzled(row, piece * 8));
    if (row < count) *reinterpret_cast<uint4*>(out + row * stride + piece * 8) = x;
  }
}

// The i-th pair of neighbouring channels of this thread.
__device__ __forceinline__ float2* StatePair(float* state, int i) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp % 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = 16 * warp + lane / 4 + i % 2 * 8, column = i / 2 * 8 + 2 * (lane % 4);
  return reinterpret_cast<float2*>(state + row * kDim + column);
}

template <bool kDelta, int kGroups>
__device__ __forceinline__ void Consume(const Params& p, const Item& item, float* state, bool fresh,
                                        char* shared, uint64_t* full, uint64_t* empty) {
  using S = Stage<kDelta, kGroups>;
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  bf16* out = p.out + item.begin * p.out_stride + item.head * kDim + item.first_row + group * kRows;
  char* out_tiles = shared + S::kOut + group * 2 * kHalfBytes;
  float s[64];
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float2 x = fresh ? float2{0.0f, 0.0f} : *StatePair(state, i);
    s[2 * i] = x.x, s[2 * i + 1] = x.y;
  }
  int stage = 0, round = 0;
  for (int c = item.first; c < item.last; ++c) {
    const char* at = shared + stage * S::kBytes;
    const char* values = at + S::kValues + group * kHalfBytes;
    const int count = min(item.tokens - c * kChunk, kChunk);
    uint32_t sb[32], vb[16];
    float x[32], o[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) sb[i] = Pack(s[2 * i], s[2 * i + 1]);
    BarrierWait(&full[stage], round & 1);
    const float2* decay = reinterpret_cast<const float2*>(at + TileD(kDelta)) + lane % 4;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 d = decay[4 * i];
      s[4 * i] *= d.x, s[4 * i + 1] *= d.y, s[4 * i + 2] *= d.x, s[4 * i + 3] *= d.y;
    }
    Pin(s);
    Pin(sb);
    sm90::MmaFence();
    if constexpr (kDelta) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sm90::Mma<false>(
            x, sb + 4 * i,
            sm90::RowTile(at + kTileW + i / 4 * kHalfBytes) + i % 4 * sm90::kRowTileStep, i > 0);
      }
      sm90::MmaCommit();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sm90::Mma<false>(o, sb + 4 * i,
                       sm90::RowTile(at + kTileQ + i / 4 * kHalfBytes) + i % 4 * sm90::kRowTileStep,
                       i > 0);
    }
    sm90::MmaCommit();
    if constexpr (kDelta) {
      sm90::MmaWait<1>();
      Pin(x);
      Subtract(vb, values, x);
    } else {
      LoadValues(vb, values, count);
    }
    Pin(vb);
    sm90::MmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sm90::Mma<false>(o, vb + 4 * i, sm90::RowTile(at + kTileP) + i * sm90::kRowTileStep);
    }
    sm90::MmaCommit();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sm90::Mma<true>(s, vb + 4 * i, sm90::ColumnTile(at + kTileK) + i * sm90::kColumnTileStep);
    }
    sm90::MmaCommit();
    sm90::MmaWait<1>();
    Pin(o);
    StoreOut(o, out_tiles + (c & 1) * kHalfBytes, 1 + group,
             out + int64_t{c} * kChunk * p.out_stride, p.out_stride, count);
    sm90::MmaWait<0>();
    Pin(s);
    BarrierArrive(&empty[stage]);
    if (++stage == S::kStages) stage = 0, ++round;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) *StatePair(state, i) = {s[2 * i], s[2 * i + 1]};
}

#endif

template <bool kDelta, int kGroups>
__global__ void __launch_bounds__(Threads(kGroups), 1)
    WarpgroupScan(const __grid_constant__ Params p, const __grid_constant__ CUtensorMap v_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  using S = Stage<kDelta, kGroups>;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      sm90::BarrierInit(&full[i], 1);
      sm90::BarrierInit(&empty[i], kGroups * kGroup);
    }
    sm90::BarrierInitFence();
  }
  __syncthreads();
  PdlLaunchDependents();
  PdlWait();
  const int s = static_cast<int>(blockIdx.z), slot = p.slots[s];
  Item item;
  item.begin = p.offsets[s];
  item.tokens = static_cast<int>(p.offsets[s + 1] - item.begin);
  item.head = static_cast<int>(blockIdx.y);
  item.first_row = static_cast<int>(blockIdx.x) * kGroups * kRows;
  if (slot < 0) {
    constexpr int kPieces = kGroups * kRows / 8;
    if (p.first_chunk > 0) return;
    bf16* out = p.out + item.begin * p.out_stride + item.head * kDim + item.first_row;
    for (int i = static_cast<int>(threadIdx.x); i < item.tokens * kPieces;
         i += static_cast<int>(blockDim.x)) {
      reinterpret_cast<uint4*>(out + i / kPieces * p.out_stride)[i % kPieces] = {0, 0, 0, 0};
    }
    return;
  }
  const int number = FirstChunk(p.offsets, s);
  item.first = max(0, p.first_chunk - number);
  item.last = min((item.tokens + kChunk - 1) / kChunk, p.first_chunk + p.chunks - number);
  if (item.first >= item.last) return;
  item.tile_stride = int64_t{p.heads} * TileBytes(kDelta);
  item.tiles = p.tiles + (number + item.first - p.first_chunk) * item.tile_stride +
               item.head * TileBytes(kDelta);
  if (threadIdx.x >= kGroups * kGroup) {
    if (kGroups == 2) sm90::LowerRegisters<kProducerRegisters>();
    if (threadIdx.x == kGroups * kGroup) {
      Produce<kDelta, kGroups>(p, item, &v_map, shared, full, empty);
    }
  } else {
    if (kGroups == 2) sm90::RaiseRegisters<kConsumerRegisters>();
    float* state = reinterpret_cast<float*>(p.state + slot * p.slot_stride_bytes) +
                   (int64_t{item.head} * kDim + item.first_row +
                    static_cast<int>(threadIdx.x) / kGroup * kRows) *
                       kDim;
    Consume<kDelta, kGroups>(p, item, state, item.first == 0 && p.fresh[s] != 0, shared, full,
                             empty);
  }
#endif
}

template <bool kDelta, int kGroups>
void LaunchScan(const Params& p, int64_t tokens, Stream stream) {
  CUtensorMap v_map{};
  if (!kDelta) {
    const int64_t columns = int64_t{p.heads / p.v_group} * kDim;
    v_map = sm90::MakeTileMap(p.v, tokens, columns, p.v_stride, kChunk);
  }
  LaunchOptions options;
  options.shared_bytes = static_cast<size_t>(Stage<kDelta, kGroups>::kTotal);
  Launch("recurrence_chunk_scan", stream, WarpgroupScan<kDelta, kGroups>,
         dim3(static_cast<unsigned>(kDim / kRows / kGroups), static_cast<unsigned>(p.heads),
              static_cast<unsigned>(p.sequences)),
         dim3(Threads(kGroups)), options, p, v_map);
}

}  // namespace

bool HasWarpgroupScan() {
#if defined(WEIR_SM90A)
  const auto& device = cuda::Device();
  return device.major == 9 && device.minor == 0;
#else
  return false;
#endif
}

void ScanChunksWarpgroup(const Params& p, bool delta, int64_t tokens, Stream stream) {
  // One warpgroup per multiprocessor is fastest for one chain; two share the loads when there is
  // more to do than multiprocessors.
  const bool wide = p.sequences * p.heads * 2 > cuda::Device().multiprocessors;
  if (delta) {
    (wide ? LaunchScan<true, 2> : LaunchScan<true, 1>)(p, tokens, stream);
  } else {
    (wide ? LaunchScan<false, 2> : LaunchScan<false, 1>)(p, tokens, stream);
  }
}

}  // namespace weir::kernels::gpu::vector_chunk
