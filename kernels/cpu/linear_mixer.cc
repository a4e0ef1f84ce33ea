// The CPU composes the single ops: launches cost it nothing.
#include "kernels/linear_mixer.h"

#include "core/check.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {

bool LinearMixerSupported(const LinearMixerArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::LinearMixerSupported(args);
  }
  return false;
}

int64_t LinearMixerScratchBytes(const LinearMixerArgs& args, int64_t tokens, int64_t sequences) {
  if constexpr (cuda::kBuilt) return gpu::LinearMixerScratchBytes(args, tokens, sequences);
  return 0;
}

void LinearMixer(const LinearMixerArgs& args, Stream stream) {
  WEIR_CHECK(stream.device == Device::kCuda) << "LinearMixer on the CPU";
  if constexpr (cuda::kBuilt) gpu::LinearMixer(args, stream);
}

}  // namespace weir::kernels
