// What a thread block of sm90/attention_prefill.cu works on, and the warpgroup that brings it
// there.
#pragma once

#include <cuda.h>

#include <climits>
#include <cstdint>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/sm90/tma.cuh"

namespace weir::kernels::gpu::prefill {

constexpr int kRows = 128;  // of a thread block
constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;

constexpr int kBoxRows = 16;  // of one copy from a page

// Pages as the copy engine sees them: [page, kv head, row, column].
struct PageMaps {
  CUtensorMap keys, values;
  bool usable;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int kGroupRows = 64;  // of a warpgroup

using sm90::BarrierArrive, sm90::BarrierArriveExpect, sm90::BarrierInit, sm90::ProxyFence,
    sm90::SharedAddress;

__device__ __forceinline__ bool Passed(uint64_t* barrier, unsigned parity) {
  uint32_t passed;
  asm volatile(
      "{.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;}\n"
      : "=r"(passed)
      : "r"(SharedAddress(barrier)), "r"(parity)
      : "memory");
  return passed != 0;
}
__device__ __forceinline__ void Wait(uint64_t* barrier, unsigned parity) {
  while (!Passed(barrier, parity)) {
  }
}
__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, int column, int row,
                                        int head, int page, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(SharedAddress(barrier)), "r"(column), "r"(row), "r"(head), "r"(page)
      : "memory");
}
__device__ __forceinline__ void SyncGroup(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kGroupThreads) : "memory");
}
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
#endif

// Entries per tile: what fits beside the queries.
template <int kDim>
struct Tiles {
  static constexpr int kKeys = kDim == 256 ? 80 : 128;
  static constexpr int kStages = kDim == 256 ? 2 : 3;
  static constexpr int kTileBytes = kKeys * kDim * 2;
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kBytes = kQueryBytes + 2 * kStages * kTileBytes;
};
struct Barriers {
  uint64_t full[2][3], empty[2][3];  // of keys, of values
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What a thread block works on.
struct Place {
  int seq, slot, kv_head;
  int first_row, rows;  // rows [first_row, rows) of tokens * group; rows: all of the run
  int begin, cached;    // the run's first token, entries before it
  int first_position, last_position;
  int window;
};

// Thread blocks go through the sequences in order, a run's last tile first (it sees most entries),
// and within a tile through the kv heads: neighbours read the same entries at the same time.
__device__ __forceinline__ bool FindPlace(const AttentionParams& p, Place& at) {
  at.kv_head = blockIdx.x % p.kv_heads;
  int wanted = blockIdx.x / p.kv_heads;
  const int lane = threadIdx.x % kWarp;
  for (int base = 0; base < p.sequences; base += kWarp) {
    const int seq = base + lane;
    int tiles = 0;
    if (seq < p.sequences) {
      const int run = p.offsets[seq + 1] - p.offsets[seq];
      if (run >= p.min_run && run <= p.max_run && p.slots[seq] >= 0) {
        tiles = (run * p.group + kRows - 1) / kRows;
      }
    }
    int sum = tiles;
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, i);
      if (lane >= i) sum += other;
    }
    const unsigned found = __ballot_sync(0xffffffffu, sum > wanted);
    if (found != 0) {
      const int source = __ffs(found) - 1;
      const int local = wanted - __shfl_sync(0xffffffffu, sum - tiles, source);
      const int last = __shfl_sync(0xffffffffu, tiles, source) - 1;
      at.seq = base + source;
      at.slot = p.slots[at.seq];
      at.begin = p.offsets[at.seq];
      at.cached = p.cached[at.seq];
      at.rows = (p.offsets[at.seq + 1] - at.begin) * p.group;
      at.first_row = (last - local) * kRows;
      at.first_position = at.cached + at.first_row / p.group;
      at.last_position = at.cached + (min(at.first_row + kRows, at.rows) - 1) / p.group;
      at.window = p.kv.table == nullptr ? p.kv.block_tokens : INT_MAX;
      return true;
    }
    wanted -= __shfl_sync(0xffffffffu, sum, kWarp - 1);
  }
  return false;
}

__device__ __forceinline__ int FirstTile(const Place& at, int keys) {
  return at.first_position < at.window ? 0 : (at.first_position - at.window + 1) / keys;
}
__device__ __forceinline__ int EndTile(const Place& at, int keys) {
  return at.last_position / keys + 1;
}

// Byte of a 16-byte chunk of a row in a tile of `rows` rows.
template <int kTileRows>
__device__ __forceinline__ uint32_t ChunkAt(int row, int chunk) {
  return chunk / 8 * (kTileRows * 128) + row * 128 + ((chunk % 8 ^ (row & 7)) << 4);
}

// The producer warpgroup.
template <int kDim>
class Producer {
 public:
  using T = Tiles<kDim>;
  static constexpr int kStages = T::kStages;
  __device__ __forceinline__ Producer(const AttentionParams& p, const PageMaps& maps,
                                      const Place& at, uint32_t memory, Barriers& barriers)
      : p_(p), maps_(maps), at_(at), memory_(memory), barriers_(barriers) {}

  // Keys run one tile ahead of values, as the consumers use them.
  __device__ __forceinline__ void Run() {
    const int first = FirstTile(at_, T::kKeys), end = EndTile(at_, T::kKeys);
    for (int tile = first; tile <= end; ++tile) {
      if (tile < end) {
        if (Whole(tile)) {
          LoadBoxes(0, tile - first, tile);
        } else {
          rows_ = FindRows(tile);
          Load(0, tile - first, rows_.key);
        }
      }
      if (tile == first) continue;
      if (Whole(tile - 1)) {
        LoadBoxes(1, tile - 1 - first, tile - 1);
      } else {
        rows_ = FindRows(tile - 1);
        Load(1, tile - 1 - first, rows_.value);
      }
    }
    Announce();
  }

