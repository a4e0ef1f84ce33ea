// The serial half of the scalar-decay prefill (see chunk_scalar.cuh): the state goes from chunk to
// chunk in the accumulators of one warpgroup and meets the tensor cores as their register operand;
// only the inputs pass through shared memory.
//
// An additive chain has a short cut: a state needs no outputs. Where sequences are few and long, a
// first kernel runs the first half of each for its state alone (a third of the work), then both
// halves run at once. The second half starts from the very bits that the first ends with.
#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sm90/chunk_scalar.cuh"
#include "kernels/cuda/sm90/mma.cuh"
#include "kernels/cuda/sm90/tma.cuh"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace weir::kernels::gpu::sm90 {
namespace {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kValues = 64;  // values of a warpgroup
constexpr int kMaxStages = 4;
// Two consumers of 240 registers and a producer of 24 fill the register file; one consumer has 255
// anyway.
constexpr int kConsumerRegisters = 240;
constexpr int kProducerRegisters = 24;

// One stage of shared memory: record (P, T, gates), keys, queries, values of each warpgroup. After
// the stages, a tile of outputs for each warpgroup.
template <int kK, bool kDelta, int kGroups>
struct Stage {
  static constexpr int kRecord = RecordLoaded(kDelta);
  static constexpr int kGates = RecordGatesAt(kDelta);
  static constexpr int kFlags = kGates + kRecordGates;
  static constexpr int kT = kRecordTile;
  static constexpr int kKeys = (kRecord + 1023) / 1024 * 1024;
  static constexpr int kRows = kK / 64 * kTileBytes;
  static constexpr int kQueries = kKeys + kRows;
  static constexpr int kVal = kQueries + kRows;
  static constexpr int kBytes = kVal + kGroups * kTileBytes;
  static constexpr uint32_t kLoaded = kRecord + 2 * kRows + kGroups * kTileBytes;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Item {  // what a block works on
  int head, value0, chunks, length, first_slot;
  int64_t t0;
};

template <bool kDelta>
__device__ __forceinline__ const uint8_t* Record(const ScalarChunkParams& p, const Item& item,
                                                 int chunk) {
  return p.records + (int64_t{item.first_slot + chunk} * p.heads + item.head) * RecordBytes(kDelta);
}

template <int kK, bool kDelta, int kGroups>
__device__ __forceinline__ void Produce(const ScalarChunkParams& p, const Item& item,
                                        const CUtensorMap* q_map, const CUtensorMap* k_map,
                                        const CUtensorMap* v_map, uint8_t* stages, int stage_count,
                                        uint64_t* full, uint64_t* empty) {
  using S = Stage<kK, kDelta, kGroups>;
  int stage = 0, round = 0;
  for (int c = 0; c < item.chunks; ++c) {
    if (round > 0) BarrierWait(&empty[stage], (round - 1) & 1);
    uint8_t* to = stages + stage * S::kBytes;
    BarrierArriveExpect(&full[stage], S::kLoaded);
    const int row = static_cast<int>(item.t0) + c * kChunk;
#pragma unroll
    for (int i = 0; i < kK / 64; ++i) {
      CopyTile(to + S::kKeys + i * kTileBytes, k_map, item.head / p.per_k * kK + 64 * i, row,
               &full[stage]);
    }
#pragma unroll
    for (int i = 0; i < kK / 64; ++i) {
      CopyTile(to + S::kQueries + i * kTileBytes, q_map, item.head / p.per_q * kK + 64 * i, row,
               &full[stage]);
    }
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      CopyTile(to + S::kVal + i * kTileBytes, v_map,
               item.head / p.per_v * p.v_dim + item.value0 + kValues * i, row, &full[stage]);
    }
    CopyBytes(to, Record<kDelta>(p, item, c), S::kRecord, &full[stage]);
    if (++stage == stage_count) stage = 0, ++round;
  }
}

// The last chunk of a sequence: what the tiles hold beyond its tokens belongs to others and may be
// anything.
template <int kK>
__device__ __forceinline__ void ClearRows(uint8_t* tiles, int length, int thread, int threads) {
  constexpr int kPieces = kK / 8;
  for (int i = length * kPieces + thread; i < kChunk * kPieces; i += threads) {
    const int row = i / kPieces, piece = i % kPieces;
    *reinterpret_cast<uint4*>(tiles + piece / 8 * kTileBytes + row * 128 + piece % 8 * 16) =
        make_uint4(0, 0, 0, 0);
  }
}

// Puts what the tile of T lacks in its place.
__device__ __forceinline__ void LoadRest(uint8_t* tile, const uint8_t* record, int4 flags,
                                         int threads) {
  NamedBarrier(1, threads);  // all are done with T
  for (int i = threadIdx.x; i < kRecordTile / 16; i += threads) {
    const int block = i / (kRecordTile / 64);
    const int flag = block == 0 ? flags.x : block == 1 ? flags.y : block == 2 ? flags.z : flags.w;
    reinterpret_cast<uint4*>(tile)[i] =
        flag != 0 ? reinterpret_cast<const uint4*>(record + RecordLoaded(true))[i]
                  : make_uint4(0, 0, 0, 0);
  }
  ProxyFence();
  NamedBarrier(1, threads);
}

// V^T of this warpgroup, as bf16 pairs of tokens in the arrangement of a register operand.
__device__ __forceinline__ void LoadValues(uint32_t (&v)[16], const uint8_t* tile) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, matrix = lane / 8;
#pragma unroll
  for (int s = 0; s < 4; ++s) {  // 16 tokens
    uint32_t r[4];
    LoadMatricesTransposed(r, SharedAddress(tile) + TileOffset(16 * s + matrix / 2 * 8 + lane % 8,
                                                               16 * warp + matrix % 2 * 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) v[4 * s + i] = r[i];
  }
}

__device__ __forceinline__ void PackOutput(uint32_t (&packed)[16], const float (&o)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) packed[i] = PackBf16(o[2 * i], o[2 * i + 1]);
}

