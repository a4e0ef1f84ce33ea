// The kernels behind MatMul on CUDA, in the order in which they are asked: our streaming kernels
// for few rows, cuBLASLt for many, a plain kernel for whatever is left.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/stream.h"
#include "kernels/matmul.h"

namespace weir::kernels::gpu {

// One product as the kernels see it: y = x W^T + bias, sizes in elements.
struct Product {
  const void* x = nullptr;  // [rows, in] x_type
  const void* w = nullptr;  // [out, in] w_type, rows contiguous, 16-byte aligned at least
  const float* bias = nullptr;
  void* y = nullptr;  // [rows, out] y_type; gated: [rows, out / 2]
  int64_t rows = 0, in = 0, out = 0;
  int64_t x_stride = 0, y_stride = 0;
  DType x_type = DType::kF32, w_type = DType::kF32, y_type = DType::kF32;
  // y = act(first half) * second half of the columns.
  bool gated = false;
  Activation activation = Activation::kNone;
};

// Any sizes and types. Each element is one chain of multiply-adds along `in`. Not gated.
void PlainMatMul(const Product& product, Stream stream);

}  // namespace weir::kernels::gpu
