// Passes over the vocabulary, written once over `Vec`: include a vector_*.h first. Local to the
// includer.
#pragma once

#include "kernels/cpu/sample_kernel.h"
#include "kernels/cpu/vector_exp.h"

namespace weir::kernels {
namespace {

constexpr float kNeverDrawn = -__builtin_inff();
constexpr float kLargest = 3.402823466e+38f;

void Prepare(float* x, int64_t n, const uint32_t* mask, int64_t mask_words, int64_t block,
             float* block_max) {
  const Vec::F never = Vec::Set1(kNeverDrawn), largest = Vec::Set1(kLargest);
  for (int64_t begin = 0; begin < n; begin += block) {
    Vec::F max = never;
    const int64_t end = begin + block < n ? begin + block : n;
    for (int64_t i = begin; i < end; i += Vec::kLanes) {
      Vec::F v = Vec::LoadN(x + i, end - i);
      v = Vec::IfNan(v, never, Vec::Min(v, largest));
      if (mask != nullptr) {
        const unsigned bits = i / 32 < mask_words ? mask[i / 32] >> (i % 32) : 0;
        v = Vec::KeepBits(v, bits, never);
      }
      Vec::StoreN(x + i, v, end - i);
      if (end - i < Vec::kLanes) v = Vec::KeepRange(v, 0, static_cast<int>(end - i), never);
      max = Vec::Max(max, v);
    }
    *block_max++ = Vec::ReduceMax(max);
  }
}

void Exponentials(const float* x, int64_t n, float max, float scale, int64_t block, float* p,
                  float* block_sum) {
  const Vec::F maximum = Vec::Set1(max), factor = Vec::Set1(scale);
  for (int64_t begin = 0; begin < n; begin += block) {
    Vec::F sum = Vec::Set1(0.0f);
    const int64_t end = begin + block < n ? begin + block : n;
    for (int64_t i = begin; i < end; i += Vec::kLanes) {
      Vec::F e = Exp2(Vec::Mul(Vec::Sub(Vec::LoadN(x + i, end - i), maximum), factor));
      if (end - i < Vec::kLanes) {
        e = Vec::KeepRange(e, 0, static_cast<int>(end - i), Vec::Set1(0.0f));
      }
      if (p != nullptr) Vec::StoreN(p + i, e, end - i);
      sum = Vec::Add(sum, e);
    }
    *block_sum++ = Vec::ReduceAdd(sum);
  }
}

int64_t Collect(const float* x, int64_t n, float threshold, int32_t first, int32_t* ids) {
  const Vec::F limit = Vec::Set1(threshold);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += Vec::kLanes) {
    unsigned bits = Vec::AtLeast(Vec::LoadN(x + i, n - i), limit);
    if (n - i < Vec::kLanes) bits &= (1u << (n - i)) - 1u;
    for (; bits != 0; bits &= bits - 1) {
      ids[count++] = first + static_cast<int32_t>(i) + __builtin_ctz(bits);
    }
  }
  return count;
}

}  // namespace
}  // namespace weir::kernels
