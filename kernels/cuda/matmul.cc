// MatMul on CUDA: checks, and the choice of the kernel.
#include "kernels/matmul.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_pack.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

// A matrix of so many rows is a head, whose products are f32.
constexpr int64_t kLogits = 65536;
// Rows of W of a block of the streaming kernel, at most.
constexpr int64_t kTallest = 192;

bool IsActivation(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

Product MakeProduct(const MatMulInput& input, const PackedMatrix& weight, const TensorView& bias,
                    const TensorView& y) {
  const TensorView& x = input.x;
  WEIR_CHECK(weight.defined() && weight.device() == Device::kCuda)
      << "the weight is not on the GPU";
  WEIR_CHECK(x.rank() == 2 && x.size(1) == weight.in() && IsActivation(x.dtype())) << x.ToString();
  WEIR_CHECK(y.rank() == 2 && y.size(0) == x.size(0) && IsActivation(y.dtype())) << y.ToString();
  WEIR_CHECK(!bias.defined() || bias.num_elements() == weight.out()) << bias.ToString();
  Product product;
  product.x = x.raw();
  product.w = weight.raw();
  product.bias = bias.defined() ? bias.data<float>() : nullptr;
  product.y = y.raw();
  product.rows = x.size(0);
  product.in = weight.in();
  product.out = weight.out();
  product.x_stride = x.row_stride();
  product.y_stride = y.row_stride();
  product.x_type = x.dtype();
  product.w_type = weight.compute();
  product.y_type = y.dtype();
  if (input.squares.defined()) {
    WEIR_CHECK(input.squares.size(1) == kJoinRows) << input.squares.ToString();
    product.norm.squares = input.squares.data<float>();
    product.norm.parts = static_cast<int>(input.squares.size(0));
    product.norm.eps = input.eps;
  }
  return product;
}

void AddToResidual(const MatMulOutput& output, Product* product) {
  const TensorView &h = output.h, &weight = output.norm_weight, *squares = output.squares;
  WEIR_CHECK(h.size(0) == product->rows && h.size(1) == product->out && h.row_stride() % 4 == 0 &&
             weight.num_elements() == product->out)
      << h.ToString() << ", weight " << weight.ToString();
  WEIR_CHECK(squares != nullptr && squares->size(0) >= SquaresParts(product->out) &&
             squares->size(1) == kJoinRows)
      << "no room for the sums of squares";
  product->add.h = h.data<float>();
  product->add.h_stride = h.row_stride();
  product->add.scale = output.scale;
  product->add.weight = weight.data<float>();
  product->add.squares = squares->data<float>();
}

// About one block for every multiprocessor; of large weights, tall blocks, two to a multiprocessor,
// so that one's end hides behind the other. As many warpgroups as a block may have. By the shape
// of the weight alone: every number of rows adds up in the same order.
StreamPlan PlanOf(const Product& p) {
  StreamPlan plan;
  const int64_t halves = p.gated ? 2 : 1;
  const int64_t blocks = cuda::Device().multiprocessors;
  const int64_t unit = p.gated ? 8 : 16;
  const int64_t rows =
      std::max(unit, ((p.out / halves + blocks - 1) / blocks + 7) / 8 * 8) * halves;
  if (rows > kTallest) plan.ring_bytes = 104 * 1024;
  plan.block_rows = static_cast<int>(std::min(rows, kTallest));
  plan.chains = plan.block_rows <= 64 ? 4 : plan.block_rows <= 128 ? 2 : 1;
  plan.panels = plan.block_rows <= 24 ? 4 : 2;
  return plan;
}

// Beyond kStreamRows the library is ahead where W is more than a block for every multiprocessor.
bool Streams(const Product& p) {
  if (!StreamMatMulServes(p)) return false;
  return p.rows <= kStreamRows || p.norm.squares != nullptr || p.add.h != nullptr ||
         p.out <= kTallest * cuda::Device().multiprocessors;
}

}  // namespace

bool MatMulJoins(const PackedMatrix& weight, DType activations, int64_t rows) {
  Product product;
  product.w = weight.raw();
  product.rows = rows;
  product.in = product.x_stride = weight.in();
  product.out = weight.out();
  product.w_type = weight.compute();
  product.x_type = activations;
  return weight.out() % 4 == 0 && StreamMatMulServes(product);
}

void MatMul(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
            const MatMulOutput& output, Stream stream) {
  Product product = MakeProduct(x, weight, bias, output.y);
  WEIR_CHECK(output.y.size(1) == weight.out()) << output.y.ToString() << ", out " << weight.out();
  if (product.rows == 0) return;
  if (output.h.defined()) AddToResidual(output, &product);
  if (Streams(product)) {
    const int blocks = StreamMatMul(product, PlanOf(product), stream);
    if (output.h.defined()) *output.squares = output.squares->Rows(0, blocks);
    return;
  }
  WEIR_CHECK(!x.squares.defined() && !output.h.defined()) << "MatMulJoins does not hold";
  if (product.rows <= kStreamRows) return FewRowsMatMul(product, stream);
  if (LibraryMatMul(product, stream)) return;
  if (StreamMatMulServes(product)) {
    StreamMatMul(product, PlanOf(product), stream);
    return;
  }
  PlainMatMul(product, stream);
}

void MatMulGated(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
                 Activation activation, TensorView both, TensorView y, Stream stream) {
  const int64_t n = y.size(1);
  Product product = MakeProduct(x, weight, bias, y);
  WEIR_CHECK(weight.out() == 2 * n && both.size(1) == 2 * n && both.size(0) == x.x.size(0))
      << y.ToString() << ", " << both.ToString();
  if (product.rows == 0) return;
  product.gated = true;
  product.activation = activation;
  if (Streams(product)) {
    StreamMatMul(product, PlanOf(product), stream);
    return;
  }
  gpu::MatMul(x, weight, bias, both, stream);
  gpu::GateMultiply(both.Columns(0, n), both.Columns(n, n), activation, y, stream);
}

void TuneMatMul(const PackedMatrix& weight, absl::Span<const int64_t> rows, Stream stream) {
  int64_t most = 0;
  for (const int64_t count : rows) most = std::max(most, count);
  if (most <= kStreamRows) return;
  // Random numbers: how fast a GPU runs depends on what it multiplies.
  const DType type = weight.compute();
  const absl::StatusOr<PackedMatrix> x = RandomMatrix(most, weight.in(), type, 1, 1.0f, stream);
  const DType y_type = weight.out() >= kLogits ? DType::kF32 : type;
  absl::StatusOr<Buffer> y = cuda::AllocateDevice(
      static_cast<size_t>(most * weight.out() * DTypeSize(y_type)), "measuring matrix products");
  if (!x.ok() || !y.ok()) return;  // the library's heuristic it is
  for (const int64_t count : rows) {
    if (count <= kStreamRows) continue;
    const TensorView out(y->data(), y_type, {count, weight.out()});
    const Product product = MakeProduct(x->table().Rows(0, count), weight, TensorView(), out);
    if (!Streams(product)) TuneLibrary(product, stream);
  }
}

void FinishPacking() { ReleasePackStaging(); }

absl::Status MatMulLibrary() { return OpenCublasLt().status(); }

}  // namespace weir::kernels::gpu
