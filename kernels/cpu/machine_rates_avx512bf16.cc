// Multiplying at the rate of the bf16 dot product.
#include <immintrin.h>

#include "kernels/cpu/machine_rates_loops.h"

namespace weir::kernels {
namespace {

constexpr int kChains = 24;

void DotLoop(int64_t iterations) {
  __m512 sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_setzero_ps();
  const __m512i a = _mm512_set1_epi32(0x3f003f00), b = _mm512_set1_epi32(0x3e803e80);
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      asm volatile("vdpbf16ps %1, %2, %0" : "+v"(sum[i]) : "v"(a), "v"(b));
    }
  }
}

}  // namespace

const RateLoop kRateBf16Avx512Bf16 = {DotLoop, int64_t{kChains} * 16 * 4};

}  // namespace weir::kernels
