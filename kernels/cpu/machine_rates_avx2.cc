// Reading and multiplying at the rate of AVX2.
#include <immintrin.h>

#include "kernels/cpu/machine_rates_loops.h"

namespace weir::kernels {
namespace {

constexpr int kChains = 12;  // more than latency x units of any core

void FmaLoop(int64_t iterations) {
  __m256 sum[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_setzero_ps();
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      asm volatile("vfmadd231ps %1, %2, %0" : "+x"(sum[i]) : "x"(a), "x"(b));
    }
  }
}

}  // namespace

const RateLoop kRateF32Avx2 = {FmaLoop, int64_t{kChains} * 8 * 2};

uint64_t ReadAvx2(const char* p, int64_t bytes) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i < bytes; i += 128) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm256_xor_si256(
          sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    }
  }
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(
      reinterpret_cast<__m256i*>(lanes),
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3])));
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

}  // namespace weir::kernels
