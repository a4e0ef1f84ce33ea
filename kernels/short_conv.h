// Depthwise causal convolution with a state window: y_t[c] = act(sum_j w[c, j] x_{t-W+1+j}[c] +
// b[c]).
#pragma once

#include "core/dtype.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::kernels {

enum class Activation : unsigned char { kNone, kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kSigmoid };

struct ShortConvArgs {
  TensorView x;       // [tokens, channels] f32 (CUDA: or bf16), rows may be strided
  TensorView weight;  // [channels, W] f32, tap W - 1 is the current token
  TensorView bias;    // [channels] f32 or undefined
  Activation activation = Activation::kSilu;  // kNone or kSilu
  TensorView out;  // [tokens, channels] dtype of x, rows may be strided; may be x itself

  TensorView offsets;  // [sequences + 1] i32
  TensorView slots;    // [sequences] i32; negative: zeros out, no state touched
  TensorView fresh;    // [sequences] u8; 1: the window before the run is zeros

  // Window of sequence s: `window_dtype` [W - 1, channels], oldest first, at
  // state + slots[s] * slot_stride_bytes. Holds the last W - 1 inputs; updated in place.
  DType window_dtype =
      DType::kF32;  // bf16 only on CUDA with bf16 x: the inputs are kept as they are
  void* state = nullptr;
  int64_t slot_stride_bytes = 0;
};

// Does not depend on how a sequence is cut into runs: bit-identical. CPU and CUDA.
void ShortConv(const ShortConvArgs& args, Stream stream);

}  // namespace weir::kernels
