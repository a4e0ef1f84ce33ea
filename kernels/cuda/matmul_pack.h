// Weights on their way to the device.
#pragma once

namespace weir::kernels::gpu {

// Gives back the threads and the pinned memory through which PackStacked copies, once the weights
// are loaded. Waits for copies under way. A later PackStacked takes them anew. Any thread.
void ReleasePackStaging();

}  // namespace weir::kernels::gpu
