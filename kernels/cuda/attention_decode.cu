// Attention of one new token per sequence over bf16 pages or rings: norm, rotary, the store of the
// new entry, the gate and the split along the sequence in one launch, bound by memory bandwidth.
//
// The unit of work is a sequence's kv head with all its query heads (at most 8). Its entries are
// cut into parts that depend on the sequence's length only; a part's blocks of 128 entries are
// spread over the grid evenly, whatever the lengths. A thread block that has all parts of a unit
// folds them in registers; otherwise the parts go to scratch and the last thread block to arrive
// folds them, in the same order with the same arithmetic: a result does not depend on the batch.
//
// Inside a part each warp takes every fourth tile of 16 entries with a softmax of its own and loads
// its tiles by itself (cp.async, 24 KiB in flight), so that warps never wait for each other. Keys
// are the rows of the tensor-core products (S^T = K q^T, O^T = V^T P^T): the few queries fill the
// narrow side of an m16n8k16.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_softmax.cuh"
#include "kernels/cuda/attention_walk.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

using namespace decode;  // NOLINT

constexpr int kMaxGrid = 1024;

// Parts of a split unit that have arrived, by the thread block that holds the unit's first part.
// Zero between launches: who completes a unit resets its counter. Launches run one after another
// (PdlWait), on one stream at a time.
__device__ unsigned arrived[kMaxGrid];

struct DecodeParams {
  AttentionParams a;
  float* partials;  // [grid, 2, max_parts, PartialFloats]
  int max_parts;
};

// Accumulators [queries, head_dim], then maxima and sums [8] each.
__host__ __device__ constexpr int PartialFloats(int group, int head_dim) {
  return group * head_dim + 2 * kMaxQueries;
}

template <int kDim>
struct Shared {
  // Before a unit: rows of q, k being prepared. After a part: half the dimensions of 4 queries of
  // each warp. When split parts are folded: their weights and sums.
  float merge[kWarps][4][kDim / 2];
  bf16 queries[kMaxQueries][kDim + 8];
  bf16 key[kDim], value[kDim];  // the new entry
  float maxima[kWarps][kMaxQueries], sums[kWarps][kMaxQueries];
  float q_norm[kDim], k_norm[kDim], inv_freq[kDim / 2];  // constants
  float cosine[kDim / 2], sine[kDim / 2];                // of the unit's position
  unsigned scan[kWarps];
  Walk start;
  int last;
};

template <int kDim>
class Decode {
 public:
  __device__ __forceinline__ Decode(const DecodeParams& d, Shared<kDim>& shared, uint32_t tiles)
      : d_(d), p_(d.a), s_(shared), warp_(threadIdx.x / kWarp), lane_(threadIdx.x % kWarp) {
    tiles_ = tiles + warp_ * kPipelineBytes;
  }

  __device__ __forceinline__ void Run() {
    const bool any = FindStart();
    ZeroPadding();
    if (!any) return;
    FetchUnit();
    Loader<kDim> loader(p_, walk_, end_, tiles_);
#pragma unroll 1
    for (int i = 0; i < Loader<kDim>::kSlots; ++i) loader.Issue();
    bool more;
    do {
      PrepareUnit();
      total_.Clear();
      const int first_part = walk_.part;
      const bool whole =
          walk_.unit >= begin_ && walk_.unit + (walk_.cut.parts - 1) * walk_.cut.per_part < end_;
      for (; walk_.HasPart(end_); ++walk_.part) {
        AttendPart(loader);
        MergePart(whole);
      }
      if (whole) {
        Finish();
      } else {
        Arrive(walk_.part - first_part);
      }
      more = walk_.NextUnit(p_, end_);
      if (more) FetchUnit();
    } while (more);
  }

 private:
  __device__ __forceinline__ void ZeroPadding() const {
#pragma unroll 1
    for (int seq = blockIdx.x; seq < p_.sequences; seq += gridDim.x) {
      const int token = p_.offsets[seq];
      if (p_.slots[seq] >= 0 || p_.offsets[seq + 1] - token != 1) continue;
#pragma unroll 1
      for (int e = threadIdx.x; e < p_.heads * kDim; e += kThreads) {
        Store(static_cast<bf16*>(p_.out) + token * p_.out_stride + e, 0.0f);
      }
    }
  }

