// Block copies inside one pool: runs of copies that do not touch each other's blocks share a
// launch.
#include "kernels/copy.h"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kCopiesPerLaunch = 64;
constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // 16-byte words of a thread in flight

struct CopyBatch {
  int64_t from[kCopiesPerLaunch], to[kCopiesPerLaunch];  // words from the start of the pool
};

__global__ void CopyKernel(uint4* pool, int64_t words, __grid_constant__ const CopyBatch batch) {
  const uint4* from = pool + batch.from[blockIdx.y];
  uint4* to = pool + batch.to[blockIdx.y];
  PdlLaunchDependents();
  PdlWait();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += kUnroll * step) {
    uint4 held[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (i + k * step < words) held[k] = __ldcs(from + i + k * step);
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (i + k * step < words) to[i + k * step] = held[k];
    }
  }
}

// How many of the first copies touch distinct blocks, and so may run in any order.
int64_t Independent(absl::Span<const BlockCopy> copies) {
  int64_t count = 0;
  for (; count < std::min<int64_t>(static_cast<int64_t>(copies.size()), kCopiesPerLaunch);
       ++count) {
    const BlockCopy& next = copies[count];
    for (int64_t i = 0; i < count; ++i) {
      if (next.from == copies[i].to || next.to == copies[i].to || next.to == copies[i].from) {
        return count;
      }
    }
  }
  return count;
}

}  // namespace

void CopyBlocks(void* base, int64_t block_bytes, absl::Span<const BlockCopy> copies,
                Stream stream) {
  if (block_bytes == 0) return;
  auto* pool = static_cast<char*>(base);
  const bool words = block_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  while (!copies.empty()) {
    const int64_t count = words ? std::max<int64_t>(Independent(copies), 1) : 1;
    CopyBatch batch;
    int used = 0;
    for (const BlockCopy& copy : copies.subspan(0, count)) {
      WEIR_CHECK(copy.from >= 0 && copy.to >= 0) << copy.from << " -> " << copy.to;
      if (copy.from == copy.to) continue;
      if (!words) {
        cuda::Copy(pool + copy.to * block_bytes, pool + copy.from * block_bytes,
                   static_cast<size_t>(block_bytes), stream);
        continue;
      }
      batch.from[used] = copy.from * (block_bytes / 16);
      batch.to[used++] = copy.to * (block_bytes / 16);
    }
    copies.remove_prefix(count);
    if (used == 0) continue;
    const int64_t wanted = CeilDiv(block_bytes / 16, kThreads * kUnroll);
    const int64_t fair = CeilDiv(int64_t{cuda::Device().multiprocessors} * 8, used);
    Launch("CopyBlocks", stream, CopyKernel,
           dim3(static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, fair)),
                static_cast<unsigned>(used)),
           dim3(kThreads), {}, reinterpret_cast<uint4*>(pool), block_bytes / 16, batch);
  }
}

}  // namespace weir::kernels::gpu