// The transposed: 64 tokens x 64 values of O^T to the tile, then whole rows to global memory.
__device__ __forceinline__ void StoreOutput(const uint32_t (&o)[16], uint8_t* tile, int barrier,
                                            bf16* out, int64_t out_row, int length) {
  const int thread = threadIdx.x % kGroup, warp = thread / 32, lane = thread % 32,
            matrix = lane / 8;
  NamedBarrier(barrier, kGroup);  // the rows of the chunk before are out
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    StoreMatricesTransposed(SharedAddress(tile) + TileOffset(16 * s + matrix / 2 * 8 + lane % 8,
                                                             16 * warp + matrix % 2 * 8),
                            o[4 * s], o[4 * s + 1], o[4 * s + 2], o[4 * s + 3]);
  }
  NamedBarrier(barrier, kGroup);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 16 * i, piece = thread % 8;
    const uint4 x = *reinterpret_cast<const uint4*>(tile + TileOffset(row, piece * 8));
    if (row < length) *reinterpret_cast<uint4*>(out + row * out_row + piece * 8) = x;
  }
}

// The state of this warpgroup between memory and accumulators.
template <int kK>
__device__ __forceinline__ float2* StatePair(float* state, int i) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int row = 16 * warp + lane / 4 + i % 2 * 8, column = i / 2 * 8 + 2 * (lane % 4);
  return reinterpret_cast<float2*>(state + row * kK + column);
}

// Loads what the state alone needs: keys, values, gates.
template <int kK>
__device__ __forceinline__ void ProduceForState(const ScalarChunkParams& p, const Item& item,
                                                const CUtensorMap* k_map, const CUtensorMap* v_map,
                                                uint8_t* stages, int stage_count, uint64_t* full,
                                                uint64_t* empty) {
  using S = Stage<kK, false, 1>;
  int stage = 0, round = 0;
  for (int c = 0; c < item.chunks; ++c) {
    if (round > 0) BarrierWait(&empty[stage], (round - 1) & 1);
    uint8_t* to = stages + stage * S::kBytes;
    BarrierArriveExpect(&full[stage], kRecordGates + S::kRows + kTileBytes);
    const int row = static_cast<int>(item.t0) + c * kChunk;
#pragma unroll
    for (int i = 0; i < kK / 64; ++i) {
      CopyTile(to + S::kKeys + i * kTileBytes, k_map, item.head / p.per_k * kK + 64 * i, row,
               &full[stage]);
    }
    CopyTile(to + S::kVal, v_map, item.head / p.per_v * p.v_dim + item.value0, row, &full[stage]);
    CopyBytes(to + S::kGates, Record<false>(p, item, c) + S::kGates, kRecordGates, &full[stage]);
    if (++stage == stage_count) stage = 0, ++round;
  }
}

// Two tokens' gates as an accumulator or operand register has them.
__device__ __forceinline__ float2 GatePair(const float* gates, int i) {
  return *reinterpret_cast<const float2*>(gates + 16 * (i / 4) + i % 4 / 2 * 8 +
                                          2 * (threadIdx.x % 4));
}

