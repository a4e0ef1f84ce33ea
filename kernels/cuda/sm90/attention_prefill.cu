// Attention of runs on Hopper: flash attention over bf16 entries wherever they are (pages, ring,
// the run's own keys), after FlashAttention-3 (Shah et al. 2024).
//
// A thread block has 128 rows of one sequence and kv head; a row is a token and one of the query
// heads that share the kv head. A producer warpgroup brings tiles of keys and values: from pages by
// the copy engine, 16 rows at a time; from rings, odd pages and at the end of the run row by row
// (cp.async: rows may lie anywhere, zeros past the end). Two consumer warpgroups of 64 rows
// multiply them (wgmma). The scores of the next tile run on the tensor cores beside the softmax of
// this one, and the warpgroups take turns at the tensor cores. Tiles begin at fixed entries and
// hidden ones add exact zeros: what a token gets depends on its position only.
#include <cuda.h>

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/sm90/attention_wgmma.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kRows = 128;      // of a thread block
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;

constexpr int kBoxRows = 16;  // of one copy from a page

// Pages as the copy engine sees them: [page, kv head, row, column].
struct PageMaps {
  CUtensorMap keys, values;
  bool usable;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
using namespace sm90;  // NOLINT

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void InitBarrier(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count));
}
__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
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
__device__ __forceinline__ void ArriveExpecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, int column, int row,
                                        int head, int page, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(map), "r"(SharedAddress(barrier)), "r"(column), "r"(row), "r"(head), "r"(page)
      : "memory");
}
__device__ __forceinline__ void FenceAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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
      ArriveExpecting(full, T::kTileBytes);
    } else {
      Arrive(full);
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
      FenceAsync();
      Arrive(pending_);
    }
    pending_ = &barriers_.full[kind][stage];
  }
  __device__ __forceinline__ void Announce() {
    if (pending_ == nullptr) return;
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    FenceAsync();
    Arrive(pending_);
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

// A consumer warpgroup.
template <int kDim>
class Consumer {
 public:
  using T = Tiles<kDim>;
  static constexpr int kStages = T::kStages;
  static constexpr int kKeys = T::kKeys;
  __device__ __forceinline__ Consumer(const AttentionParams& p, const Place& at, uint32_t memory,
                                      char* generic, Barriers& barriers, int group)
      : p_(p), at_(at), barriers_(barriers), group_(group) {
    queries_ = memory + group * kGroupRows * kDim * 2;
    query_operand_ = OperandLow(queries_, 16);
    query_bytes_ = generic + group * kGroupRows * kDim * 2;
    tiles_ = memory + T::kQueryBytes;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % 4;
    first_row_ = at.first_row + group * kGroupRows + warp * 16;
    for (int j = 0; j < 2; ++j) {
      const int row = min(first_row_ + lane / 4 + j * 8, at.rows - 1);
      position_[j] = at.cached + row / p.group;
    }
    lowest_ = at.cached + min(first_row_, at.rows - 1) / p.group;
    highest_ = at.cached + min(first_row_ + 15, at.rows - 1) / p.group;
  }

  __device__ __forceinline__ void Run() {
    LoadQueries();
    const int first = FirstTile(at_, kKeys), count = EndTile(at_, kKeys) - first;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) acc_[i] = 0.0f;
    Wait(&barriers_.full[0][0], 0);
    IssueScores(0);
    WgmmaWait<0>();
    Pin(scores_);
    Release(0, 0);
    float keep[2];
    Softmax(first, keep);
    PackWeights();
    for (int i = 0; i + 1 < count; ++i) {
      Wait(&barriers_.full[0][(i + 1) % kStages], (i + 1) / kStages & 1);
      IssueScores(i + 1);
      Wait(&barriers_.full[1][i % kStages], i / kStages & 1);
      IssueValues(i);
      WgmmaWait<1>();
      Pin(scores_);
      Release(0, i + 1);
      const bool rescale = Softmax(first + i + 1, keep);
      WgmmaWait<0>();
      Pin(acc_);
      Release(1, i);
      if (rescale) {
#pragma unroll
        for (int j = 0; j < kDim / 2; ++j) acc_[j] *= keep[j / 2 % 2];
      }
      PackWeights();
    }
    Wait(&barriers_.full[1][(count - 1) % kStages], (count - 1) / kStages & 1);
    IssueValues(count - 1);
    WgmmaWait<0>();
    Pin(acc_);
    Finish();
  }

 private:
  // Rows past the run become zeros.
  __device__ __forceinline__ void LoadQueries() {
    constexpr int kRowChunks = kDim / 8;
#pragma unroll 4
    for (int i = threadIdx.x % kGroupThreads; i < kGroupRows * kRowChunks; i += kGroupThreads) {
      const int row = i / kRowChunks, chunk = i % kRowChunks;
      const int at = at_.first_row + group_ * kGroupRows + row;
      const int token = min(at, at_.rows - 1) / p_.group, head = at - token * p_.group;
      const bf16* from = static_cast<const bf16*>(p_.q) + (at_.begin + token) * p_.q_stride +
                         (at_.kv_head * p_.group + (at < at_.rows ? head : 0)) * kDim + chunk * 8;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                       queries_ + ChunkAt<kGroupRows>(row, chunk)),
                   "l"(from), "r"(at < at_.rows ? 16 : 0)
                   : "memory");
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    FenceAsync();
    SyncGroup(group_);
  }

  __device__ __forceinline__ void IssueScores(int index) {
    const uint32_t keys = OperandLow(tiles_ + index % kStages * T::kTileBytes, 16);
    Pin(scores_);
    WgmmaBegin();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const uint64_t a = Operand(query_operand_ + (i / 4 * (kGroupRows * 128) + i % 4 * 32) / 16);
      const uint64_t b = Operand(keys + (i / 4 * (kKeys * 128) + i % 4 * 32) / 16);
      Wgmma<kKeys>::Keys(scores_, a, b, i > 0);
    }
    WgmmaCommit();
  }
  __device__ __forceinline__ void IssueValues(int index) {
    const uint32_t values =
        OperandLow(tiles_ + (kStages + index % kStages) * T::kTileBytes, kKeys * 128);
    Pin(acc_);
    WgmmaBegin();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      Wgmma<kDim>::Values(acc_, weights_[i], Operand(values + i * 128));
    }
    WgmmaCommit();
  }
  // Tells the producer that this warp has read a tile.
  __device__ __forceinline__ void Release(int kind, int index) {
    if (threadIdx.x % kWarp == 0) Arrive(&barriers_.empty[kind][index % kStages]);
  }

  // Scores to weights; what the accumulators are to be multiplied with. False: with one.
  __device__ __forceinline__ bool Softmax(int tile, float (&keep)[2]) {
    const int first_entry = tile * kKeys;
    const int lane = threadIdx.x % kWarp;
    if (first_entry + kKeys - 1 > lowest_ ||
        (highest_ >= at_.window && first_entry <= highest_ - at_.window)) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int entry = first_entry + i / 4 * 8 + lane % 4 * 2 + i % 2;
        const int position = position_[i / 2 % 2];
        const bool seen =
            entry <= position && (position < at_.window || entry > position - at_.window);
        if (!seen) scores_[i] = -INFINITY;
      }
    }
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores_[i]);
    float offset[2];
    bool changed = false;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      top[j] = fmaxf(top[j], __shfl_xor_sync(0xffffffffu, top[j], 1));
      top[j] = fmaxf(top[j], __shfl_xor_sync(0xffffffffu, top[j], 2));
      // Whole numbers grow rarely: the accumulators are seldom rescaled, and exactly.
      top[j] = fmaxf(max_[j], ceilf(top[j] * p_.scale_log2));
      // Nothing seen yet: any finite maximum keeps NaNs away.
      offset[j] = top[j] == -INFINITY ? 0.0f : top[j];
      keep[j] = Exp2(max_[j] - offset[j]);
      changed |= top[j] != max_[j];
      max_[j] = top[j];
      sum_[j] *= keep[j];
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      scores_[i] = Exp2(fmaf(scores_[i], p_.scale_log2, -offset[i / 2 % 2]));
      sum_[i / 2 % 2] += scores_[i];
    }
    return __any_sync(0xffffffffu, changed);
  }
  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        weights_[i][j] = PackPair(scores_[i * 8 + j * 2], scores_[i * 8 + j * 2 + 1]);
      }
    }
  }

  // Divides, gates and stores; through the queries' memory, so that rows leave whole.
  __device__ __forceinline__ void Finish() {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % 4;
    SyncGroup(group_);  // the queries have been read
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      sum_[j] += __shfl_xor_sync(0xffffffffu, sum_[j], 1);
      sum_[j] += __shfl_xor_sync(0xffffffffu, sum_[j], 2);
      const float inverse = 1.0f / sum_[j];
      const int row = warp * 16 + lane / 4 + j * 8;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        char* to = query_bytes_ + ChunkAt<kGroupRows>(row, i) + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(to) =
            PackPair(acc_[i * 4 + j * 2] * inverse, acc_[i * 4 + j * 2 + 1] * inverse);
      }
    }
    __syncwarp();
    constexpr int kRowChunks = kDim / 8, kBatch = 4;  // loads in flight
