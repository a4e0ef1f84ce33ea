// Prefill forms of the recurrence that run on tensor cores (Hopper, bf16). The dispatcher
// gpu::RecurrenceChunk asks Supported() and otherwise takes the generic form.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "kernels/recurrence.h"

namespace weir::kernels::gpu {

// No decay or one per head and token. `Supported` looks at types, dims, strides and alignment only,
// never at offsets or at the number of tokens, and says false on any other GPU than sm_90. Scratch
// is what a batch of at most `tokens` tokens in `sequences` runs needs (see RecurrenceChunk).
bool ScalarChunkSupported(const RecurrenceArgs& args);
int64_t ScalarChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences);
void ScalarChunk(const RecurrenceArgs& args, Stream stream);

// A decay per key channel.
bool VectorChunkSupported(const RecurrenceArgs& args);
int64_t VectorChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences);
void VectorChunk(const RecurrenceArgs& args, Stream stream);

}  // namespace weir::kernels::gpu
