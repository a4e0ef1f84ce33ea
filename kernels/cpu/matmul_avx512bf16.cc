// Matrix products of bf16 on machines with bf16 dot products: one vdpbf16ps per 16 outputs and two
// neighbours of the depth.
#include <immintrin.h>

#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/transpose_avx512.h"

namespace weir::kernels {
namespace {

struct OpsBf16 {
  using Acc = __m512;
  using Weight = __m512bh;
  using Input = __m512bh;
  static constexpr int kElementBytes = 4;
  // 15 and 16 rows are two tiles over groups of three panels: two loads per five products. A tile
  // of 16 rows and one panel loads as often as it multiplies, and waits for the loads.
  static constexpr int kTallest = 14;
  static constexpr int64_t kDepthBlock = 3072;
  static constexpr int64_t PrefetchBytes(int rows) {
    return rows <= 2 ? 1024 : rows <= 8 ? 2048 : 8192;
  }
  // As many sums as 32 registers hold beside the weights of a step and one input; four streams
  // of weights for few rows, which wait for memory and not for registers.
  static constexpr int Group(int rows) { return rows <= 6 ? 4 : rows <= 8 ? 3 : 2; }
  static WEIR_INLINE Acc Zero() { return _mm512_setzero_ps(); }
  static WEIR_INLINE Acc LoadAcc(const float* p, int n) {
    return _mm512_maskz_loadu_ps(FirstLanes(n), p);
  }
  static WEIR_INLINE void StoreAcc(float* p, int n, Acc a) {
    _mm512_mask_storeu_ps(p, FirstLanes(n), a);
  }
  static WEIR_INLINE Acc Add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
  static WEIR_INLINE Weight LoadWeight(const char* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static WEIR_INLINE Input LoadInput(const char* p) {
    return (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int*>(p));
  }
  static WEIR_INLINE Acc Mac(Acc acc, Weight w, Input x) { return _mm512_dpbf16_ps(acc, w, x); }
};

void PackTile(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* tile) {
  int* out = static_cast<int*>(tile);
  const int64_t depth = (in + 1) / 2;
  const __mmask16 store = FirstLanes(rows);
  for (int64_t i = 0; i < in; i += 32) {
    const __mmask16 low = FirstLanes(in - i), high = FirstLanes(in - i - 16);
    __m512 r[16];
    for (int64_t j = 0; j < 16; ++j) {
      r[j] = _mm512_setzero_ps();
      if (j >= rows) continue;
      const float* p = x + j * x_stride + i;
      r[j] = (__m512)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, p + 16),
                                         _mm512_maskz_loadu_ps(low, p));
    }
    const int64_t steps = depth - i / 2 < 16 ? depth - i / 2 : 16;
    if (rows == 1) {
      _mm512_mask_storeu_ps(out + i / 2, FirstLanes(steps), r[0]);
      continue;
    }
    Transpose16(r);
    for (int64_t k = 0; k < steps; ++k) {
      _mm512_mask_storeu_ps(out + (i / 2 + k) * rows, store, r[k]);
    }
  }
}

}  // namespace

const PanelKernel kPanelsBf16Avx512Bf16 = {
    TileElement::kBf16Pair, OpsBf16::kElementBytes, OpsBf16::kTallest, 12,
    OpsBf16::Group,         RunProduct<OpsBf16>,    PackTile,          InterleaveAvx512};

}  // namespace weir::kernels
