// Matrix products with AVX2 and FMA: f32, and bf16 weights widened in registers.
#include <immintrin.h>

#include "kernels/cpu/matmul_tiles.h"

namespace weir::kernels {
namespace {

struct OpsF32 {
  struct Acc {
    __m256 low, high;
  };
  using Weight = Acc;
  using Input = __m256;
  static constexpr int kElementBytes = 4;
  static constexpr int kTallest = 6;
  static constexpr int64_t kDepthBlock = 2048;
  static constexpr int64_t PrefetchBytes(int rows) {
    return rows <= 2 ? 1024 : rows <= 8 ? 2048 : rows <= 14 ? 8192 : 12288;
  }
  static constexpr int Group(int rows) { return rows <= 1 ? 4 : rows <= 3 ? 2 : 1; }
  static WEIR_INLINE Acc Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static WEIR_INLINE Acc LoadAcc(const float* p, int n) {
    if (n == kPanel) return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
    float lanes[kPanel] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return {_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8)};
  }
  static WEIR_INLINE void StoreAcc(float* p, int n, Acc a) {
    if (n == kPanel) {
      _mm256_storeu_ps(p, a.low);
      _mm256_storeu_ps(p + 8, a.high);
      return;
    }
    float lanes[kPanel];
    _mm256_storeu_ps(lanes, a.low);
    _mm256_storeu_ps(lanes + 8, a.high);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static WEIR_INLINE Acc Add(Acc a, Acc b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static WEIR_INLINE Weight LoadWeight(const char* p) {
    const float* w = reinterpret_cast<const float*>(p);
    return {_mm256_loadu_ps(w), _mm256_loadu_ps(w + 8)};
  }
  static WEIR_INLINE Input LoadInput(const char* p) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(p));
  }
  static WEIR_INLINE Acc Mac(Acc acc, Weight w, Input x) {
    return {_mm256_fmadd_ps(w.low, x, acc.low), _mm256_fmadd_ps(w.high, x, acc.high)};
  }
};

struct OpsBf16 : OpsF32 {
  struct Weight {
    __m256 even_low, odd_low, even_high, odd_high;
  };
  struct Input {
    __m256 even, odd;
  };
  static constexpr int kElementBytes = 8;
  static constexpr int kTallest = 4;
  static constexpr int Group(int rows) { return rows <= 1 ? 2 : 1; }
  static WEIR_INLINE Weight LoadWeight(const char* p) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    const __m256i upper = _mm256_set1_epi32(-65536);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(low, upper)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(high, upper))};
  }
  static WEIR_INLINE Input LoadInput(const char* p) {
    const float* x = reinterpret_cast<const float*>(p);
    return {_mm256_broadcast_ss(x), _mm256_broadcast_ss(x + 1)};
  }
  static WEIR_INLINE Acc Mac(Acc acc, Weight w, Input x) {
    return {_mm256_fmadd_ps(w.odd_low, x.odd, _mm256_fmadd_ps(w.even_low, x.even, acc.low)),
            _mm256_fmadd_ps(w.odd_high, x.odd, _mm256_fmadd_ps(w.even_high, x.even, acc.high))};
  }
};

WEIR_INLINE void Transpose8(__m256 (&r)[8]) {
  __m256 t[8];
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

void Interleave(const void* const (&rows)[kPanel], int64_t words, void* panel) {
  float* out = static_cast<float*>(panel);
  for (int half = 0; half < 2; ++half) {
    int64_t i = 0;
    for (; i + 8 <= words; i += 8) {
      __m256 r[8];
      for (int j = 0; j < 8; ++j) {
        const float* row = static_cast<const float*>(rows[8 * half + j]);
        r[j] = row != nullptr ? _mm256_loadu_ps(row + i) : _mm256_setzero_ps();
      }
      Transpose8(r);
      for (int k = 0; k < 8; ++k) _mm256_storeu_ps(out + (i + k) * kPanel + 8 * half, r[k]);
    }
    for (; i < words; ++i) {
      for (int j = 8 * half; j < 8 * half + 8; ++j) {
        int word = 0;
        if (rows[j] != nullptr) __builtin_memcpy(&word, static_cast<const int*>(rows[j]) + i, 4);
        __builtin_memcpy(out + i * kPanel + j, &word, 4);
      }
    }
  }
}

}  // namespace

const PanelKernel kPanelsF32Avx2 = {
    TileElement::kF32, OpsF32::kElementBytes, OpsF32::kTallest, 6,
    OpsF32::Group,     RunProduct<OpsF32>,    PackTileF32Plain, Interleave};
const PanelKernel kPanelsBf16Avx2 = {
    TileElement::kF32Pair, OpsBf16::kElementBytes, OpsBf16::kTallest,    4,
    OpsBf16::Group,        RunProduct<OpsBf16>,    PackTileF32PairPlain, Interleave};

}  // namespace weir::kernels
