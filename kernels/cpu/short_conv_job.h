// A block of channels of one sequence, as the short convolution of each instruction set takes it.
#pragma once

#include <stdint.h>

namespace weir::kernels {

constexpr int64_t kConvBlock = 256;  // most channels of a job; a multiple of every vector

// Pointers are at the block's first channel; strides are floats between tokens.
struct ShortConvJob {
  const float* x = nullptr;
  float* out = nullptr;
  int64_t x_stride = 0, out_stride = 0;
  int64_t tokens = 0, channels = 0, width = 0;
  const float* taps = nullptr;  // [width, kConvBlock]: the weight transposed
  const float* bias = nullptr;  // or null
  bool silu = false;
  float* window = nullptr;  // [width - 1, window_stride], oldest first
  int64_t window_stride = 0;
  bool fresh = false;     // read the window as zeros
  float* ring = nullptr;  // scratch [width, kConvBlock]
};

struct ShortConvTable {
  void (*run)(const ShortConvJob& job);
  // taps [width, kConvBlock] = weight [channels, width] transposed
  void (*transpose)(const float* weight, int64_t channels, int64_t width, float* taps);
};

extern const ShortConvTable kShortConvBaseline;
#if defined(__x86_64__)
extern const ShortConvTable kShortConvAvx2;
extern const ShortConvTable kShortConvAvx512;
#endif

}  // namespace weir::kernels
