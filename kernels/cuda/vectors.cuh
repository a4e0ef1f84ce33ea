// Several neighbouring elements at a time.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "kernels/cuda/launch.cuh"

namespace weir::kernels::gpu {

// N elements of an activation, as floats. N > 1 asks for addresses that are multiples of what is
// moved: 16 bytes, or 8 for four bf16. Lanes should stand side by side: so 4 where f32 takes part
// in an op, 8 where all is bf16.
template <int N>
__device__ __forceinline__ void LoadN(const float* p, float (&x)[N]) {
  if constexpr (N == 1) {
    x[0] = *p;
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(p + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  }
}
template <int N>
__device__ __forceinline__ void LoadN(const bf16* p, float (&x)[N]) {
  if constexpr (N == 1) {
    x[0] = __bfloat162float(*p);
  } else {
    static_assert(N == 4 || N == 8);
    uint32_t words[N / 2];
    if constexpr (N == 8) {
      const uint4 v = *reinterpret_cast<const uint4*>(p);
      words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else {
      const uint2 v = *reinterpret_cast<const uint2*>(p);
      words[0] = v.x, words[1] = v.y;
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}
template <int N>
__device__ __forceinline__ void StoreN(float* p, const float (&x)[N]) {
  if constexpr (N == 1) {
    *p = x[0];
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      *reinterpret_cast<float4*>(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
  }
}
template <int N>
__device__ __forceinline__ void StoreN(bf16* p, const float (&x)[N]) {
  if constexpr (N == 1) {
    *p = __float2bfloat16_rn(x[0]);
  } else {
    static_assert(N == 4 || N == 8);
    uint32_t words[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      words[i] = *reinterpret_cast<const uint32_t*>(&pair);
    }
    if constexpr (N == 8) {
      *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
      *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
    }
  }
}

// A bf16 rounds errors of the fast exponential away; f32 takes the exact one.
template <typename T>
__device__ __forceinline__ float ExpFor(float x) {
  if constexpr (sizeof(T) == 2) {
    return __expf(x);
  } else {
    return expf(x);
  }
}
template <typename T>
__device__ __forceinline__ float SigmoidFor(float x) {
  if constexpr (sizeof(T) == 2) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  } else {
    const float e = expf(-fabsf(x));  // never overflows: tails keep their digits
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
  }
}

// Elements of one entry of dimension 0.
inline int64_t RowWidth(const TensorView& x) {
  return x.size(0) == 0 ? 0 : x.num_elements() / x.size(0);
}
// Whether rows begin where LoadN and StoreN need them to. Undefined views do. A single row is judged as
// one of many: it is to be summed in the same order.
inline bool RowsAligned(const TensorView& x) {
  return !x.defined() || (reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 &&
                          (x.rank() == 1 || x.row_stride() * DTypeSize(x.dtype()) % 16 == 0));
}

template <typename T>
const T* DataOrNull(const TensorView& x) {
  return x.defined() ? static_cast<const T*>(x.raw()) : nullptr;
}

}  // namespace weir::kernels::gpu
