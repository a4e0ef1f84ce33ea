// The kernels behind MatMul on CUDA, in the order in which they are asked: our streaming kernels
// for few rows, cuBLASLt for many, a plain kernel for whatever is left.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"
#include "core/stream.h"
#include "kernels/matmul.h"

namespace weir::kernels::gpu {

// x's rows are still to be divided by their root mean squares: the sums of their squares come in
// parts [parts, kJoinRows].
struct RowsToNorm {
  const float* squares = nullptr;
  int parts = 0;
  float eps = 0.0f;
};
// What the product computes is added to the residual stream, h += scale * product, and y = h *
// weight: rows to norm, with `squares` to be read as above, one part from every block.
struct AddToStream {
  float* h = nullptr;
  int64_t h_stride = 0;
  float scale = 1.0f;
  const float* weight = nullptr;
  float* squares = nullptr;
};

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
  // Taken by the streaming kernel only.
  RowsToNorm norm;
  AddToStream add;
};

// How the streaming kernel goes about it. A row of y has the same bits at every number of rows as
// long as `chains` and `panels` stay the same.
struct StreamPlan {
  int block_rows = 64;  // rows of W of a block, a multiple of 8 (gated: of 16), at most 192
  int chains = 1;       // sums along `in` made side by side; a chain for every 64 rows, 4 in all
  int panels = 1;       // columns of a stage, in units of 64; stages go to the chains in turn
  int ring_bytes = 200 * 1024;  // copies under way, per block
};
// Whether the streaming kernel takes it: bf16, rows that start on 16 bytes, up to kJoinRows,
// on compute capability 9.0.
bool StreamMatMulServes(const Product& product);
// Returns the number of blocks.
int StreamMatMul(const Product& product, const StreamPlan& plan, Stream stream);

// cuBLASLt. Takes its workspace, once; nothing where the library is not found.
absl::Status ReserveLibrary();
// False where it does not serve: no library or no workspace, types it does not mix.
bool LibraryMatMul(const Product& product, Stream stream);
// Measures the library's candidates on this product's memory and keeps the best for its shape.
// Milliseconds of the best; 0 where there is none.
double TuneLibrary(const Product& product, Stream stream);

// Up to kStreamRows rows of any types and sizes, at memory speed for one or few. Not gated.
void FewRowsMatMul(const Product& product, Stream stream);

// Any sizes and types. Each element is one chain of multiply-adds along `in`. Not gated.
void PlainMatMul(const Product& product, Stream stream);
// y += bias.
void AddBias(const Product& product, Stream stream);

}  // namespace weir::kernels::gpu
