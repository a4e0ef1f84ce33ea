#include "kernels/step_inputs.h"

#include <algorithm>

#include "kernels/cuda/ops.h"

namespace weir::kernels {

void FeedPrevious(TensorView ids, TensorView sources, TensorView previous, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::FeedPrevious(ids, sources, previous, stream);
  }
  for (int64_t i = 0; i < ids.size(0); ++i) {
    const int32_t source = sources.data<int32_t>()[i];
    if (source >= 0) ids.data<int32_t>()[i] = std::max(previous.data<int32_t>()[source], 0);
  }
}

void ScatterInts(TensorView to, TensorView indices, TensorView values, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::ScatterInts(to, indices, values, stream);
  }
  for (int64_t i = 0; i < indices.size(0); ++i) {
    to.data<int32_t>()[indices.data<int32_t>()[i]] = values.data<int32_t>()[i];
  }
}

}  // namespace weir::kernels
