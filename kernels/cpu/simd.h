// Vectors of f32 as wide as the including file is compiled for: 16 lanes with AVX-512, 8 with AVX2,
// else 4 in portable code. Kernel bodies (`*_body.h`) are written once on top of it and included by
// `*_baseline.cc`, `*_avx2.cc` and `*_avx512.cc`.
//
// Everything is in an anonymous namespace and nothing of the standard library is used: each file
// keeps its own copy, so that the linker never hands AVX-512 code to an older machine.
// An operation gives each lane the same result wherever in a vector the lane is.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
// GCC 12 takes the undefined operands of its own intrinsics for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define WEIR_INLINE inline __attribute__((always_inline))

namespace weir::kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4), may_alias));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4), may_alias));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), may_alias, aligned(4)));

WEIR_INLINE Vec Load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
WEIR_INLINE void Store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// Lanes [0, n), the others zero; and the reverse. 0 <= n <= kLanes.
WEIR_INLINE Vec LoadPartial(const float* p, int n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(__AVX2__)
  const IVec lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(lane < n));
#else
  Vec v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
WEIR_INLINE void StorePartial(float* p, Vec v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#elif defined(__AVX2__)
  const IVec lane = {0, 1, 2, 3, 4, 5, 6, 7};
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(lane < n), v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

WEIR_INLINE Vec Set1(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

// a * b + c and c - a * b: rounded once where the machine can.
WEIR_INLINE Vec Fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
WEIR_INLINE Vec Fnma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fnmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fnmadd_ps(a, b, c);
#else
  return c - a * b;
#endif
}

// The second argument where either is NaN.
WEIR_INLINE Vec Max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
WEIR_INLINE Vec Min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
WEIR_INLINE Vec Abs(Vec x) {
  return reinterpret_cast<Vec>(reinterpret_cast<IVec>(x) & (IVec{} + 0x7fffffff));
}
// w * x in lanes [0, n), w in the others.
WEIR_INLINE Vec MultiplyFirst(Vec w, Vec x, int n) {
#if defined(__AVX512F__)
  const int m = n < 0 ? 0 : n > 16 ? 16 : n;
  return _mm512_mask_mul_ps(w, static_cast<__mmask16>((1u << m) - 1), w, x);
#elif defined(__AVX2__)
  const IVec lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return lane < n ? w * x : w;
#else
  const IVec lane = {0, 1, 2, 3};
  return lane < n ? w * x : w;
#endif
}

// v in lanes [0, n), zero in the others.
WEIR_INLINE Vec KeepFirst(Vec v, int n) {
#if defined(__AVX512F__)
  const int m = n < 0 ? 0 : n > 16 ? 16 : n;
  return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << m) - 1), v);
#elif defined(__AVX2__)
  const IVec lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return lane < n ? v : Vec{};
#else
  const IVec lane = {0, 1, 2, 3};
  return lane < n ? v : Vec{};
#endif
}