#pragma unroll 1
    for (int base = lane; base < 16 * kRowChunks; base += kBatch * kWarp) {
      int64_t places[kBatch];
      uint4 gates[kBatch];
      bool valid[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = base + j * kWarp, row = first_row_ + i / kRowChunks;
        valid[j] = row < at_.rows;
        const int token = row / p_.group;
        const int64_t column =
            (at_.kv_head * p_.group + row - token * p_.group) * kDim + i % kRowChunks * 8;
        places[j] = (at_.begin + token) * p_.out_stride + column;
        if (p_.gate != nullptr && valid[j]) {
          gates[j] = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(p_.gate) +
                                                     (at_.begin + token) * p_.gate_stride + column);
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = base + j * kWarp;
        uint4 x = *reinterpret_cast<const uint4*>(
            query_bytes_ + ChunkAt<kGroupRows>(warp * 16 + i / kRowChunks, i % kRowChunks));
        if (p_.gate != nullptr) {
          Gate(x.x, gates[j].x);
          Gate(x.y, gates[j].y);
          Gate(x.z, gates[j].z);
          Gate(x.w, gates[j].w);
        }
        if (valid[j]) *reinterpret_cast<uint4*>(static_cast<bf16*>(p_.out) + places[j]) = x;
      }
    }
  }
  static __device__ __forceinline__ void Gate(uint32_t& x, uint32_t gate) {
    const float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&x));
    const float2 g = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&gate));
    x = PackPair(__fdividef(a.x, 1.0f + __expf(-g.x)), __fdividef(a.y, 1.0f + __expf(-g.y)));
  }

  const AttentionParams& p_;
  const Place& at_;
  Barriers& barriers_;
  const int group_;
  uint32_t queries_, tiles_;
  char* query_bytes_;
  uint32_t query_operand_;
  int first_row_, lowest_, highest_, position_[2];  // of the warp; of the lane's rows
  float acc_[kDim / 2], scores_[kKeys / 2];
  uint32_t weights_[kKeys / 16][4];
  float max_[2] = {-INFINITY, -INFINITY}, sum_[2] = {0.0f, 0.0f};
};
#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const AttentionParams p, const __grid_constant__ PageMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char unaligned[];
  __shared__ Barriers barriers;
  char* generic = unaligned + ((1024 - (SharedAddress(unaligned) & 1023)) & 1023);
  const uint32_t memory = SharedAddress(generic);
  if (threadIdx.x == 0) {
    for (int kind = 0; kind < 2; ++kind) {
      for (int stage = 0; stage < Tiles<kDim>::kStages; ++stage) {
        InitBarrier(&barriers.full[kind][stage], kGroupThreads);
        InitBarrier(&barriers.empty[kind][stage], 8);
      }
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  PdlWait();
  PdlLaunchDependents();
  Place at;
  if (!FindPlace(p, at)) return;
  if (threadIdx.x < kGroupThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    Producer<kDim>(p, maps, at, memory, barriers).Run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    // The same in all lanes, and known to be: operands live in uniform registers.
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / kGroupThreads - 1, 0);
    Consumer<kDim>(p, at, memory, generic, barriers, group).Run();
  }
#endif
}

