#include "kernels/norm.h"

#include <algorithm>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/norm_rows.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {
namespace {

const NormTable& Table() {
#if defined(__x86_64__)
  const SimdLevel level = CurrentSimdLevel();
  if (level >= SimdLevel::kAvx512) return kNormAvx512;
  if (level >= SimdLevel::kAvx2) return kNormAvx2;
#endif
  return kNormBaseline;
}

// Runs fn(rows of n elements) over [0, rows), on several threads where that is worth it.
template <typename Rows>
void Run(void (*fn)(const Rows&, int64_t, int64_t), const Rows& a, int64_t rows, Stream stream) {
  constexpr int64_t kElementsPerRange = 16384;
  if (a.n == 0) return;
  stream.pool->ParallelRanges(rows, std::max<int64_t>(1, kElementsPerRange / a.n),
                              [&](int64_t begin, int64_t end) { fn(a, begin, end); });
}

void CheckSame(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.rank() == 2 && b.rank() == 2 && a.size(0) == b.size(0) && a.size(1) == b.size(1))
      << a.ToString() << " against " << b.ToString();
}

int64_t GroupOf(int64_t group, int64_t n) {
  if (group == 0) return n;
  WEIR_CHECK(group > 0 && n % group == 0) << "group " << group << " of " << n;
  return group;
}

// The elements of a vector of n, null where it is absent.
const float* VectorOf(const TensorView& x, int64_t n) {
  if (!x.defined()) return nullptr;
  WEIR_CHECK(x.num_elements() == n) << x.ToString() << " where " << n << " elements belong";
  return x.data<float>();
}

}  // namespace

void RmsNorm(const RmsNormArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::RmsNorm(args, stream);
  }
  GatedRmsNormArgs gated;
  gated.x = args.x;
  gated.weight = args.weight;
  gated.group = args.group;
  gated.eps = args.eps;
  gated.out = args.out;
  GatedRmsNorm(gated, stream);
}

void LayerNorm(const LayerNormArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::LayerNorm(args, stream);
  }
  CheckSame(args.x, args.out);
  LayerNormRows a;
  a.n = args.x.size(1);
  a.x = args.x.data<float>();
  a.x_stride = args.x.row_stride();
  a.weight = VectorOf(args.weight, a.n);
  a.bias = VectorOf(args.bias, a.n);
  a.out = args.out.data<float>();
  a.out_stride = args.out.row_stride();
  a.eps = args.eps;
  Run(Table().layer_norm, a, args.x.size(0), stream);
}

void AddRmsNorm(const AddRmsNormArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::AddRmsNorm(args, stream);
  }
  CheckSame(args.h, args.out);
  AddRmsRows a;
  a.n = args.h.size(1);
  a.h = args.h.data<float>();
  a.h_stride = args.h.row_stride();
  if (args.delta.defined()) {
    CheckSame(args.h, args.delta);
    a.delta = args.delta.data<float>();
    a.delta_stride = args.delta.row_stride();
  }
  WEIR_CHECK(args.weight.defined()) << "the norm has no weight";
  a.weight = VectorOf(args.weight, a.n);
  a.out = args.out.data<float>();
  a.out_stride = args.out.row_stride();
  a.scale = args.scale;
  a.eps = args.eps;
  Run(Table().add_rms, a, args.h.size(0), stream);
}

void GatedRmsNorm(const GatedRmsNormArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::GatedRmsNorm(args, stream);
  }
  CheckSame(args.x, args.out);
  WEIR_CHECK(args.activation == Activation::kSilu || args.activation == Activation::kSigmoid)
      << "the gate of a norm is silu or sigmoid";
  GatedRmsRows a;
  a.n = args.x.size(1);
  a.group = GroupOf(args.group, a.n);
  a.x = args.x.data<float>();
  a.x_stride = args.x.row_stride();
  if (args.gate.defined()) {
    CheckSame(args.x, args.gate);
    a.gate = args.gate.data<float>();
    a.gate_stride = args.gate.row_stride();
  }
  if (args.weight.defined()) {
    a.weight_per_group = args.weight.num_elements() == a.group;
    a.weight = VectorOf(args.weight, a.weight_per_group ? a.group : a.n);
  }
  a.out = args.out.data<float>();
  a.out_stride = args.out.row_stride();
  a.sigmoid = args.activation == Activation::kSigmoid;
  a.gate_first = args.gate_first;
  a.normalize = args.normalize;
  a.eps = args.eps;
  Run(Table().gated_rms, a, args.x.size(0), stream);
}

void L2Norm(const L2NormArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::L2Norm(args, stream);
  }
  CheckSame(args.x, args.out);
  L2Rows a;
  a.n = args.x.size(1);
  a.group = GroupOf(args.group, a.n);
  a.x = args.x.data<float>();
  a.x_stride = args.x.row_stride();
  a.out = args.out.data<float>();
  a.out_stride = args.out.row_stride();
  a.scale = args.scale;
  a.eps = args.eps;
  Run(Table().l2, a, args.x.size(0), stream);
}

}  // namespace weir::kernels
