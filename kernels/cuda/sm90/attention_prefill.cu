// Attention of runs on Hopper: flash attention over bf16 entries wherever they are (pages, ring,
// the run's own keys), after FlashAttention-3 (Shah et al. 2024).
//
// A thread block has 128 rows of one sequence and kv head; a row is a token and one of the query
// heads that share the kv head. A producer warpgroup brings tiles of keys and values: from pages by
// the copy engine, 16 rows at a time; from rings, odd pages and at the end of the run row by row
// (cp.async: rows may lie anywhere, zeros past the end). Two consumer warpgroups of 64 rows
// multiply them (wgmma). The scores of the next tile run on the tensor cores beside the softmax of
// this one. Tiles begin at fixed entries and hidden ones add exact zeros: what a token gets depends
// on its position only.
#include <cuda.h>

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/sm90/attention_tiles.cuh"
#include "kernels/cuda/sm90/attention_wgmma.cuh"

namespace weir::kernels::gpu {
namespace {

using namespace prefill;  // NOLINT

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
using namespace sm90;  // NOLINT

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
    MmaWait<0>();
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
      MmaWait<1>();
      Pin(scores_);
      Release(0, i + 1);
      const bool rescale = Softmax(first + i + 1, keep);
      MmaWait<0>();
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
    MmaWait<0>();
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
    ProxyFence();
    SyncGroup(group_);
  }

  __device__ __forceinline__ void IssueScores(int index) {
    const uint32_t keys = OperandLow(tiles_ + index % kStages * T::kTileBytes, 16);
    Pin(scores_);
    MmaFence();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const uint64_t a = Operand(query_operand_ + (i / 4 * (kGroupRows * 128) + i % 4 * 32) / 16);
      const uint64_t b = Operand(keys + (i / 4 * (kKeys * 128) + i % 4 * 32) / 16);
      Wgmma<kKeys>::Keys(scores_, a, b, i > 0);
    }
    MmaCommit();
  }
  __device__ __forceinline__ void IssueValues(int index) {
    const uint32_t values =
        OperandLow(tiles_ + (kStages + index % kStages) * T::kTileBytes, kKeys * 128);
    Pin(acc_);
    MmaFence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      Wgmma<kDim>::Values(acc_, weights_[i], Operand(values + i * 128));
    }
    MmaCommit();
  }
  // Tells the producer that this warp has read a tile.
  __device__ __forceinline__ void Release(int kind, int index) {
    if (threadIdx.x % kWarp == 0) BarrierArrive(&barriers_.empty[kind][index % kStages]);
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
        BarrierInit(&barriers.full[kind][stage], kGroupThreads);
        BarrierInit(&barriers.empty[kind][stage], 8);
      }
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  PdlLaunchDependents();
  PdlWait();
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
  CUtensorMap map;
  const auto dim = static_cast<cuuint64_t>(p.head_dim), heads = static_cast<cuuint64_t>(p.kv_heads);
  const cuuint64_t sizes[4] = {dim, static_cast<cuuint64_t>(p.kv.block_tokens), heads,
                               cuuint64_t{1} << 31};
  const cuuint64_t strides[3] = {heads * dim * 2, dim * 2,
                                 static_cast<cuuint64_t>(p.kv.block_bytes)};
  const cuuint32_t box[4] = {64, kBoxRows, 1, 1}, steps[4] = {1, 1, 1, 1};
  const CUresult result = sm90::TensorMapEncoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(base), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
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
