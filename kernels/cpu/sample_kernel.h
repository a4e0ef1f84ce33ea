// Passes over the vocabulary, one table per instruction set. Plain structs only.
//
// Logits are taken in blocks of `block` (a multiple of 16): their maxima say where the large ones
// are, their sums where a draw falls, without a second look at the rest.
#pragma once

#include <cstdint>

namespace weir::kernels {

struct ScanKernel {
  // Makes logits comparable: NaN and ids without a bit in `mask` ([mask_words], null: all allowed)
  // become -infinity, +infinity the largest float. Writes the maximum of each block.
  void (*prepare)(float* x, int64_t n, const uint32_t* mask, int64_t mask_words, int64_t block,
                  float* block_max) = nullptr;
  // p[i] = 2^((x[i] - max) * scale); the sum of each block. p may be null.
  void (*exponentials)(const float* x, int64_t n, float max, float scale, int64_t block, float* p,
                       float* block_sum) = nullptr;
  // Ids with x >= threshold in ascending order, `first` being the id of x[0]; returns how many.
  int64_t (*collect)(const float* x, int64_t n, float threshold, int32_t first,
                     int32_t* ids) = nullptr;
};

extern const ScanKernel kScanPlain;
#if defined(__x86_64__)
extern const ScanKernel kScanAvx2, kScanAvx512;
#endif

}  // namespace weir::kernels
