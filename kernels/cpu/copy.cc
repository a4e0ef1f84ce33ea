// Block copies inside one pool.
#include "kernels/copy.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {

void CopyBlocks(void* base, int64_t block_bytes, absl::Span<const BlockCopy> copies,
                Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::CopyBlocks(base, block_bytes, copies, stream);
  }
  constexpr int64_t kMinBytes = 256 << 10;  // per thread: less is not worth waking one
  char* pool = static_cast<char*>(base);
  for (const BlockCopy& copy : copies) {
    WEIR_CHECK(copy.from >= 0 && copy.to >= 0) << copy.from << " -> " << copy.to;
    if (copy.from == copy.to) continue;
    // One copy after the other, each split over the threads: a later copy may read what an earlier
    // one wrote.
    stream.pool->ParallelRanges(block_bytes, kMinBytes, [&](int64_t begin, int64_t end) {
      std::memcpy(pool + copy.to * block_bytes + begin, pool + copy.from * block_bytes + begin,
                  static_cast<size_t>(end - begin));
    });
  }
}

}  // namespace weir::kernels
