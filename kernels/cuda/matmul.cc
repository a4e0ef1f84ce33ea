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
// Weights past this size, whose gated products stream up to kGatedRows rows.
constexpr int64_t kLargeBytes = int64_t{64} << 20;
constexpr int64_t kGatedRows = 64;

bool IsActivation(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

Product MakeProduct(const TensorView& x, const PackedMatrix& weight, const TensorView& bias,
                    const TensorView& y) {
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
  return product;
}

// About one block for every multiprocessor; of large weights, tall blocks, two to a multiprocessor,
// so that one's end hides behind the other. As many warpgroups as a block may have. By the shape
// of the weight alone: every number of rows adds up in the same order.
StreamPlan PlanOf(const Product& p) {
  constexpr int64_t kTallest = 192;
  StreamPlan plan;
  const int64_t halves = p.gated ? 2 : 1;
  const int64_t blocks = std::max(4, cuda::Device().multiprocessors - 4);
  const int64_t unit = p.gated ? 8 : 16;
  const int64_t rows =
      std::max(unit, ((p.out / halves + blocks - 1) / blocks + 7) / 8 * 8) * halves;
  if (rows > kTallest) plan.ring_bytes = 104 * 1024;
  plan.block_rows = static_cast<int>(std::min(rows, kTallest));
  plan.chains = plan.block_rows <= 64 ? 4 : plan.block_rows <= 128 ? 2 : 1;
  plan.panels = plan.block_rows <= 24 ? 4 : 2;
  return plan;
}

}  // namespace

void MatMul(TensorView x, const PackedMatrix& weight, TensorView bias, TensorView y,
            Stream stream) {
  const Product product = MakeProduct(x, weight, bias, y);
  WEIR_CHECK(y.size(1) == weight.out()) << y.ToString() << ", out " << weight.out();
  if (product.rows == 0) return;
  if (product.rows <= kStreamRows) {
    if (!StreamMatMulServes(product)) return FewRowsMatMul(product, stream);
    return StreamMatMul(product, PlanOf(product), stream);
  }
  if (LibraryMatMul(product, stream)) return;
  if (product.rows <= kMaxStreamRows && StreamMatMulServes(product)) {
    return StreamMatMul(product, PlanOf(product), stream);
  }
  PlainMatMul(product, stream);
}

void MatMulGated(TensorView x, const PackedMatrix& weight, TensorView bias, Activation activation,
                 TensorView both, TensorView y, Stream stream) {
  const int64_t n = y.size(1);
  Product product = MakeProduct(x, weight, bias, y);
  WEIR_CHECK(weight.out() == 2 * n && both.size(1) == 2 * n && both.size(0) == x.size(0))
      << y.ToString() << ", " << both.ToString();
  if (product.rows == 0) return;
  product.gated = true;
  product.activation = activation;
  // Of a large weight the stream is as quick as the library, and the gate costs no kernel of its
  // own.
  const int64_t limit = weight.bytes() >= kLargeBytes ? kGatedRows : kStreamRows;
  if (product.rows <= limit && StreamMatMulServes(product)) {
    return StreamMatMul(product, PlanOf(product), stream);
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
    TuneLibrary(MakeProduct(x->table().Rows(0, count), weight, TensorView(), out), stream);
  }
}

void FinishPacking() { ReleasePackStaging(); }

absl::Status MatMulLibrary() { return OpenCublasLt().status(); }

}  // namespace weir::kernels::gpu
