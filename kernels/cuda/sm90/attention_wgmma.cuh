// The warpgroup products of attention (wgmma, sm_90a): accumulators of 64 rows over 4 warps, lane
// holding rows lane / 4 and lane / 4 + 8 of its warp's 16 and two of every 8 columns.
#pragma once

#include <cstdint>

#include "kernels/cuda/sm90/wgmma.cuh"

namespace weir::kernels::gpu::sm90 {

// clang-format off
#define WEIR_ACC8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                        "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WEIR_ACC32_AT(d, i) \
  WEIR_ACC8(d, i), WEIR_ACC8(d, i + 8), WEIR_ACC8(d, i + 16), WEIR_ACC8(d, i + 24)
#define WEIR_ACC32(d) WEIR_ACC32_AT(d, 0)
#define WEIR_ACC40(d) WEIR_ACC32_AT(d, 0), WEIR_ACC8(d, 32)
#define WEIR_ACC64(d) WEIR_ACC32_AT(d, 0), WEIR_ACC32_AT(d, 32)
#define WEIR_ACC128(d) \
  WEIR_ACC32_AT(d, 0), WEIR_ACC32_AT(d, 32), WEIR_ACC32_AT(d, 64), WEIR_ACC32_AT(d, 96)

template <int kColumns>
struct Wgmma;

template <>
struct Wgmma<64> {
  // d = (accumulate ? d : 0) + A B^T: A [64, 16] and B [64, 16] in shared memory, rows of K.
  static __device__ __forceinline__ void Keys(float (&d)[32], uint64_t a, uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, 0, 0;}\n"
        : WEIR_ACC32(d)
        : "l"(a), "l"(b), "r"(accumulate));
  }
  // d += A V: A [64, 16] in registers, V [16, 64] in shared memory, rows of its 64 columns.
  static __device__ __forceinline__ void Values(float (&d)[32], const uint32_t (&a)[4],
                                                uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
        : WEIR_ACC32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};

template <>
struct Wgmma<80> {
  static __device__ __forceinline__ void Keys(float (&d)[40], uint64_t a, uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %42, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39}, "
        "%40, %41, p, 1, 1, 0, 0;}\n"
        : WEIR_ACC40(d)
        : "l"(a), "l"(b), "r"(accumulate));
  }
};

template <>
struct Wgmma<128> {
  // d = (accumulate ? d : 0) + A B^T: A [64, 16] and B [128, 16] in shared memory, rows of K.
  static __device__ __forceinline__ void Keys(float (&d)[64], uint64_t a, uint64_t b,
                                              int accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0;}\n"
        : WEIR_ACC64(d)
        : "l"(a), "l"(b), "r"(accumulate));
  }
  // d += A V: A [64, 16] in registers, V [16, 128] in shared memory, rows of its 128 columns.
  static __device__ __forceinline__ void Values(float (&d)[64], const uint32_t (&a)[4],
                                                uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : WEIR_ACC64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};

template <>
struct Wgmma<256> {
  // d += A V: A [64, 16] in registers, V [16, 256] in shared memory, rows of its 256 columns.
  static __device__ __forceinline__ void Values(float (&d)[128], const uint32_t (&a)[4],
                                                uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, 1, 1, 1, 1;\n"
        : WEIR_ACC128(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
};
// clang-format on
#undef WEIR_ACC8
#undef WEIR_ACC32_AT
#undef WEIR_ACC32
#undef WEIR_ACC40
#undef WEIR_ACC64
#undef WEIR_ACC128

// Descriptor of an operand in shared memory, 128-byte swizzle: 8 rows of 128 bytes are an atom,
// atoms along the rows follow each other. `columns`: bytes between atoms along the other side
// (where it is longer than an atom and rows are not of K). The low word may be moved on by bytes
// / 16.
__device__ __forceinline__ uint32_t OperandLow(uint32_t address, uint32_t columns) {
  return (address & 0x3ffff) >> 4 | columns >> 4 << 16;
}
__device__ __forceinline__ uint64_t Operand(uint32_t low) {
  constexpr uint32_t kHigh = 1024 >> 4 | 1u << 30;
  return static_cast<uint64_t>(kHigh) << 32 | low;
}

}  // namespace weir::kernels::gpu::sm90
