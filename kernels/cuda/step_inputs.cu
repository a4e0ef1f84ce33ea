#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 256;

__global__ void FeedKernel(int32_t* ids, const int32_t* sources, const int32_t* previous, int n) {
  PdlLaunchDependents();
  PdlWait();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= n || sources[i] < 0) return;
  ids[i] = max(previous[sources[i]], 0);
}

__global__ void ScatterKernel(int32_t* to, const int32_t* indices, const int32_t* values, int n) {
  PdlLaunchDependents();
  PdlWait();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < n) to[indices[i]] = values[i];
}

dim3 Blocks(int64_t n) { return dim3(static_cast<unsigned>(CeilDiv(n, kThreads))); }

}  // namespace

void FeedPrevious(TensorView ids, TensorView sources, TensorView previous, Stream stream) {
  const int64_t n = ids.size(0);
  if (n == 0) return;
  Launch("FeedPrevious", stream, FeedKernel, Blocks(n), kThreads, {}, ids.data<int32_t>(),
         sources.data<int32_t>(), previous.data<int32_t>(), static_cast<int>(n));
}

void ScatterInts(TensorView to, TensorView indices, TensorView values, Stream stream) {
  const int64_t n = indices.size(0);
  if (n == 0) return;
  Launch("ScatterInts", stream, ScatterKernel, Blocks(n), kThreads, {}, to.data<int32_t>(),
         indices.data<int32_t>(), values.data<int32_t>(), static_cast<int>(n));
}

}  // namespace weir::kernels::gpu
