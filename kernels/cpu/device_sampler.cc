#include "kernels/device_sampler.h"

#include "kernels/cuda/ops.h"

namespace weir::kernels {

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Make(const Limits& limits,
                                                                   int64_t history_capacity,
                                                                   Stream stream) {
  if constexpr (cuda::kBuilt) return gpu::MakeDeviceSampler(limits, history_capacity, stream);
  return absl::UnimplementedError("the device sampler needs a build with CUDA");
}

}  // namespace weir::kernels
