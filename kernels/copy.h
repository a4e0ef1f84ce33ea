// Copies of recurrent state between slots and between pages, and out of and into host memory.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "core/stream.h"

namespace weir::kernels {

struct BlockCopy {
  int64_t from = 0;  // index of a block of `block_bytes`
  int64_t to = 0;
};
// Copies whole blocks inside one pool, in order; on CUDA enqueued.
void CopyBlocks(void* base, int64_t block_bytes, absl::Span<const BlockCopy> copies, Stream stream);

}  // namespace weir::kernels