// K or V of this layer in all pages. How many pages there are is not known here: what is asked for
// exists.
CUtensorMap MapPages(const AttentionParams& p, const void* base) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found{};
    WEIR_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000,
                                                     cudaEnableDefault, &found));
    WEIR_CHECK(found == cudaDriverEntryPointSuccess) << "the driver has no cuTensorMapEncodeTiled";
    return reinterpret_cast<Encode>(symbol);
  }();
  CUtensorMap map;
  const auto dim = static_cast<cuuint64_t>(p.head_dim), heads = static_cast<cuuint64_t>(p.kv_heads);
  const cuuint64_t sizes[4] = {dim, static_cast<cuuint64_t>(p.kv.block_tokens), heads,
                               cuuint64_t{1} << 31};
  const cuuint64_t strides[3] = {heads * dim * 2, dim * 2,
                                 static_cast<cuuint64_t>(p.kv.block_bytes)};
  const cuuint32_t box[4] = {64, kBoxRows, 1, 1}, steps[4] = {1, 1, 1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(base), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  WEIR_CHECK(result == CUDA_SUCCESS)
      << "cuTensorMapEncodeTiled: error " << static_cast<int>(result) << " for pages of "
      << p.kv.block_tokens << " rows, " << p.kv_heads << " x " << p.head_dim << ", "
      << p.kv.block_bytes << " bytes apart";
  return map;
}

