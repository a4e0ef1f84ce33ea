#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/pointwise.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {

void DivideByLast(TensorView x, float eps, TensorView out, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::DivideByLast(x, eps, out, stream);
  }
  WEIR_CHECK(x.rank() == 3 && out.rank() == 3 && x.size(0) == out.size(0) &&
             x.size(1) == out.size(1) && x.size(2) == out.size(2) + 1)
      << x.ToString() << " against " << out.ToString();
  const int64_t heads = x.size(1), width = out.size(2);
  stream.pool->ParallelRanges(x.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x.row<float>(t);
      float* to = out.row<float>(t);
      for (int64_t h = 0; h < heads; ++h, from += width + 1, to += width) {
        const float divisor = from[width] + eps;
        for (int64_t i = 0; i < width; ++i) to[i] = from[i] / divisor;
      }
    }
  });
}

}  // namespace weir::kernels
