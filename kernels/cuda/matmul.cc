// MatMul on CUDA: checks, and the choice of the kernel.
#include "kernels/matmul.h"

#include "core/check.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

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

}  // namespace

void MatMul(TensorView x, const PackedMatrix& weight, TensorView bias, TensorView y,
            Stream stream) {
  const Product product = MakeProduct(x, weight, bias, y);
  WEIR_CHECK(y.size(1) == weight.out()) << y.ToString() << ", out " << weight.out();
  if (product.rows == 0) return;
  PlainMatMul(product, stream);
}

void MatMulGated(TensorView x, const PackedMatrix& weight, TensorView bias, Activation activation,
                 TensorView both, TensorView y, Stream stream) {
  const int64_t n = y.size(1);
  if (x.size(0) == 0) return;
  gpu::MatMul(x, weight, bias, both, stream);
  gpu::GateMultiply(both.Columns(0, n), both.Columns(n, n), activation, y, stream);
}

void TuneMatMul(const PackedMatrix&, absl::Span<const int64_t>, Stream) {}

}  // namespace weir::kernels::gpu