PageMaps MakeMaps(const AttentionParams& p) {
  PageMaps maps{};
  maps.usable = p.kv.table != nullptr && p.kv.block_tokens % kBoxRows == 0;
  if (!maps.usable) return maps;
  const int64_t values = int64_t{p.kv.block_tokens} * p.kv_heads * p.head_dim * 2;
  maps.keys = MapPages(p, p.kv.base);
  maps.values = MapPages(p, p.kv.base + values);
  return maps;
}

template <int kDim>
void LaunchOf(const AttentionParams& p, int64_t tiles, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = Tiles<kDim>::kBytes + 1024;
  Launch("Attention, runs", stream, PrefillKernel<kDim>, dim3(tiles * p.kv_heads), dim3(kThreads),
         options, p, MakeMaps(p));
}

}  // namespace

bool PrefillSupported(const AttentionParams& p, DType activation) {
  const auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % 8 == 0;
  };
  return cuda::Device().major == 9 && cuda::Device().minor == 0 && activation == DType::kBF16 &&
         p.kv.bf16 && (p.head_dim == 64 || p.head_dim == 128 || p.head_dim == 256) &&
         aligned(p.kv.base, p.kv.block_bytes / 2) && aligned(p.q, p.q_stride) &&
         aligned(p.k, p.k_stride) && aligned(p.v, p.v_stride) && aligned(p.out, p.out_stride) &&
         aligned(p.gate, p.gate_stride);
}

void LaunchPrefill(const AttentionParams& p, const int32_t* host_offsets, Stream stream) {
  int64_t tiles = 0;
  if (host_offsets == nullptr) {
    tiles = CeilDiv(int64_t{p.tokens} * p.group, kRows) + p.sequences;
  } else {
    for (int i = 0; i < p.sequences; ++i) {
      const int64_t run = host_offsets[i + 1] - host_offsets[i];
      if (run >= p.min_run && run <= p.max_run) tiles += CeilDiv(run * p.group, kRows);
    }
  }
  if (tiles == 0) return;
  if (p.head_dim == 256) {
    LaunchOf<256>(p, tiles, stream);
  } else if (p.head_dim == 128) {
    LaunchOf<128>(p, tiles, stream);
  } else {
    LaunchOf<64>(p, tiles, stream);
  }
}

}  // namespace weir::kernels::gpu