WEIR_INLINE Vec InterleaveLow(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
WEIR_INLINE Vec InterleaveHigh(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Lane j of row i becomes lane i of row j: log2(kLanes) rounds of shuffling the halves together.
WEIR_INLINE void Transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = InterleaveLow(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = InterleaveHigh(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Sum of the lanes, by halves.
WEIR_INLINE float Sum(Vec v) {
#if defined(__AVX512F__)
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
#elif defined(__AVX2__)
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
  const Vec b = v;
#endif
  return (b[0] + b[2]) + (b[1] + b[3]);
}

// ---- elementary functions; relative errors measured over the whole range in pointwise_test ----

// e^x, <= 1.1 ulp; 0 for -inf, inf beyond 88.73, gradual underflow, NaN for NaN.
// Cody & Waite, "Software Manual for the Elementary Functions", 1980: x = n ln 2 + r with n ln 2 in
// two parts, a polynomial for |r| <= ln 2 / 2, and 2^n in two halves so that neither over- nor
// underflows.
WEIR_INLINE Vec Exp(Vec x) {
  x = Min(Set1(129.0f), Max(Set1(-150.0f), x));
  const Vec shift = Set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = Fma(x, Set1(1.442695041f), shift);
  const Vec n = shifted - shift;
  const IVec exponent = reinterpret_cast<IVec>(shifted) - 0x4b400000;
  Vec r = Fnma(n, Set1(0.693359375f), x);
  r = Fnma(n, Set1(-2.12194440e-4f), r);
  Vec p = Fma(Set1(1.394656195e-3f), r, Set1(8.369223508e-3f));
  p = Fma(p, r, Set1(4.166626152e-2f));
  p = Fma(p, r, Set1(1.666651538e-1f));
  p = Fma(p, r, Set1(5.000000081e-1f));
  p = Fma(p, r * r, r) + 1.0f;
  const IVec half = exponent >> 1;
  const Vec first = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec second = reinterpret_cast<Vec>((exponent - half + 127) << 23);
  return p * first * second;
}

// 1 / (1 + e^-x) without overflow.
WEIR_INLINE Vec Sigmoid(Vec x) {
  const Vec e = Exp(-Abs(x));
  return (x < 0.0f ? e : Set1(1.0f)) / (e + 1.0f);
}

WEIR_INLINE Vec Silu(Vec x) { return x * Sigmoid(x); }

// log(1 + u) for 0 <= u <= 1: 2 atanh(u / (2 + u)), a series in the square with relative accuracy.
WEIR_INLINE Vec Log1pUnit(Vec u) {
  const Vec s = u / (u + 2.0f);
  const Vec z = s * s;
  Vec p = Fma(Set1(1.215083467e-1f), z, Set1(1.071359308e-1f));
  p = Fma(p, z, Set1(1.430848288e-1f));
  p = Fma(p, z, Set1(1.999943631e-1f));
  p = Fma(p, z, Set1(3.333333786e-1f));
  const Vec twice = s + s;
  return Fma(twice * z, p, twice);
}

// log(1 + e^x), accurate also where it is tiny.
WEIR_INLINE Vec Softplus(Vec x) { return Max(Vec{}, x) + Log1pUnit(Exp(-Abs(x))); }

// x Phi(x), Phi the normal distribution: gelu as defined, with relative accuracy in the tail.
// erfc(z) = e^(-z^2) P((z - 3) / (z + 3)) / (1 + 2 z) (form: Shepherd & Laframboise, 1981;
// coefficients fitted for f32). z^2 is taken in two parts because its rounding would be multiplied
// by z^2.
WEIR_INLINE Vec Gelu(Vec x) {
  const Vec z = Min(Set1(10.5f), Abs(x) * 0.707106781f);
  const Vec q = (z - 3.0f) / (z + 3.0f);
  Vec p = Fma(Set1(-2.676351784e-4f), q, Set1(-7.746238389e-4f));
  p = Fma(p, q, Set1(2.006621831e-3f));
  p = Fma(p, q, Set1(2.569045454e-3f));
  p = Fma(p, q, Set1(-2.379948417e-2f));
  p = Fma(p, q, Set1(6.829445865e-2f));
  p = Fma(p, q, Set1(-1.192708102e-1f));
  p = Fma(p, q, Set1(1.296466194e-1f));
  p = Fma(p, q, Set1(-4.756239691e-2f));
  p = Fma(p, q, Set1(-1.356211469e-1f));
  p = Fma(p, q, Set1(1.253008059f));
  const Vec y = Min(Set1(14.85f), Abs(x));  // z^2 = y^2 / 2
  const Vec top = reinterpret_cast<Vec>(reinterpret_cast<IVec>(y) & (IVec{} - 4096));
  const Vec e = Exp(top * top * -0.5f) * Exp((y - top) * (y + top) * -0.5f);
  const Vec tail = e * p / (z + z + 1.0f) * 0.5f;  // Phi(-|x|)
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// The tanh approximation: x / 2 (1 + tanh u) = x sigmoid(2 u).
WEIR_INLINE Vec GeluTanh(Vec x) {
  return x * Sigmoid(x * Fma(x * x, Set1(0.0713548163f), Set1(1.59576912f)));
}

}  // namespace
}  // namespace weir::kernels
