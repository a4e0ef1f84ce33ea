// Reading and multiplying at the rate of AVX-512.
#include <immintrin.h>

#include "kernels/cpu/machine_rates_loops.h"

namespace weir::kernels {
namespace {

constexpr int kChains = 24;  // more than latency x units of any core

void FmaLoop(int64_t iterations) {
  __m512 sum[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_setzero_ps();
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (; iterations > 0; --iterations) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      asm volatile("vfmadd231ps %1, %2, %0" : "+v"(sum[i]) : "v"(a), "v"(b));
    }
  }
}

}  // namespace

const RateLoop kRateF32Avx512 = {FmaLoop, int64_t{kChains} * 16 * 2};

uint64_t ReadAvx512(const char* p, int64_t bytes) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (int64_t i = 0; i < bytes; i += 256) {
    a = _mm512_xor_si512(a, _mm512_load_si512(p + i));
    b = _mm512_xor_si512(b, _mm512_load_si512(p + i + 64));
    c = _mm512_xor_si512(c, _mm512_load_si512(p + i + 128));
    d = _mm512_xor_si512(d, _mm512_load_si512(p + i + 192));
  }
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
  uint64_t sum = 0;
  for (uint64_t lane : lanes) sum ^= lane;
  return sum;
}

}  // namespace weir::kernels