  // This thread block's share of all blocks, and the first part that begins in it.
  __device__ __forceinline__ bool FindStart() {
    const int each = (p_.sequences + kThreads - 1) / kThreads;
    const int seq0 = threadIdx.x * each, seq1 = min(seq0 + each, p_.sequences);
    unsigned own = 0;
    Cut cut;
#pragma unroll 1
    for (int seq = seq0; seq < seq1; ++seq) {
      cut = CutOf(p_, seq);
      own += cut.blocks;
    }
    unsigned before = own;
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
      const unsigned other = __shfl_up_sync(0xffffffffu, before, i);
      if (lane_ >= i) before += other;
    }
    if (lane_ == kWarp - 1) s_.scan[warp_] = before;
    __syncthreads();
    before -= own;
    work_ = {0, gridDim.x};
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp_) before += work_.total;
      work_.total += s_.scan[w];
    }
    work_.total *= p_.kv_heads;
    before *= p_.kv_heads;
    own *= p_.kv_heads;
    if (work_.total == 0) return false;
    begin_ = work_.Begin(blockIdx.x);
    end_ = work_.Begin(blockIdx.x + 1);
    if (begin_ >= before && begin_ < before + own) {
      int seq = seq0;
      if (each > 1) {
#pragma unroll 1
        for (;; ++seq) {
          cut = CutOf(p_, seq);
          const unsigned blocks = cut.blocks * p_.kv_heads;
          if (begin_ < before + blocks) break;
          before += blocks;
        }
      }
      Walk& start = s_.start;
      start.seq = seq;
      start.cut = cut;
      start.head = (begin_ - before) / cut.blocks;
      start.unit = before + start.head * cut.blocks;
      start.part = (begin_ - start.unit + cut.per_part - 1) / cut.per_part;
    }
    __syncthreads();
    walk_ = s_.start;
    if (walk_.HasPart(end_)) return begin_ < end_;
    return walk_.NextUnit(p_, end_);
  }

  // Asks early for what PrepareUnit() reads first.
  __device__ __forceinline__ void FetchUnit() {
    const unsigned last = walk_.unit + (walk_.cut.parts - 1) * walk_.cut.per_part;
    items_ = p_.group + (last >= begin_ && last < end_ ? 2 : 0);
    token_ = p_.offsets[walk_.seq];
    if (p_.half > 0) position_ = p_.positions[token_];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (warp_ + i * kWarps < items_) fetched_[i] = FetchRow(warp_ + i * kWarps);
    }
  }
  // A query of the group, the new key or the new value: 8 elements a lane.
  __device__ __forceinline__ uint4 FetchRow(int item) const {
    const bool query = item < p_.group, key = item == p_.group;
    const int64_t stride = query ? p_.q_stride : key ? p_.k_stride : p_.v_stride;
    const int head = query ? walk_.head * p_.group + item : walk_.head;
    const auto* x = static_cast<const bf16*>(query ? p_.q : key ? p_.k : p_.v);
    if (lane_ * 8 >= kDim) return {0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(x + token_ * stride + head * kDim + lane_ * 8);
  }

  // The unit's queries into registers; its new entry into shared memory and into the cache, by the
  // thread block that has the last part.
  __device__ __forceinline__ void PrepareUnit() {
    if (p_.half > 0) {
      RotaryTable(s_.inv_freq, p_.half, position_, 1.0f, s_.cosine, s_.sine, threadIdx.x, kThreads);
    }
    __syncthreads();  // the table is there, and of the unit before all has been read
#pragma unroll 1
    for (int i = warp_; i < items_; i += kWarps) {
      PrepareRow(i, i < kWarps ? fetched_[0] : i < 2 * kWarps ? fetched_[1] : FetchRow(i));
    }
    __syncthreads();
    const uint32_t at = SharedAddress(&s_.queries[lane_ % 8][lane_ / 8 * 8]);
#pragma unroll
    for (int i = 0; i < kDim / 16; i += 2) {
      uint32_t r[4];
      LoadMatrices(at + i * 32, r);
      q_[i][0] = r[0];
      q_[i][1] = r[1];
      q_[i + 1][0] = r[2];
      q_[i + 1][1] = r[3];
    }
  }

  __device__ __forceinline__ void PrepareRow(int item, uint4 raw) {
    const bool query = item < p_.group, key = item == p_.group;
    const int d0 = lane_ * 8;
    const bool active = d0 < kDim;
    float y[8];
    Unpack(raw, y);
    const bool norm = (query && p_.q_norm != nullptr) || (key && p_.k_norm != nullptr);
    if (norm) {
      const float* weight = query ? s_.q_norm : s_.k_norm;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(y[i], y[i], sum);
      const float inverse = rsqrtf(WarpSum(sum) / kDim + p_.norm_eps);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] *= inverse * weight[active ? d0 + i : 0];
    }
    if ((query || key) && p_.half > 0) {
      float* row = &s_.merge[0][0][0] + warp_ * kDim;
      if (active) StoreN<8>(row + d0, y);
      __syncwarp();
#pragma unroll 1
      for (int i = lane_; i < p_.half; i += kWarp) {
        const float a = row[i], b = row[i + p_.half], c = s_.cosine[i], s = s_.sine[i];
        row[i] = a * c - b * s;
        row[i + p_.half] = b * c + a * s;
      }
      __syncwarp();
      if (active) LoadN<8>(row + d0, y);
      __syncwarp();
    }
    if (!active) return;
    StoreN<8>((query ? s_.queries[item] : key ? s_.key : s_.value) + d0, y);
    if (query) return;
    bf16* stored = KeyAt<bf16>(p_, walk_.seq, walk_.cut.slot, walk_.cut.length - 1, walk_.head);
    StoreN<8>(stored + (key ? 0 : ValueOffset(p_)) + d0, y);
  }

  static __device__ __forceinline__ void Unpack(const uint4& raw, float (&y)[8]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[2 * i] = __uint_as_float(words[i] << 16);
      y[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }

  // Waits for the warp's oldest tile, puts the new entry's row into it where it belongs, and
  // returns it.
  __device__ __forceinline__ uint32_t Arrived(int tile, const bf16* fresh) {
    WaitCopies<Loader<kDim>::kSlots - 1>();
    __syncwarp();
    const uint32_t at = tiles_ + slot_ * Loader<kDim>::kSlotBytes;
    const int row = walk_.cut.length - 1 - tile * kTile;
    if (row < kTile) {
      if (lane_ < kDim / 8) {
        const uint4 chunk = *reinterpret_cast<const uint4*>(fresh + lane_ * 8);
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(at + row * kDim * 2 +
                                                                   ((lane_ ^ (row & 7)) << 4)),
                     "r"(chunk.x), "r"(chunk.y), "r"(chunk.z), "r"(chunk.w)
                     : "memory");
      }
      __syncwarp();
    }
    slot_ = slot_ + 1 == Loader<kDim>::kSlots ? 0 : slot_ + 1;
    return at;
  }

  __device__ __forceinline__ void AttendPart(Loader<kDim>& loader) {
    softmax_.Clear();
    const int end = walk_.EndTile();
    int tile = OwnTile(walk_.FirstTile(), warp_);
    float s[4];
    // Keys and values of a tile in turn: a loop, so that the loader's code is there once.
#pragma unroll 1
    for (bool keys = true; tile < end; keys = !keys) {
      const uint32_t at = Arrived(tile, keys ? s_.key : s_.value);
      if (keys) {
        Softmax<kDim>::Scores(at, q_, s);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int entry = tile * kTile + lane_ / 4 + j / 2 * 8;
          const bool seen = entry >= walk_.cut.first && entry < walk_.cut.length;
          s[j] = seen ? s[j] * p_.scale_log2 : -INFINITY;
        }
        softmax_.Update(s);
      } else {
        softmax_.AddValues(at, s);
        tile += kWarps;
      }
      __syncwarp();
      loader.Issue();
    }
  }

  // The warps' results of a part as one: (0 + 2) + (1 + 3); then into the total or to scratch.
  __device__ __forceinline__ void MergePart(bool whole) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float x = softmax_.sum[j];
      x += __shfl_xor_sync(0xffffffffu, x, 4);
      x += __shfl_xor_sync(0xffffffffu, x, 8);
      x += __shfl_xor_sync(0xffffffffu, x, 16);
      if (lane_ < 4) {
        s_.maxima[warp_][2 * lane_ + j] = softmax_.max[j];
        s_.sums[warp_][2 * lane_ + j] = x;
      }
    }
    __syncthreads();
    const int c = lane_ % 4;
    float factor[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) factor[j] = PowerOfTwo(softmax_.max[j] - PartMax(2 * c + j));
    const int halves = p_.group > 4 ? 2 : 1;