// The state after whole chunks, by the same operations in the same order as Consume. `start` gets
// the state before them. REQUIRES: every chunk has all its tokens.
template <int kK>
__device__ __forceinline__ void ConsumeForState(const Item& item, float* from, bool fresh,
                                                float* start, float* to, uint8_t* stages,
                                                int stage_count, uint64_t* full, uint64_t* empty) {
  using S = Stage<kK, false, 1>;
  float s[kK / 2];
#pragma unroll
  for (int i = 0; i < kK / 4; ++i) {
    const float2 x = fresh ? make_float2(0.0f, 0.0f) : *StatePair<kK>(from, i);
    s[2 * i] = x.x, s[2 * i + 1] = x.y;
    *StatePair<kK>(start, i) = x;
  }
  int stage = 0, round = 0;
  for (int c = 0; c < item.chunks; ++c) {
    const uint8_t* at = stages + stage * S::kBytes;
    const float* decay = reinterpret_cast<const float*>(at + S::kGates);
    BarrierWait(&full[stage], round & 1);
    uint32_t v[16];
    LoadValues(v, at + S::kVal);
    const float end = decay[kChunk - 1];
#pragma unroll
    for (int i = 0; i < kK / 2; ++i) s[i] *= end;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 e = GatePair(decay + kChunk, i);
      v[i] = PackBf16(__uint_as_float(v[i] << 16) * e.x, __uint_as_float(v[i] & 0xffff0000u) * e.y);
    }
    Pin(v);
    Pin(s);
    MmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Mma<true>(s, v + 4 * i, ColumnTile(at + S::kKeys) + i * kColumnTileStep);
    }
    MmaCommit();
    MmaWait<0>();
    Pin(s);
    BarrierArrive(&empty[stage]);
    if (++stage == stage_count) stage = 0, ++round;
  }
#pragma unroll
  for (int i = 0; i < kK / 4; ++i) *StatePair<kK>(to, i) = make_float2(s[2 * i], s[2 * i + 1]);
}

// The state goes from `from` (zero when `fresh`) to `to` (null: nobody needs it).
template <int kK, bool kDelta, int kGroups>
__device__ __forceinline__ void Consume(const ScalarChunkParams& p, const Item& item, float* from,
                                        bool fresh, float* to, uint8_t* stages, int stage_count,
                                        uint64_t* full, uint64_t* empty) {
  using S = Stage<kK, kDelta, kGroups>;
  const int group = threadIdx.x / kGroup;
  bf16* out = static_cast<bf16*>(p.out) + item.t0 * p.out_row + item.head * p.v_dim + item.value0 +
              kValues * group;
  float s[kK / 2];
#pragma unroll
  for (int i = 0; i < kK / 4; ++i) {
    const float2 x = fresh ? make_float2(0.0f, 0.0f) : *StatePair<kK>(from, i);
    s[2 * i] = x.x, s[2 * i + 1] = x.y;
  }
  uint8_t* tile = stages + stage_count * S::kBytes + group * kTileBytes;
  // All products are waited for within their iteration: the compiler would otherwise run them one
  // by one. What is left for the next one to cover is in plain registers: outputs to store, the
  // state as an operand.
  float o[32];
  uint32_t sb[kK / 4], ob[16];
#pragma unroll
  for (int i = 0; i < kK / 4; ++i) sb[i] = PackBf16(s[2 * i], s[2 * i + 1]);
  int stage = 0, round = 0;
  for (int c = 0; c < item.chunks; ++c) {
    uint8_t* at = stages + stage * S::kBytes;
    const float* decay = reinterpret_cast<const float*>(at + S::kGates);
    const float* decay_to_end = decay + kChunk;
    const float* scaled_decay = decay + 2 * kChunk;
    uint8_t* values = at + S::kVal + group * kTileBytes;

    BarrierWait(&full[stage], round & 1);
    if (const int length = item.length - c * kChunk; length < kChunk) {
      ClearRows<kK>(at + S::kKeys, length, threadIdx.x, kGroups * kGroup);
      ClearRows<kValues * kGroups>(at + S::kVal, length, threadIdx.x, kGroups * kGroup);
      ProxyFence();
      NamedBarrier(1, kGroups * kGroup);
    }
    const float end = decay[kChunk - 1];
    const auto decay_state = [&] {
#pragma unroll
      for (int i = 0; i < kK / 2; ++i) s[i] *= end;
    };
    // While Q S is under way alone the compiler would wait for it before it touched the state.
    if (!kDelta) {
      decay_state();
      Pin(s);
    }
    // A first product on the way while the outputs of the chunk before leave: K S, or Q S where
    // there is none.
    float x[32];
    Pin(sb);
    MmaFence();
#pragma unroll
    for (int i = 0; i < kK / 16; ++i) {
      Mma<false>(x, sb + 4 * i,
                 RowTile(at + (kDelta ? S::kKeys : S::kQueries) + i / 4 * kTileBytes) +
                     i % 4 * kRowTileStep,
                 i > 0);
    }
    MmaCommit();
    // Q S in two halves: each covers what ordinary instructions do to the other products' results.
    // With two warpgroups to cover each other, registers are what is short.
    constexpr bool kAlone = kGroups == 1;
    constexpr int kHalf = kAlone ? kK / 32 : kK / 16;
    if (kDelta) {
      MmaFence();
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        Mma<false>(o, sb + 4 * i,
                   RowTile(at + S::kQueries + i / 4 * kTileBytes) + i % 4 * kRowTileStep, i > 0);
      }
      MmaCommit();
    }
    if (c > 0) {
      StoreOutput(ob, tile, 2 + group, out + int64_t{c - 1} * kChunk * p.out_row, p.out_row,
                  kChunk);
    }
    uint32_t vb[16], ve[16];  // V' as it is, and decayed to the end of the chunk
    LoadValues(vb, values);
    if (kDelta) {
      MmaWait<1>();
      Pin(x);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float2 e = GatePair(decay, i);
        vb[i] = PackBf16(fmaf(-e.x, x[2 * i], __uint_as_float(vb[i] << 16)),
                         fmaf(-e.y, x[2 * i + 1], __uint_as_float(vb[i] & 0xffff0000u)));
      }
      Pin(vb);
      MmaFence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Mma<false>(x, vb + 4 * i, RowTile(at + S::kT) + i * kRowTileStep, i > 0);
      }
      MmaCommit();
