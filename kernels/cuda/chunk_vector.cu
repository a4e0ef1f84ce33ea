// The prefill form with a decay per key channel: what it takes, and its launches.
#include "kernels/cuda/chunk_vector.cuh"

#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/chunk.h"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

using vector_chunk::kChunk;
using vector_chunk::kDim;

// Tiles of one launch: enough to fill the device, few enough to stay small.
constexpr int64_t kTilesAtOnce = 4096;

int64_t TileBytes(const RecurrenceArgs& args) {
  return vector_chunk::TileBytes(args.update == Update::kDelta);
}

int64_t ChunksAtOnce(const RecurrenceArgs& args) {
  return std::max<int64_t>(1, kTilesAtOnce / args.heads);
}

// What does not depend on pointers and strides.
bool UsualShape(const RecurrenceArgs& args) {
  constexpr int kSharedBytes = 116 * 1024;  // what the largest block without warpgroups takes
  return cuda::Device().max_shared_bytes >= kSharedBytes && args.decay == Decay::kVector &&
         args.q.dtype() == DType::kBF16 && args.q.size(2) == kDim && args.v.size(2) == kDim;
}

bool Aligned(const TensorView& x, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(x.raw()) % static_cast<uintptr_t>(bytes) == 0 &&
         (x.size(0) <= 1 || x.row_stride() * DTypeSize(x.dtype()) % bytes == 0);
}

}  // namespace

bool VectorChunkSupported(const RecurrenceArgs& args) {
  if (!UsualShape(args)) return false;
  if ((reinterpret_cast<uintptr_t>(args.state) | static_cast<uintptr_t>(args.slot_stride_bytes)) %
          8 !=
      0) {
    return false;
  }
  return Aligned(args.q, 16) && Aligned(args.k, 16) && Aligned(args.v, 16) && Aligned(args.g, 8) &&
         Aligned(args.out, 16);
}

int64_t VectorChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences) {
  if (!UsualShape(args)) return 0;
  const int64_t chunks = std::min(tokens / kChunk + sequences, ChunksAtOnce(args));
  return chunks * args.heads * TileBytes(args);
}

void VectorChunk(const RecurrenceArgs& args, Stream stream) {
  WEIR_CHECK(args.host_offsets != nullptr && args.scratch != nullptr) << "chunks without a plan";
  vector_chunk::Params p{};
  const auto group = [&](const TensorView& x) { return static_cast<int>(args.heads / x.size(1)); };
  p.q = static_cast<const bf16*>(args.q.raw());
  p.k = static_cast<const bf16*>(args.k.raw());
  p.v = static_cast<const bf16*>(args.v.raw());
  p.q_stride = args.q.row_stride();
  p.k_stride = args.k.row_stride();
  p.v_stride = args.v.row_stride();
  p.q_group = group(args.q);
  p.k_group = group(args.k);
  p.v_group = group(args.v);
  p.g_group = group(args.g);
  p.g = args.g.data<float>();
  p.g_stride = args.g.row_stride();
  const bool delta = args.update == Update::kDelta;
  if (delta) {
    p.beta = args.beta.data<float>();
    p.beta_stride = args.beta.row_stride();
  }
  p.out = static_cast<bf16*>(args.out.raw());
  p.out_stride = args.out.row_stride();
  p.scale = args.scale;
  p.heads = args.heads;
  p.sequences = static_cast<int>(args.slots.size(0));
  p.offsets = args.offsets.data<int32_t>();
  p.slots = args.slots.data<int32_t>();
  p.fresh = args.fresh.data<uint8_t>();
  p.state = static_cast<char*>(args.state);
  p.slot_stride_bytes = args.slot_stride_bytes;
  p.tiles = static_cast<char*>(args.scratch);
  const bool warpgroups = vector_chunk::HasWarpgroupScan();
  const int32_t* offsets = args.host_offsets;
  const int last = p.sequences - 1;
  const int chunks = vector_chunk::FirstChunk(offsets, last) +
                     static_cast<int>(CeilDiv(offsets[last + 1] - offsets[last], kChunk));
  for (p.first_chunk = 0; p.first_chunk < std::max(chunks, 1); p.first_chunk += p.chunks) {
    p.chunks = static_cast<int>(std::min<int64_t>(chunks - p.first_chunk, ChunksAtOnce(args)));
    if (p.chunks <= 0) return;
    vector_chunk::PrepareChunks(p, delta, stream);
    if (warpgroups) {
      vector_chunk::ScanChunksWarpgroup(p, delta, args.v.size(0), stream);
    } else {
      vector_chunk::ScanChunks(p, delta, stream);
    }
  }
}

}  // namespace weir::kernels::gpu
