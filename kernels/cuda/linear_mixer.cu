#include "kernels/cuda/linear_mixer.h"

#include "core/check.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {

bool LinearMixerSupported(const LinearMixerArgs& /*args*/) { return false; }

int64_t LinearMixerScratchBytes(const LinearMixerArgs& /*args*/, int64_t /*tokens*/,
                                int64_t /*sequences*/) {
  return 0;
}

void LinearMixer(const LinearMixerArgs& args, Stream /*stream*/) {
  WEIR_CHECK(LinearMixerSupported(args)) << "linear mixer of " << args.qkv.ToString();
}

}  // namespace weir::kernels::gpu
