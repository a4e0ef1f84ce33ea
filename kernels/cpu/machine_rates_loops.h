// Loops that only read, and loops that only multiply and add, per instruction set.
#pragma once

#include <cstdint>

namespace weir::kernels {

struct RateLoop {
  void (*run)(int64_t iterations) = nullptr;
  int64_t flops_per_iteration = 0;
};
using ReadLoop = uint64_t (*)(const char* p, int64_t bytes);  // 64-byte aligned, multiple of 512

#if defined(__x86_64__)
extern const RateLoop kRateF32Avx2, kRateF32Avx512, kRateBf16Avx512Bf16;
uint64_t ReadAvx2(const char* p, int64_t bytes);
uint64_t ReadAvx512(const char* p, int64_t bytes);
#endif

}  // namespace weir::kernels