#pragma unroll
      for (int i = kHalf; i < kK / 16; ++i) {
        Mma<false>(o, sb + 4 * i,
                   RowTile(at + S::kQueries + i / 4 * kTileBytes) + i % 4 * kRowTileStep);
      }
      if (kAlone) MmaCommit();
    }
    // O so far, once Q S is there: where there is no K S its registers are free for it.
    float(&y)[32] = kDelta ? o : x;
    const auto scale_output = [&] {
      Pin(y);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float2 e = GatePair(scaled_decay, i);
        y[2 * i] *= e.x;
        y[2 * i + 1] *= e.y;
      }
    };
    if (!kAlone && !kDelta) {
      MmaWait<0>();
      scale_output();
    }
    if (kDelta) {
      decay_state();
      MmaWait<kAlone ? 1 : 0>();
      Pin(x);
      const int4 flags = *reinterpret_cast<const int4*>(at + S::kFlags);
      if ((flags.x | flags.y | flags.z | flags.w) != 0) {
        LoadRest(at + S::kT, Record<kDelta>(p, item, c), flags, kGroups * kGroup);
        Pin(x);
        Pin(vb);
        MmaFence();
#pragma unroll
        for (int i = 0; i < 4; ++i)
          Mma<false>(x, vb + 4 * i, RowTile(at + S::kT) + i * kRowTileStep);
        MmaCommit();
        MmaWait<0>();
        Pin(x);
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 e = GatePair(decay_to_end, i);
      const float low = kDelta ? x[2 * i] : __uint_as_float(vb[i] << 16);
      const float high = kDelta ? x[2 * i + 1] : __uint_as_float(vb[i] & 0xffff0000u);
      ve[i] = PackBf16(low * e.x, high * e.y);
      if (kDelta) vb[i] = PackBf16(low, high);
    }
    Pin(ve);
    Pin(s);
    MmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Mma<true>(s, ve + 4 * i, ColumnTile(at + S::kKeys) + i * kColumnTileStep);
    }
    MmaCommit();
    if (kAlone) MmaWait<1>();  // Q S
    if (kAlone || kDelta) scale_output();
    Pin(vb);
    Pin(y);
    MmaFence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Mma<false>(y, vb + 4 * i, RowTile(at) + i * kRowTileStep);
    MmaCommit();
    MmaWait<1>();  // the state
    Pin(s);