#pragma unroll 1
    for (int half = 0; half < halves; ++half) {
      const bool mine = c / 2 == half;
      float* to = &s_.merge[warp_][2 * (c % 2)][lane_ / 4];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        if (mine) {
#pragma unroll
          for (int i = 0; i < kDim / 32; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              to[j % 2 * (kDim / 2) + i * 16 + j / 2 * 8] =
                  softmax_.acc[side * (kDim / 32) + i][j] * factor[j % 2];
            }
          }
        }
        __syncthreads();
        Collect(half, side, whole);
        __syncthreads();
      }
    }
  }

  __device__ __forceinline__ float PartMax(int query) const {
    return fmaxf(fmaxf(s_.maxima[0][query], s_.maxima[1][query]),
                 fmaxf(s_.maxima[2][query], s_.maxima[3][query]));
  }

  __device__ __forceinline__ void Collect(int half, int side, bool whole) {
    float* partial = whole ? nullptr : Partial(blockIdx.x, walk_.unit < begin_ ? 0 : 1, walk_.part);
#pragma unroll
    for (int i = side; i < Total<kDim>::kItems; i += 2) {
      const int element = Total<kDim>::Element(i);
      if (i / 2 != half || element >= p_.group * kDim) continue;
      const int query = element / kDim;
      float4 x[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        x[w] = *reinterpret_cast<const float4*>(&s_.merge[w][0][0] + threadIdx.x * 4);
      }
      const float4 acc = {
          (x[0].x + x[2].x) + (x[1].x + x[3].x), (x[0].y + x[2].y) + (x[1].y + x[3].y),
          (x[0].z + x[2].z) + (x[1].z + x[3].z), (x[0].w + x[2].w) + (x[1].w + x[3].w)};
      const float max = PartMax(query);
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum = fmaf(s_.sums[w][query], PowerOfTwo(s_.maxima[w][query] - max), sum);
      }
      if (whole) {
        total_.Fold(i, acc, max, sum);
        continue;
      }
      *reinterpret_cast<float4*>(partial + element) = acc;
      if (element % kDim == 0) {
        partial[p_.group * kDim + query] = max;
        partial[p_.group * kDim + kMaxQueries + query] = sum;
      }
    }
  }

  // Of a unit that begins before the thread block's share (side 0) or ends behind it (1).
  __device__ __forceinline__ float* Partial(unsigned cta, int side, int part) const {
    return d_.partials +
           ((cta * 2 + side) * int64_t{d_.max_parts} + part) * PartialFloats(p_.group, kDim);
  }

  __device__ __forceinline__ void Arrive(int parts) {
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* counter = &arrived[work_.Owner(walk_.unit)];
      unsigned before;
      // Releases what the thread block wrote, acquires what others did.
      asm volatile(
          "fence.acq_rel.gpu;\n"
          "atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
          : "=r"(before)
          : "l"(counter), "r"(parts)
          : "memory");
      s_.last = before + parts == static_cast<unsigned>(walk_.cut.parts);
      if (s_.last) *counter = 0;
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    __syncthreads();
    if (s_.last) Combine();
  }

  // Adds up the parts of a unit from scratch: as Total::Fold does, with what is known in advance.
  __device__ __forceinline__ void Combine() {
    const int parts = walk_.cut.parts, stats = parts * kMaxQueries;
    float *weights = &s_.merge[0][0][0], *sums = weights + kMaxParts * kMaxQueries;
    auto* places = reinterpret_cast<unsigned*>(s_.maxima);  // free by now
    static_assert(sizeof(s_.maxima) >= kMaxParts * sizeof(unsigned));
    if (threadIdx.x < parts) {
      const unsigned cta = work_.Owner(walk_.unit + threadIdx.x * walk_.cut.per_part);
      const int side = walk_.unit < work_.Begin(cta) ? 0 : 1;
      places[threadIdx.x] = Partial(cta, side, threadIdx.x) - d_.partials;
    }
    __syncthreads();
#pragma unroll 2
    for (int i = threadIdx.x; i < stats; i += kThreads) {
      const float* from = d_.partials + places[i / kMaxQueries] + p_.group * kDim + i % kMaxQueries;
      weights[i] = __ldcg(from);
      sums[i] = __ldcg(from + kMaxQueries);
    }
    __syncthreads();
    const int query = threadIdx.x % kMaxQueries;
    float max = -INFINITY;
#pragma unroll 4
    for (int part = 0; part < parts; ++part) {
      max = fmaxf(max, weights[part * kMaxQueries + query]);
    }
    __syncthreads();
    // Zeros behind the last part: no load below hangs on a condition.
    constexpr int kBatch = 16;  // loads in flight
    static_assert(kMaxParts % kBatch == 0);
    for (int i = threadIdx.x; i < kMaxParts * kMaxQueries; i += kThreads) {
      weights[i] = i < stats ? PowerOfTwo(weights[i] - max) : 0.0f;
      if (i >= stats) sums[i] = 0.0f;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < Total<kDim>::kItems; ++i) {
      const int element = Total<kDim>::Element(i);
      if (element >= p_.group * kDim) continue;
      float4 acc = {0.0f, 0.0f, 0.0f, 0.0f};
      float sum = 0.0f;
#pragma unroll 1
      for (int base = 0; base < parts; base += kBatch) {
        float4 x[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const float* from = d_.partials + places[min(base + j, parts - 1)] + element;
          x[j] = __ldcg(reinterpret_cast<const float4*>(from));
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int at = (base + j) * kMaxQueries + element / kDim;
          const float weight = weights[at];
          sum = fmaf(sums[at], weight, sum);
          acc.x = fmaf(x[j].x, weight, acc.x);
          acc.y = fmaf(x[j].y, weight, acc.y);
          acc.z = fmaf(x[j].z, weight, acc.z);
          acc.w = fmaf(x[j].w, weight, acc.w);
        }
      }
      FinishItem(element, acc, sum);
    }
  }

  __device__ __forceinline__ void Finish() const {
#pragma unroll
    for (int i = 0; i < Total<kDim>::kItems; ++i) {
      const int element = Total<kDim>::Element(i);
      if (element < p_.group * kDim) FinishItem(element, total_.acc[i], total_.sum[i]);
    }
  }
  __device__ __forceinline__ void FinishItem(int element, float4 acc, float sum) const {
    const int64_t at = int64_t{walk_.head} * p_.group * kDim + element;
    const float inverse = __fdividef(1.0f, sum);
    float x[4] = {acc.x * inverse, acc.y * inverse, acc.z * inverse, acc.w * inverse};
    if (p_.gate != nullptr) {
      const uint2 gate = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(p_.gate) +
                                                         token_ * p_.gate_stride + at);
      const float2 g0 = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&gate.x));
      const float2 g1 = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&gate.y));
      x[0] = __fdividef(x[0], 1.0f + __expf(-g0.x));
      x[1] = __fdividef(x[1], 1.0f + __expf(-g0.y));
      x[2] = __fdividef(x[2], 1.0f + __expf(-g1.x));
      x[3] = __fdividef(x[3], 1.0f + __expf(-g1.y));
    }
    *reinterpret_cast<uint2*>(static_cast<bf16*>(p_.out) + token_ * p_.out_stride + at) =
        uint2{PackPair(x[0], x[1]), PackPair(x[2], x[3])};
  }

  const DecodeParams& d_;
  const AttentionParams& p_;
  Shared<kDim>& s_;
  const int warp_, lane_;
  uint32_t tiles_;  // this warp's
  int slot_ = 0;
  Work work_{};
  unsigned begin_ = 0, end_ = 0;
  Walk walk_{};
  // Of the unit: rows to prepare, and the first of them.
  int items_ = 0, position_ = 0;
  int64_t token_ = 0;
  uint4 fetched_[2];
  uint32_t q_[kDim / 16][2];
  Softmax<kDim> softmax_;
  Total<kDim> total_;
};

