// The bulk copy and the warpgroup products that MatMul uses beside those of tma.cuh and wgmma.cuh.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/sm90/wgmma.cuh"

namespace weir::kernels::gpu::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

inline constexpr uint64_t kEvictFirst = 0x12F0000000000000u, kEvictLast = 0x14F0000000000000u;

__device__ __forceinline__ void LoadBox(void* to, const CUtensorMap* map, uint64_t* barrier,
                                        int column, int row, int panel, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, 0, %5}], [%2], %6;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(column), "r"(row), "r"(panel), "l"(policy)
      : "memory");
}

// d [64, N] += a [64, 16] b [N, 16]^T, bf16 in, f32 out, by the four warps of a group.
__device__ __forceinline__ void Multiply(float (&d)[4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, "
      "0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b));
}
#define WEIR_REGS4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WEIR_REGS16(d, i) \
  WEIR_REGS4(d, i), WEIR_REGS4(d, i + 4), WEIR_REGS4(d, i + 8), WEIR_REGS4(d, i + 12)
__device__ __forceinline__ void Multiply(float (&d)[8], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, "
      "%9, 1, 1, 1, 0, 0;"
      : WEIR_REGS4(d, 0), WEIR_REGS4(d, 4)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void Multiply(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
      : WEIR_REGS16(d, 0)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void Multiply(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
      "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
      : WEIR_REGS16(d, 0), WEIR_REGS16(d, 16)
      : "l"(a), "l"(b));
}
#undef WEIR_REGS16
#undef WEIR_REGS4

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::kernels::gpu::sm90