#pragma unroll
    for (int i = 0; i < kK / 4; ++i) sb[i] = PackBf16(s[2 * i], s[2 * i + 1]);
    MmaWait<0>();
    Pin(y);
    PackOutput(ob, y);
    BarrierArrive(&empty[stage]);
    if (++stage == stage_count) stage = 0, ++round;
  }
  const int last = item.chunks - 1;
  StoreOutput(ob, tile, 2 + group, out + int64_t{last} * kChunk * p.out_row, p.out_row,
              item.length - last * kChunk);
  if (!kDelta && kGroups == 1 && to == nullptr) return;
#pragma unroll
  for (int i = 0; i < kK / 4; ++i) *StatePair<kK>(to, i) = make_float2(s[2 * i], s[2 * i + 1]);
}

// What block `block` of a grid over sequences, heads and parts of the values works on. False:
// nothing.
template <int kGroups>
__device__ __forceinline__ bool FindItem(const ScalarChunkParams& p, int block, Item* item,
                                         int* sequence) {
  const int parts = p.v_dim / (kValues * kGroups);
  const int s = block / parts / p.heads;
  item->head = block / parts % p.heads;
  item->value0 = block % parts * kValues * kGroups;
  item->t0 = p.offsets[s];
  item->length = p.offsets[s + 1] - static_cast<int>(item->t0);
  item->chunks = (item->length + kChunk - 1) / kChunk;
  item->first_slot = static_cast<int>(item->t0) / kChunk + s;
  *sequence = s;
  return item->length > 0;
}

__device__ __forceinline__ bool IsSplit(const ScalarChunkParams& p, const Item& item) {
  return p.halves != nullptr && item.chunks >= kSplitChunks;
}
// Of a block: the state before the first half, then that before the second.
template <int kK>
__device__ __forceinline__ float* HalfState(const ScalarChunkParams& p, int block, int half) {
  return p.halves + (int64_t{block} * 2 + half) * kValues * kK;
}

// Barriers of the pipeline; all threads.
__device__ __forceinline__ void InitPipeline(uint64_t* full, uint64_t* empty, int stage_count,
                                             int consumers) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < stage_count; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], consumers);
    }
    BarrierInitFence();
  }
  __syncthreads();
}

#endif

template <int kK>
__global__ void __launch_bounds__(2 * kGroup, 1)
    HalfStateKernel(const __grid_constant__ ScalarChunkParams p,
                    const __grid_constant__ CUtensorMap k_map,
                    const __grid_constant__ CUtensorMap v_map, int stage_count) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t stages[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  InitPipeline(full, empty, stage_count, kGroup);
  PdlWait();
  PdlLaunchDependents();
  const int block = static_cast<int>(blockIdx.x);
  Item item;
  int s = 0;
  if (!FindItem<1>(p, block, &item, &s) || p.slots[s] < 0 || !IsSplit(p, item)) return;
  item.chunks /= 2;
  if (threadIdx.x >= kGroup) {
    if (threadIdx.x == kGroup) {
      ProduceForState<kK>(p, item, &k_map, &v_map, stages, stage_count, full, empty);
    }
    return;
  }
  float* state =
      p.state + p.slots[s] * p.slot_stride + (int64_t{item.head} * p.v_dim + item.value0) * kK;
  ConsumeForState<kK>(item, state, p.fresh[s] != 0, HalfState<kK>(p, block, 0),
                      HalfState<kK>(p, block, 1), stages, stage_count, full, empty);
#endif
}

