// The short convolution of a block of channels. The last `width` inputs live in a ring, so that the
// outputs may take the place of the inputs. A token is one chain: bias, then the taps from the
// oldest on, whatever the run it came in.
#pragma once

#include "kernels/cpu/short_conv_job.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_loops.h"

namespace weir::kernels {
namespace {

WEIR_INLINE Vec EvenLanes(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}
WEIR_INLINE Vec OddLanes(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

void TransposeTaps(const float* weight, int64_t channels, int64_t width, float* taps) {
  int64_t c = 0;
  if (width == 4) {
    for (; c + kLanes <= channels; c += kLanes) {
      const float* w = weight + c * 4;
      const Vec a = Load(w), b = Load(w + kLanes), d = Load(w + 2 * kLanes),
                e = Load(w + 3 * kLanes);
      const Vec even0 = EvenLanes(a, b), even1 = EvenLanes(d, e);
      const Vec odd0 = OddLanes(a, b), odd1 = OddLanes(d, e);
      Store(taps + c, EvenLanes(even0, even1));
      Store(taps + kConvBlock + c, EvenLanes(odd0, odd1));
      Store(taps + 2 * kConvBlock + c, OddLanes(even0, even1));
      Store(taps + 3 * kConvBlock + c, OddLanes(odd0, odd1));
    }
  }
  for (; c < channels; ++c) {
    for (int64_t j = 0; j < width; ++j) taps[j * kConvBlock + c] = weight[c * width + j];
  }
}

// kWidth 0: the job says.
template <int kWidth, bool kSilu>
void RunConv(const ShortConvJob& job) {
  const int64_t width = kWidth > 0 ? kWidth : job.width, channels = job.channels;
  const auto row = [&](int64_t age) { return job.ring + age % width * kConvBlock; };
  // Input t of the run is ring row t mod width; the window is the inputs 1 - width .. -1.
  for (int64_t j = 0; j + 1 < width; ++j) {
    ForVectors(channels, [&](int64_t i, int n) {
      const float* window = job.window + j * job.window_stride + i;
      StoreCount(row(j + 1) + i, job.fresh ? Vec{} : LoadCount(window, n), n);
    });
  }
  for (int64_t t = 0; t < job.tokens; ++t) {
    const float* x = job.x + t * job.x_stride;
    float* out = job.out + t * job.out_stride;
    float* newest = row(t);
    const float* older[kWidth > 0 ? kWidth : 1];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kWidth; ++j) older[j] = row(t + 1 + j);
    ForVectors(channels, [&](int64_t i, int n) {
      // The block's pieces of the rows lie far apart: no hardware prefetcher follows them.
      __builtin_prefetch(x + 4 * job.x_stride + i);
      const Vec now = LoadCount(x + i, n);
      Store(newest + i, now);
      Vec y = job.bias ? LoadCount(job.bias + i, n) : Vec{};
#pragma GCC unroll 4
      for (int64_t j = 0; j + 1 < width; ++j) {
        const float* input = kWidth > 0 ? older[j] : row(t + 1 + j);
        y = Fma(Load(job.taps + j * kConvBlock + i), Load(input + i), y);
      }
      y = Fma(Load(job.taps + (width - 1) * kConvBlock + i), now, y);
      StoreCount(out + i, kSilu ? Silu(y) : y, n);
    });
  }
  for (int64_t j = 0; j + 1 < width; ++j) {
    ForVectors(channels, [&](int64_t i, int n) {
      StoreCount(job.window + j * job.window_stride + i, Load(row(job.tokens + 1 + j) + i), n);
    });
  }
}

void RunConvJob(const ShortConvJob& job) {
  if (job.width == 4) return job.silu ? RunConv<4, true>(job) : RunConv<4, false>(job);
  return job.silu ? RunConv<0, true>(job) : RunConv<0, false>(job);
}

constexpr ShortConvTable kShortConvOfThisFile = {RunConvJob, TransposeTaps};

}  // namespace
}  // namespace weir::kernels
