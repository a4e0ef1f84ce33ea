// Warp-level matrix pieces: moving 8 x 8 tiles between registers and shared memory, and products of
// 16 x 16 blocks on the tensor cores with more precision than one bf16 product has.
#pragma once

#include <cstdint>

#include "kernels/cuda/sm90/tma.cuh"
#include "kernels/cuda/sm90/wgmma.cuh"

namespace weir::kernels::gpu::sm90 {

// Four 8 x 8 bf16 matrices; lane l gives the address of row l % 8 of matrix l / 8. Register m of
// lane l then holds, of matrix m: row l / 4, columns 2 (l % 4) + {0, 1}; transposed: rows 2 (l % 4)
// + {0, 1}, column l / 4.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void StoreMatrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                              uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ __forceinline__ void StoreMatricesTransposed(uint32_t address, uint32_t a, uint32_t b,
                                                        uint32_t c, uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}
#endif

__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A pair of floats as the sum of two bf16 pairs: 16 bits of each number.
struct SplitPair {
  uint32_t high, low;
};
__device__ __forceinline__ SplitPair Split(float x, float y) {
  SplitPair s;
  s.high = PackBf16(x, y);
  s.low = PackBf16(x - __uint_as_float(s.high << 16), y - __uint_as_float(s.high & 0xffff0000u));
  return s;
}

__device__ __forceinline__ void MmaTf32(float* d, const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// x as the sum of two tf32 numbers: 22 bits of it.
struct SplitNumber {
  uint32_t high, low;
};
__device__ __forceinline__ SplitNumber Split(float x) {
  SplitNumber s;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(s.high) : "f"(x));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(s.low) : "f"(x - __uint_as_float(s.high)));
  return s;
}

// A 16 x 16 f32 block of one warp, as two accumulators of m16n8: lane l holds d[4 n + {0, 1}] = row
// l / 4, columns 8 n + 2 (l % 4) + {0, 1} and d[4 n + {2, 3}] = 8 rows below.
//
// d += a b with b in shared memory, rows `stride` floats apart (free of bank conflicts where stride
// % 16 == 4). Three bf16 products keep ~16 bits with the range of f32.
__device__ __forceinline__ void MultiplyBlock(float (&d)[8], const float (&a)[8], const float* b,
                                              int stride) {
  const int lane = threadIdx.x % 32;
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const SplitPair s = Split(a[2 * i], a[2 * i + 1]);
    high[i] = s.high, low[i] = s.low;
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float* at = b + 2 * (lane % 4) * stride + 8 * n + lane / 4;
    const SplitPair b0 = Split(at[0], at[stride]), b1 = Split(at[8 * stride], at[9 * stride]);
    float main[4] = {}, rest[4] = {};
    MmaBf16(rest, low, b0.high, b1.high);
    MmaBf16(main, high, b0.high, b1.high);
    MmaBf16(rest, high, b0.low, b1.low);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[4 * n + i] += main[i] + rest[i];
  }
}

// The same by three tf32 products: ~22 bits. The accumulator of one product is the left factor of
// the next without a shuffle because both sides take the contracted index in the order 0 2 4 6 1 3
// 5 7.
__device__ __forceinline__ void MultiplyBlockExactly(float (&d)[8], const float (&a)[8],
                                                     const float* b, int stride) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const SplitNumber s = Split(a[4 * k + i % 2 * 2 + i / 2]);
      high[i] = s.high, low[i] = s.low;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float* at = b + (8 * k + 2 * (lane % 4)) * stride + 8 * n + lane / 4;
      const SplitNumber b0 = Split(at[0]), b1 = Split(at[stride]);
      MmaTf32(d + 4 * n, low, b0.high, b1.high);
      MmaTf32(d + 4 * n, high, b0.low, b1.low);
      MmaTf32(d + 4 * n, high, b0.high, b1.high);
    }
  }
}

}  // namespace weir::kernels::gpu::sm90
