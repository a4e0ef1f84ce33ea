// Vectors of 8 floats; see vector_avx512.h for what the operations mean. Local to the includer.
#pragma once

#include <immintrin.h>

#define WEIR_VEC inline __attribute__((always_inline))

namespace weir::kernels {
namespace {

struct Vec {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;
  static WEIR_VEC F Set1(float x) { return _mm256_set1_ps(x); }
  static WEIR_VEC F Load(const float* p) { return _mm256_loadu_ps(p); }
  static WEIR_VEC void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static WEIR_VEC __m256i FirstLanes(long n) {
    const int count = n < 0 ? 0 : n > 8 ? 8 : static_cast<int>(n);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static WEIR_VEC F LoadN(const float* p, long n) { return _mm256_maskload_ps(p, FirstLanes(n)); }
  static WEIR_VEC void StoreN(float* p, F x, long n) { _mm256_maskstore_ps(p, FirstLanes(n), x); }
  static WEIR_VEC F LoadBf16N(const unsigned short* p, long n) {
    __m128i bits;
    if (n >= kLanes) {
      bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    } else {
      alignas(16) unsigned short lanes[kLanes] = {};
      for (long i = 0; i < n; ++i) lanes[i] = p[i];
      bits = _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static WEIR_VEC F LoadPairsN(const unsigned short* p, long n) {
    if (n >= 2 * kLanes) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    alignas(32) unsigned short lanes[2 * kLanes] = {};
    for (long i = 0; i < n; ++i) lanes[i] = p[i];
    return _mm256_load_ps(reinterpret_cast<const float*>(lanes));
  }
  static WEIR_VEC F EvenBf16(F pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16));
  }
  static WEIR_VEC F OddBf16(F pairs) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32(-65536)));
  }
  static WEIR_VEC void StoreBf16N(unsigned short* p, F x, long n) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i bits = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    if (n >= kLanes) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
      return;
    }
    alignas(16) unsigned short lanes[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), packed);
    for (long i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static WEIR_VEC F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static WEIR_VEC F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static WEIR_VEC F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static WEIR_VEC F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static WEIR_VEC F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static WEIR_VEC F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static WEIR_VEC F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static WEIR_VEC F IfLess(F x, F limit, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
  }
  static WEIR_VEC F IfNan(F x, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  static WEIR_VEC F KeepRange(F x, int first, int last, F other) {
    const __m256i keep = _mm256_andnot_si256(FirstLanes(first), FirstLanes(last));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(keep));
  }
  static WEIR_VEC F KeepBits(F x, unsigned bits, F other) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
  }
  static WEIR_VEC unsigned AtLeast(F a, F b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static WEIR_VEC F Round(F x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static WEIR_VEC F Pow2(F n) {
    const __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(i, 23));
  }
  static WEIR_VEC float ReduceMax(F x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static WEIR_VEC float ReduceAdd(F x) {
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static WEIR_VEC void Transpose(F (&r)[kLanes]) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {  // 128-bit lanes now hold columns of rows 4 i ... 4 i + 3
      r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
      t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
};

}  // namespace
}  // namespace weir::kernels
