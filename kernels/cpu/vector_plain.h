// Vectors of 4 floats in portable code (the compiler's vector types); see vector_avx512.h for what
// the operations mean. Products are rounded before they are added. Local to the includer.
#pragma once

#define WEIR_VEC inline __attribute__((always_inline))

namespace weir::kernels {
namespace {

struct Vec {
  typedef float F __attribute__((vector_size(16), aligned(4)));
  typedef int I __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 2;
  static WEIR_VEC F Set1(float x) { return F{x, x, x, x}; }
  static WEIR_VEC F Load(const float* p) { return *reinterpret_cast<const F*>(p); }
  static WEIR_VEC void Store(float* p, F x) { *reinterpret_cast<F*>(p) = x; }
  static WEIR_VEC F LoadN(const float* p, long n) {
    if (n >= kLanes) return Load(p);
    F x = Set1(0.0f);
    for (long i = 0; i < n; ++i) x[i] = p[i];
    return x;
  }
  static WEIR_VEC void StoreN(float* p, F x, long n) {
    for (long i = 0; i < n && i < kLanes; ++i) p[i] = x[i];
  }
  static WEIR_VEC F LoadBf16N(const unsigned short* p, long n) {
    I bits = {0, 0, 0, 0};
    for (long i = 0; i < n && i < kLanes; ++i) bits[i] = static_cast<int>(unsigned{p[i]} << 16);
    return (F)bits;
  }
  static WEIR_VEC F LoadPairsN(const unsigned short* p, long n) {
    I bits = {0, 0, 0, 0};
    for (long i = 0; i < n && i < 2 * kLanes; ++i) {
      bits[i / 2] |= static_cast<int>(unsigned{p[i]} << (i % 2 * 16));
    }
    return (F)bits;
  }
  static WEIR_VEC F EvenBf16(F pairs) { return (F)((I)pairs << 16); }
  static WEIR_VEC F OddBf16(F pairs) { return (F)((I)pairs & -65536); }
  static WEIR_VEC void StoreBf16N(unsigned short* p, F x, long n) {
    const I bits = (I)x;
    for (long i = 0; i < n && i < kLanes; ++i) {
      unsigned u = static_cast<unsigned>(bits[i]);
      u = (u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : u + 0x7fffu + ((u >> 16) & 1u);
      p[i] = static_cast<unsigned short>(u >> 16);
    }
  }
  static WEIR_VEC F Add(F a, F b) { return a + b; }
  static WEIR_VEC F Sub(F a, F b) { return a - b; }
  static WEIR_VEC F Mul(F a, F b) { return a * b; }
  static WEIR_VEC F Div(F a, F b) { return a / b; }
  static WEIR_VEC F Fma(F a, F b, F c) { return a * b + c; }
  static WEIR_VEC F Max(F a, F b) { return a > b ? a : b; }
  static WEIR_VEC F Min(F a, F b) { return a < b ? a : b; }
  static WEIR_VEC F IfLess(F x, F limit, F a, F b) { return x < limit ? a : b; }
  static WEIR_VEC F IfNan(F x, F a, F b) { return x == x ? b : a; }
  static WEIR_VEC F KeepRange(F x, int first, int last, F other) {
    const I lane = {0, 1, 2, 3};
    return ((lane >= first) & (lane < last)) ? x : other;
  }
  static WEIR_VEC F KeepBits(F x, unsigned bits, F other) {
    const I bit = {1, 2, 4, 8};
    return (bit & static_cast<int>(bits)) != 0 ? x : other;
  }
  static WEIR_VEC unsigned AtLeast(F a, F b) {
    const I set = (a >= b) & I{1, 2, 4, 8};
    return static_cast<unsigned>(set[0] | set[1] | set[2] | set[3]);
  }
  // Nearest, ties to even, for |x| < 2^22.
  static WEIR_VEC F Round(F x) {
    const F magic = Set1(12582912.0f);
    return (x + magic) - magic;
  }
  static WEIR_VEC F Pow2(F n) { return (F)((__builtin_convertvector(n, I) + 127) << 23); }
  static WEIR_VEC float ReduceMax(F x) {
    const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
  }
  static WEIR_VEC float ReduceAdd(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static WEIR_VEC void Transpose(F (&r)[kLanes]) {
    const F a = __builtin_shuffle(r[0], r[1], I{0, 4, 2, 6});
    const F b = __builtin_shuffle(r[0], r[1], I{1, 5, 3, 7});
    const F c = __builtin_shuffle(r[2], r[3], I{0, 4, 2, 6});
    const F d = __builtin_shuffle(r[2], r[3], I{1, 5, 3, 7});
    r[0] = __builtin_shuffle(a, c, I{0, 1, 4, 5});
    r[1] = __builtin_shuffle(b, d, I{0, 1, 4, 5});
    r[2] = __builtin_shuffle(a, c, I{2, 3, 6, 7});
    r[3] = __builtin_shuffle(b, d, I{2, 3, 6, 7});
  }
};

}  // namespace
}  // namespace weir::kernels
