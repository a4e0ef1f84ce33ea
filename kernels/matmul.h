// Linear layers: y = x W^T (+ bias), W [out, in] as stored in checkpoints.
#pragma once

#include "absl/types/span.h"
#include "core/buffer.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/short_conv.h"

namespace weir::kernels {

// A weight in the layout that the machine's matrix kernels read, made once at load.
//
// Several matrices that read the same input can be packed as one (rows stacked) so that one product
// serves q, k, v, gates at once. Immutable after Pack; shared by threads.
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // `weight` [out, in] f32, bf16 or f16 (contiguous rows, any alignment); `compute` kF32 or kBF16:
  // the type in which the weight is kept and multiplied (products of bf16 accumulate in f32). The
  // view's memory may go away afterwards. ResourceExhausted when memory is not to be had.
  static absl::StatusOr<PackedMatrix> Pack(TensorView weight, DType compute, Stream stream);
  // Rows stacked in the order given. All have the same `in`.
  static absl::StatusOr<PackedMatrix> PackStacked(const TensorView* weights, int count,
                                                  DType compute, Stream stream);
  // As Pack with small deterministic pseudo-random values: for benchmarks without a checkpoint.
  static absl::StatusOr<PackedMatrix> Random(int64_t out, int64_t in, DType compute, uint64_t seed,
                                             float stddev, Stream stream);

  // Takes over a weight that lies on the device, [out, in] of `compute`.
  static PackedMatrix OnDevice(Buffer data, int64_t out, int64_t in, DType compute);

  bool defined() const { return out_ > 0; }
  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  DType compute() const { return compute_; }
  int64_t bytes() const { return static_cast<int64_t>(data_.size_bytes()); }
  const void* raw() const { return data_.data(); }
  // CUDA: the weight as stored on the device, [out, in] of compute(), rows contiguous. Undefined on
  // the CPU.
  TensorView table() const;
  Device device() const { return device_; }
  // Row `row` back as f32 (embedding look-up of tied heads; exact).
  void UnpackRow(int64_t row, float* out) const;

 private:
  int64_t out_ = 0, in_ = 0;
  DType compute_ = DType::kF32;
  Device device_ = Device::kCpu;
  Buffer data_;
};

// y[t, :] = x[t, :] W^T + bias. Each output element is accumulated over `in` in one fixed order
// that does not depend on the number of rows, on the threads or on neighbours: a row's result is
// bit-identical at every batch size. Decode (few rows) streams W at memory speed; prefill is
// blocked.
//   x    [rows, in] f32, strided rows allowed (rounded to bf16 inside when W is bf16)
//   bias [out] f32 or undefined
//   y    [rows, out] f32, strided rows allowed; must not alias x
//
// CUDA: x f32 or bf16, y f32 or bf16, any pairing. Products of bf16 accumulate in f32, f32 is never
// rounded to tf32. Up to kStreamRows rows a row's result is bit-identical at every batch size (our
// own kernels, one fixed order per weight shape); above, the library's kernel for that size is
// used. Does not allocate, does not synchronise, safe inside graph capture.
//
// On CUDA, where MatMulJoins says so, what joins two blocks of a model needs no kernel of its own
// (AddRmsNorm of norm.h): the product that ends a block adds to the residual stream, and the one
// that begins the next block divides its rows by their root mean squares.
struct MatMulInput {
  MatMulInput(TensorView rows) : x(rows) {}  // NOLINT(google-explicit-constructor): plain rows
  TensorView x;
  // Defined: x is still to be divided by sqrt(squares / in + eps). The sums of squares of the rows
  // come in parts, [parts, kJoinRows] f32.
  TensorView squares;
  float eps = 0.0f;
};
struct MatMulOutput {
  MatMulOutput(TensorView product) : y(product) {}  // NOLINT(google-explicit-constructor)
  TensorView y;
  // Defined: h += scale * product, y = h * norm_weight, and the sums of h's squares go to *squares,
  // whose first dimension, with room for all parts, is cut to those written.
  TensorView h;  // [rows, out] f32
  float scale = 1.0f;
  TensorView norm_weight;  // [out] f32
  TensorView* squares = nullptr;
};
void MatMul(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
            const MatMulOutput& y, Stream stream);
inline constexpr int64_t kStreamRows = 32, kJoinRows = 64;
bool MatMulJoins(const PackedMatrix& weight, DType activations, int64_t rows, Stream stream);
// Rows of `squares` that suffice for a weight of `out` rows.
constexpr int64_t SquaresParts(int64_t out) { return out / 8 + 8; }

// y = act(x Wg^T + bg) * (x Wu^T + bu), weight = [Wg; Wu] stacked, bias [2 * n] or undefined.
//   y [rows, n]; both [rows, 2 * n] of y's type receives the two products where they are not fused.
void MatMulGated(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
                 Activation activation, TensorView both, TensorView y, Stream stream);

// CUDA: chooses and caches the kernels for these row counts by measuring them on this device (about
// a millisecond per distinct shape and count). Other counts use the plan of the next larger one
// measured or the library's heuristic. No-op on the CPU.
void TuneMatMul(const PackedMatrix& weight, absl::Span<const int64_t> rows, Stream stream);

// CUDA: gives back what packing kept for the next weight. After the last one. No-op on the CPU.
void FinishPacking(Stream stream);
// CUDA: OK when the library for large products is there, else why not: they are slow then. OK on
// the CPU, which needs none.
absl::Status MatMulLibrary(Stream stream);

}  // namespace weir::kernels
