// The softmax of a few queries over tiles of 16 entries on tensor cores (mma.sync): what one warp
// does in attention of single tokens, and how results of several are folded.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace weir::kernels::gpu::decode {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTile = 16;
constexpr int kBlock = 128;                // entries: what work is counted in
constexpr int kMaxParts = 32;              // of one sequence
constexpr int kMaxQueries = 8;             // per kv head
constexpr int kPipelineBytes = 24 * 1024;  // per warp

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x of a whole x <= 0, exactly.
__device__ __forceinline__ float PowerOfTwo(float x) {
  return x < -126.0f ? 0.0f : __int_as_float((static_cast<int>(x) + 127) << 23);
}

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void LoadMatrices(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ uint32_t Transpose(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// What a thread holds of a unit's result: 4 elements of a query per index, index = 2 * (query / 4)
// + half of the dimensions. All parts are folded into it in order. Maxima are whole numbers, so
// that rescaling is exact: the sums do not depend on when it is done.
template <int kDim>
struct Total {
  static constexpr int kItems = 4;
  float4 acc[kItems];
  float max[kItems], sum[kItems];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      acc[i] = {0.0f, 0.0f, 0.0f, 0.0f};
      max[i] = -INFINITY;
      sum[i] = 0.0f;
    }
  }
  // Element of [queries, head_dim]; none of this thread's: past the end.
  static __device__ __forceinline__ int Element(int i) {
    const int at = threadIdx.x * 4;
    if (at >= 2 * kDim) return INT_MAX;
    return (i / 2 * 4 + at / (kDim / 2)) * kDim + i % 2 * (kDim / 2) + at % (kDim / 2);
  }
  __device__ __forceinline__ void Fold(int i, float4 part, float part_max, float part_sum) {
    const float top = fmaxf(max[i], part_max);
    const float keep = PowerOfTwo(max[i] - top), add = PowerOfTwo(part_max - top);
    max[i] = top;
    sum[i] = fmaf(sum[i], keep, part_sum * add);
    acc[i].x = fmaf(acc[i].x, keep, part.x * add);
    acc[i].y = fmaf(acc[i].y, keep, part.y * add);
    acc[i].z = fmaf(acc[i].z, keep, part.z * add);
    acc[i].w = fmaf(acc[i].w, keep, part.w * add);
  }
};

// A warp's softmax over its tiles of a part. A lane holds, of queries 2c and 2c+1 (c = lane % 4),
// rows lane / 4 and lane / 4 + 8 of every 16 dimensions.
template <int kDim>
struct Softmax {
  static constexpr int kSteps = kDim / 16;
  float acc[kSteps][4];
  float max[2], sum[2];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[i][j] = 0.0f;
    }
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  // Scores of a tile of keys: rows of keys, columns of queries.
  static __device__ __forceinline__ void Scores(uint32_t keys, const uint32_t (&q)[kSteps][2],
                                                float (&s)[4]) {
    const int lane = threadIdx.x % kWarp, row = lane % 16;
    float part[4][4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t a[4];
      LoadMatrices(keys + row * kDim * 2 + (((2 * i + lane / 16) ^ (row & 7)) << 4), a);
      Mma(part[i % 4], a, q[i][0], q[i][1]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) s[j] = (part[0][j] + part[1][j]) + (part[2][j] + part[3][j]);
  }

  // s: scores times scale * log2(e), -inf where not seen. On return the weights.
  __device__ __forceinline__ void Update(float (&s)[4]) {
    float top[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float x = fmaxf(s[j], s[j + 2]);
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
      top[j] = fmaxf(max[j], ceilf(x));
    }
    // Nothing seen yet: any finite maximum keeps NaNs away.
    const float safe[2] = {top[0] == -INFINITY ? 0.0f : top[0],
                           top[1] == -INFINITY ? 0.0f : top[1]};
    if (__any_sync(0xffffffffu, top[0] != max[0] || top[1] != max[1])) {
      const float keep[2] = {PowerOfTwo(max[0] - safe[0]), PowerOfTwo(max[1] - safe[1])};
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] *= keep[j % 2];
      }
      sum[0] *= keep[0];
      sum[1] *= keep[1];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) s[j] = Exp2(s[j] - safe[j % 2]);
    sum[0] += s[0] + s[2];
    sum[1] += s[1] + s[3];
    max[0] = top[0];
    max[1] = top[1];
  }

  __device__ __forceinline__ void AddValues(uint32_t values, const float (&weights)[4]) {
    const int lane = threadIdx.x % kWarp, row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
    const uint32_t b0 = Transpose(PackPair(weights[0], weights[1]));
    const uint32_t b1 = Transpose(PackPair(weights[2], weights[3]));
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t a[4];
      LoadMatricesTransposed(values + row * kDim * 2 + (((2 * i + half) ^ (row & 7)) << 4), a);
      Mma(acc[i], a, b0, b1);
    }
  }
};

}  // namespace weir::kernels::gpu::decode
