// The activations of gated products.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/short_conv.h"

namespace weir::kernels::gpu {

__device__ __forceinline__ float Apply(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kRelu2: {
      const float r = fmaxf(x, 0.0f);
      return r * r;
    }
    case Activation::kSigmoid:
      return 1.0f / (1.0f + expf(-x));
  }
  return x;
}

}  // namespace weir::kernels::gpu