template <int kDim>
__global__ void __launch_bounds__(kThreads, 2) DecodeKernel(const DecodeParams d) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(memory + kWarps * kPipelineBytes);
  static_assert(kWarps * kPipelineBytes + sizeof(Shared<kDim>) <= 228 * 1024 / 2 - 1024);
#pragma unroll 1
  for (int i = threadIdx.x; i < kDim; i += kThreads) {
    if (d.a.q_norm != nullptr) shared.q_norm[i] = d.a.q_norm[i];
    if (d.a.k_norm != nullptr) shared.k_norm[i] = d.a.k_norm[i];
    if (i < d.a.half) shared.inv_freq[i] = d.a.inv_freq[i];
  }
  // Queries past the group stay zero.
#pragma unroll 1
  for (int i = threadIdx.x; i < kMaxQueries * (kDim + 8) / 2; i += kThreads) {
    reinterpret_cast<uint32_t*>(shared.queries)[i] = 0;
  }
  PdlLaunchDependents();
  PdlWait();
  Decode<kDim>(d, shared, SharedAddress(memory)).Run();
}

int MaxParts(int64_t max_entries) {
  return static_cast<int>(std::clamp<int64_t>(CeilDiv(max_entries, kBlock) + 1, 1, kMaxParts));
}

// Two thread blocks per multiprocessor, no more than there can be parts.
int64_t MaxGridSize(int64_t units) {
  return std::min<int64_t>({2 * cuda::Device().multiprocessors, kMaxGrid, units * kMaxParts});
}
// At most that many; shares end where units end when all units are equal.
int64_t GridSize(int64_t units) {
  const int64_t most = MaxGridSize(units);
  return units >= most ? units / CeilDiv(units, most) : units * (most / units);
}