 private:
  static constexpr int kRowChunks = kDim / 8;
  static constexpr int kWarpRows = kWarp / kRowChunks;  // of one instruction
  static constexpr int kPasses = T::kKeys / 4 / kWarpRows;

  // Lane l has the addresses of its warp's l-th row.
  struct Rows {
    const char *key = nullptr, *value = nullptr;
    bool seen = false;
  };
  __device__ __forceinline__ int RowOf(int index) const {
    const int warp = threadIdx.x / kWarp;
    return index / kWarpRows * 4 * kWarpRows + warp * kWarpRows + index % kWarpRows;
  }
  __device__ __forceinline__ Rows FindRows(int tile) const {
    Rows rows;
    const int lane = threadIdx.x % kWarp;
    rows.key = rows.value = p_.kv.base;
    if (lane >= T::kKeys / 4) return rows;
    const int entry = tile * T::kKeys + RowOf(lane);
    rows.seen = entry <= at_.last_position &&
                (at_.first_position < at_.window || entry > at_.first_position - at_.window);
    if (!rows.seen) return rows;
    if (p_.kv.table == nullptr && entry >= at_.cached) {
      const int64_t row = at_.begin + entry - at_.cached;
      const int column = at_.kv_head * kDim;
      rows.key = reinterpret_cast<const char*>(static_cast<const bf16*>(p_.k) + row * p_.k_stride +
                                               column);
      rows.value = reinterpret_cast<const char*>(static_cast<const bf16*>(p_.v) +
                                                 row * p_.v_stride + column);
    } else {
      const bf16* key = KeyAt<const bf16>(p_, at_.seq, at_.slot, entry, at_.kv_head);
      rows.key = reinterpret_cast<const char*>(key);
      rows.value = reinterpret_cast<const char*>(key + ValueOffset(p_));
    }
    return rows;
  }

  // Whether the copy engine can bring the tile: nothing in it is to be zero.
  __device__ __forceinline__ bool Whole(int tile) const {
    return maps_.usable && (tile + 1) * T::kKeys - 1 <= at_.last_position;
  }
  __device__ __forceinline__ void LoadBoxes(int kind, int index, int tile) {
    constexpr int kChunks = kDim / 64, kBoxes = T::kKeys / kBoxRows * kChunks;
    static_assert(kBoxes <= kWarp);
    const int stage = index % kStages;
    Announce();
    Wait(&barriers_.empty[kind][stage], (index / kStages & 1) ^ 1);
    uint64_t* full = &barriers_.full[kind][stage];
    if (threadIdx.x == 0) {
      BarrierArriveExpect(full, T::kTileBytes);
    } else {
      BarrierArrive(full);
    }
    if (threadIdx.x >= kWarp) return;
    __syncwarp();
    if (threadIdx.x >= kBoxes) return;
    const int box = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const int entry = tile * T::kKeys + box * kBoxRows;
    const uint32_t to = memory_ + T::kQueryBytes + (kind * kStages + stage) * T::kTileBytes +
                        chunk * (T::kKeys * 128) + box * (kBoxRows * 128);
    CopyBox(to, kind == 0 ? &maps_.keys : &maps_.values, chunk * 64, entry % p_.kv.block_tokens,
            at_.kv_head, static_cast<int>(BlockOf(p_, at_.seq, at_.slot, entry)), full);
  }

  // Gathers a tile; what was gathered before is announced once it has arrived, at the latest
  // before waiting for room.
  __device__ __forceinline__ void Load(int kind, int index, const char* row_address) {
    const int stage = index % kStages;
    uint64_t* empty = &barriers_.empty[kind][stage];
    const unsigned parity = (index / kStages & 1) ^ 1;
    if (!Passed(empty, parity)) {
      Announce();
      Wait(empty, parity);
    }
    const int lane = threadIdx.x % kWarp, chunk = lane % kRowChunks;
    const uint32_t to = memory_ + T::kQueryBytes + (kind * kStages + stage) * T::kTileBytes;
    const auto address = reinterpret_cast<uint64_t>(row_address);
#pragma unroll 4
    for (int i = 0; i < kPasses; ++i) {
      const int index_in_warp = i * kWarpRows + lane / kRowChunks;
      const uint64_t from = __shfl_sync(0xffffffffu, address, index_in_warp) + chunk * 16;
      const int bytes = __shfl_sync(0xffffffffu, rows_.seen ? 16 : 0, index_in_warp);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                       to + ChunkAt<T::kKeys>(RowOf(index_in_warp), chunk)),
                   "l"(from), "r"(bytes)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (pending_ != nullptr) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      ProxyFence();
      BarrierArrive(pending_);
    }
    pending_ = &barriers_.full[kind][stage];
  }
  __device__ __forceinline__ void Announce() {
    if (pending_ == nullptr) return;
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    ProxyFence();
    BarrierArrive(pending_);
    pending_ = nullptr;
  }

  const AttentionParams& p_;
  const PageMaps& maps_;
  const Place& at_;
  const uint32_t memory_;
  Barriers& barriers_;
  Rows rows_;
  uint64_t* pending_ = nullptr;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::kernels::gpu::prefill
