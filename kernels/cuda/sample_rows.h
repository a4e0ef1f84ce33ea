// The kernel of the device sampler, for its host side.
#pragma once

#include "kernels/cuda/sample_rows.cuh"

namespace weir::kernels::gpu {

// Thread blocks that share a row when `rows` rows are sampled: about as many as run at once.
int SampleSplit(int64_t rows, int64_t vocab);
// job.partials has room for SampleSplit(rows, vocab) a row.
void LaunchSample(const SampleJob& job, int64_t rows, Stream stream);

}  // namespace weir::kernels::gpu
