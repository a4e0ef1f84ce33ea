// Matrix products with AVX-512: f32, and bf16 weights widened in registers.
#include <immintrin.h>

#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/transpose_avx512.h"

namespace weir::kernels {
namespace {

struct OpsF32 {
  using Acc = __m512;
  using Weight = __m512;
  using Input = __m512;
  static constexpr int kElementBytes = 4;
  static constexpr int kTallest = 16;
  static constexpr int64_t kDepthBlock = 2048;
  static constexpr int64_t PrefetchBytes(int rows) {
    return rows <= 2 ? 1024 : rows <= 8 ? 2048 : rows <= 14 ? 8192 : 12288;
  }
  static constexpr int Group(int rows) {
    return rows <= 6 ? 4 : rows <= 8 ? 3 : rows <= 14 ? 2 : 1;
  }
  static WEIR_INLINE Acc Zero() { return _mm512_setzero_ps(); }
  static WEIR_INLINE Acc LoadAcc(const float* p, int n) {
    return _mm512_maskz_loadu_ps(FirstLanes(n), p);
  }
  static WEIR_INLINE void StoreAcc(float* p, int n, Acc a) {
    _mm512_mask_storeu_ps(p, FirstLanes(n), a);
  }
  static WEIR_INLINE Acc Add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
  static WEIR_INLINE Weight LoadWeight(const char* p) { return _mm512_loadu_ps(p); }
  static WEIR_INLINE Input LoadInput(const char* p) {
    return _mm512_set1_ps(*reinterpret_cast<const float*>(p));
  }
  static WEIR_INLINE Acc Mac(Acc acc, Weight w, Input x) { return _mm512_fmadd_ps(w, x, acc); }
};

struct OpsBf16 : OpsF32 {
  struct Weight {
    __m512 even, odd;
  };
  struct Input {
    __m512 even, odd;
  };
  static constexpr int kElementBytes = 8;
  static constexpr int kTallest = 12;
  static constexpr int Group(int rows) { return rows <= 5 ? 4 : rows <= 8 ? 3 : 2; }
  static WEIR_INLINE Weight LoadWeight(const char* p) {
    const __m512i pairs = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
  }
  static WEIR_INLINE Input LoadInput(const char* p) {
    const float* x = reinterpret_cast<const float*>(p);
    return {_mm512_set1_ps(x[0]), _mm512_set1_ps(x[1])};
  }
  static WEIR_INLINE Acc Mac(Acc acc, Weight w, Input x) {
    return _mm512_fmadd_ps(w.odd, x.odd, _mm512_fmadd_ps(w.even, x.even, acc));
  }
};

void PackTileF32(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile) {
  float* out = static_cast<float*>(tile);
  const __mmask16 store = FirstLanes(rows);
  for (int64_t i = 0; i < in; i += 16) {
    const __mmask16 load = FirstLanes(in - i);
    const int64_t steps = in - i < 16 ? in - i : 16;
    __m512 r[16];
    for (int64_t j = 0; j < 16; ++j) {
      r[j] = j < rows ? _mm512_maskz_loadu_ps(load, x + j * x_stride + i) : _mm512_setzero_ps();
    }
    if (rows == 1) {
      _mm512_mask_storeu_ps(out + i, load, r[0]);
      continue;
    }
    Transpose16(r);
    for (int64_t k = 0; k < steps; ++k) _mm512_mask_storeu_ps(out + (i + k) * rows, store, r[k]);
  }
}

// To bf16 and back: nearest, ties to even; NaN stays (its top bits do).
WEIR_INLINE __m512 RoundToBf16(__m512 x) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_mask_mov_epi32(up, nan, quiet), _mm512_set1_epi32(-65536)));
}

void PackTileF32Pair(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile) {
  float* out = static_cast<float*>(tile);
  const int64_t depth = (in + 1) / 2;
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t i = 0; i < in; i += 16) {
      alignas(64) float rounded[16];
      _mm512_store_ps(rounded,
                      RoundToBf16(_mm512_maskz_loadu_ps(FirstLanes(in - i), x + j * x_stride + i)));
      const int64_t steps = depth - i / 2 < 8 ? depth - i / 2 : 8;
      for (int64_t k = 0; k < steps; ++k) {
        float* pair = out + ((i / 2 + k) * rows + j) * 2;
        pair[0] = rounded[2 * k];
        pair[1] = rounded[2 * k + 1];
      }
    }
  }
}

}  // namespace

void InterleaveAvx512(const void* const (&rows)[kPanel], int64_t words, void* panel) {
  float* out = static_cast<float*>(panel);
  for (int64_t i = 0; i < words; i += 16) {
    const __mmask16 load = FirstLanes(words - i);
    const int64_t steps = words - i < 16 ? words - i : 16;
    __m512 r[16];
    for (int j = 0; j < 16; ++j) {
      r[j] = rows[j] != nullptr
                 ? _mm512_maskz_loadu_ps(load, static_cast<const float*>(rows[j]) + i)
                 : _mm512_setzero_ps();
    }
    Transpose16(r);
    for (int64_t k = 0; k < steps; ++k) _mm512_storeu_ps(out + (i + k) * 16, r[k]);
  }
}

const PanelKernel kPanelsF32Avx512 = {
    TileElement::kF32, OpsF32::kElementBytes, OpsF32::kTallest, 12,
    OpsF32::Group,     RunProduct<OpsF32>,    PackTileF32,      InterleaveAvx512};
const PanelKernel kPanelsBf16Avx512 = {
    TileElement::kF32Pair, OpsBf16::kElementBytes, OpsBf16::kTallest, 12,
    OpsBf16::Group,        RunProduct<OpsBf16>,    PackTileF32Pair,   InterleaveAvx512};

}  // namespace weir::kernels