template <int kDim>
void LaunchOf(const DecodeParams& d, Stream stream) {
  LaunchOptions options;
  options.shared_bytes = kWarps * kPipelineBytes + sizeof(Shared<kDim>);
  const int64_t grid = GridSize(int64_t{d.a.sequences} * d.a.kv_heads);
  Launch("Attention, one token each", stream, DecodeKernel<kDim>, dim3(grid), dim3(kThreads),
         options, d);
}

}  // namespace

bool DecodeSupported(const AttentionParams& p, DType activation) {
  const auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % 8 == 0;
  };
  constexpr int kSharedBytes = kWarps * kPipelineBytes + sizeof(Shared<256>);
  return activation == DType::kBF16 && p.kv.bf16 && p.group <= kMaxQueries &&
         cuda::Device().max_shared_bytes >= kSharedBytes &&
         (p.head_dim == 64 || p.head_dim == 128 || p.head_dim == 256) &&
         p.kv.block_tokens % kTile == 0 && aligned(p.q, p.q_stride) && aligned(p.k, p.k_stride) &&
         aligned(p.v, p.v_stride) && aligned(p.kv.base, p.kv.block_bytes / 2) &&
         aligned(p.out, p.out_stride) && aligned(p.gate, p.gate_stride);
}

int64_t DecodeScratchBytes(int heads, int kv_heads, int head_dim, int64_t sequences,
                           int64_t max_entries) {
  if (sequences <= 0 || heads / kv_heads > kMaxQueries) return 0;
  return int64_t{2} * MaxGridSize(sequences * kv_heads) * MaxParts(max_entries) *
         PartialFloats(heads / kv_heads, head_dim) * static_cast<int64_t>(sizeof(float));
}

void LaunchDecode(const AttentionParams& p, int64_t max_entries, void* scratch, Stream stream) {
  DecodeParams d{p, static_cast<float*>(scratch), MaxParts(max_entries)};
  if (p.head_dim == 256) {
    LaunchOf<256>(d, stream);
  } else if (p.head_dim == 128) {
    LaunchOf<128>(d, stream);
  } else {
    LaunchOf<64>(d, stream);
  }
}

}  // namespace weir::kernels::gpu
