// Vectors of 16 floats. The same operations as vector_avx2.h and vector_plain.h, so that a kernel
// is written once over `Vec` and compiled per instruction set. Local to the includer.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/transpose_avx512.h"

#define WEIR_VEC inline __attribute__((always_inline))

namespace weir::kernels {
namespace {

struct Vec {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 6;     // rows of a register tile
  static constexpr int kTileVectors = 4;  // by vectors
  static WEIR_VEC F Set1(float x) { return _mm512_set1_ps(x); }
  static WEIR_VEC F Load(const float* p) { return _mm512_loadu_ps(p); }
  static WEIR_VEC void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  // The first n lanes (n may exceed kLanes or be negative); the others are zero, or not written.
  static WEIR_VEC F LoadN(const float* p, long n) {
    return _mm512_maskz_loadu_ps(FirstLanes(n), p);
  }
  static WEIR_VEC void StoreN(float* p, F x, long n) { _mm512_mask_storeu_ps(p, FirstLanes(n), x); }
  static WEIR_VEC F LoadBf16N(const unsigned short* p, long n) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(FirstLanes(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  // 2 n' neighbouring bf16 as n' 32-bit lanes, of which n / 2 are there (n may be odd); EvenBf16 and
  // OddBf16 take them apart.
  static WEIR_VEC F LoadPairsN(const unsigned short* p, long n) {
    const __mmask32 mask = n >= 32 ? 0xffffffffu : (1u << (n < 0 ? 0 : n)) - 1u;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
  }
  static WEIR_VEC F EvenBf16(F pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16));
  }
  static WEIR_VEC F OddBf16(F pairs) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(-65536)));
  }
  // Nearest, ties to even; NaN stays NaN.
  static WEIR_VEC void StoreBf16N(unsigned short* p, F x, long n) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i bits = _mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16);
    _mm256_mask_storeu_epi16(p, FirstLanes(n), _mm512_cvtepi32_epi16(bits));
  }
  static WEIR_VEC F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static WEIR_VEC F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static WEIR_VEC F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static WEIR_VEC F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static WEIR_VEC F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // b where either is NaN.
  static WEIR_VEC F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static WEIR_VEC F Min(F a, F b) { return _mm512_min_ps(a, b); }
  // a where x < limit, else b; NaN in x gives b.
  static WEIR_VEC F IfLess(F x, F limit, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
  }
  static WEIR_VEC F IfNan(F x, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), b, a);
  }
  // Lanes [first, last) of x, `other` elsewhere.
  static WEIR_VEC F KeepRange(F x, int first, int last, F other) {
    const __mmask16 keep = FirstLanes(last) & static_cast<__mmask16>(~FirstLanes(first));
    return _mm512_mask_blend_ps(keep, other, x);
  }
  // Lane i of x where bit i is set, `other` elsewhere.
  static WEIR_VEC F KeepBits(F x, unsigned bits, F other) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), other, x);
  }
  // Bit i: lane i of a >= b.
  static WEIR_VEC unsigned AtLeast(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static WEIR_VEC F Round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // 2^n for whole n in [-126, 127].
  static WEIR_VEC F Pow2(F n) {
    const __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
  }
  static WEIR_VEC float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }
  static WEIR_VEC float ReduceAdd(F x) { return _mm512_reduce_add_ps(x); }
  static WEIR_VEC void Transpose(F (&r)[kLanes]) { Transpose16(r); }
};

}  // namespace
}  // namespace weir::kernels