template <int kK, bool kDelta, int kGroups>
__global__ void __launch_bounds__((kGroups + 1) * kGroup, 1)
    SerialKernel(const __grid_constant__ ScalarChunkParams p,
                 const __grid_constant__ CUtensorMap q_map,
                 const __grid_constant__ CUtensorMap k_map,
                 const __grid_constant__ CUtensorMap v_map, int stage_count) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t stages[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  if (threadIdx.x == 0) {
    PrefetchMap(&q_map);
    PrefetchMap(&k_map);
    PrefetchMap(&v_map);
  }
  InitPipeline(full, empty, stage_count, kGroups * kGroup);
  PdlWait();
  PdlLaunchDependents();
  // With halves the grid is twice as large; its second half is for the second ones.
  constexpr bool kMaySplit = !kDelta && kGroups == 1;
  int block = static_cast<int>(blockIdx.x), half = 0;
  if (kMaySplit && p.halves != nullptr) {
    const int blocks = static_cast<int>(gridDim.x) / 2;
    half = block / blocks;
    block %= blocks;
  }
  Item item;
  int s = 0;
  if (!FindItem<kGroups>(p, block, &item, &s)) return;
  const bool split = kMaySplit && IsSplit(p, item);
  if (half > 0 && !split) return;
  const int slot = p.slots[s];
  if (slot < 0) {
    if (half > 0) return;
    constexpr int kPieces = kValues * kGroups / 8;
    bf16* out = static_cast<bf16*>(p.out) + item.t0 * p.out_row + item.head * p.v_dim + item.value0;
    for (int64_t i = threadIdx.x; i < int64_t{item.length} * kPieces; i += blockDim.x) {
      *reinterpret_cast<uint4*>(out + i / kPieces * p.out_row + i % kPieces * 8) =
          make_uint4(0, 0, 0, 0);
    }
    return;
  }
  if (kMaySplit && split) {
    const int before = half * (item.chunks / 2);
    item.chunks = half == 0 ? item.chunks / 2 : item.chunks - before;
    item.length = half == 0 ? item.chunks * kChunk : item.length - before * kChunk;
    item.t0 += before * kChunk;
    item.first_slot += before;
  }
  if (threadIdx.x >= kGroups * kGroup) {
    if (kGroups == 2) LowerRegisters<kProducerRegisters>();
    if (threadIdx.x == kGroups * kGroup) {
      Produce<kK, kDelta, kGroups>(p, item, &q_map, &k_map, &v_map, stages, stage_count, full,
                                   empty);
    }
  } else {
    if (kGroups == 2) RaiseRegisters<kConsumerRegisters>();
    float* state =
        p.state + slot * p.slot_stride +
        (int64_t{item.head} * p.v_dim + item.value0 + threadIdx.x / kGroup * kValues) * kK;
    float* from = split ? HalfState<kK>(p, block, half) : state;
    Consume<kK, kDelta, kGroups>(p, item, from, !split && p.fresh[s] != 0,
                                 split && half == 0 ? nullptr : state, stages, stage_count, full,
                                 empty);
  }
#endif
}

template <int kK, bool kDelta, int kGroups>
void LaunchSerial(const ScalarChunkParams& p, const CUtensorMap& q_map, const CUtensorMap& k_map,
                  const CUtensorMap& v_map, Stream stream) {
  using S = Stage<kK, kDelta, kGroups>;
  const int stages = 3;
  LaunchOptions options;
  options.shared_bytes = static_cast<size_t>(stages * S::kBytes + kGroups * kTileBytes);
  const int blocks = p.sequences * p.heads * (p.v_dim / (kValues * kGroups));
  if (p.halves != nullptr) {
    WEIR_CHECK(!kDelta && kGroups == 1);
    Launch("ScalarChunkHalfState", stream, HalfStateKernel<kK>, dim3(static_cast<unsigned>(blocks)),
           dim3(2 * kGroup), options, p, k_map, v_map, stages);
  }
  Launch("ScalarChunk", stream, SerialKernel<kK, kDelta, kGroups>,
         dim3(static_cast<unsigned>(p.halves != nullptr ? 2 * blocks : blocks)),
         dim3((kGroups + 1) * kGroup), options, p, q_map, k_map, v_map, stages);
}

template <int kK, bool kDelta>
void ChooseSerial(const ScalarChunkParams& p, const CUtensorMap& q_map, const CUtensorMap& k_map,
                  const CUtensorMap& v_map, Stream stream) {
  // One warpgroup per multiprocessor is fastest for one chain; two share the loads when there is
  // more to do than multiprocessors.
  const bool wide = p.v_dim % (2 * kValues) == 0 &&
                    p.sequences * p.heads * (p.v_dim / kValues) > cuda::Device().multiprocessors;
  (wide ? LaunchSerial<kK, kDelta, 2> : LaunchSerial<kK, kDelta, 1>)(p, q_map, k_map, v_map,
                                                                     stream);
}

}  // namespace

void ScalarChunkSerial(const ScalarChunkParams& p, int k_dim, const CUtensorMap& q_map,
                       const CUtensorMap& k_map, const CUtensorMap& v_map, Stream stream) {
  const bool delta = p.beta != nullptr;
  if (k_dim == 128) {
    (delta ? ChooseSerial<128, true> : ChooseSerial<128, false>)(p, q_map, k_map, v_map, stream);
  } else {
    (delta ? ChooseSerial<64, true> : ChooseSerial<64, false>)(p, q_map, k_map, v_map, stream);
  }
}

}  // namespace weir::kernels::gpu::sm90
