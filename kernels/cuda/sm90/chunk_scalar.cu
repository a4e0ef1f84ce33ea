// Host side of the scalar-decay prefill: what it supports, its scratch, its two launches.
#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "kernels/cuda/chunk.h"
#include "kernels/cuda/sm90/chunk_scalar.cuh"
#include "kernels/cuda/sm90/tma.cuh"

namespace weir::kernels::gpu {
namespace {

using sm90::ScalarChunkParams;

// [tokens, heads, dim] in rows the copy engine can take. (Asked for scratch, views have no data
// yet.)
bool Loadable(const TensorView& x) {
  return x.dtype() == DType::kBF16 && x.rank() == 3 &&
         reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 && x.row_stride() % 8 == 0;
}
bool Usable(int dim) { return dim == 64 || dim == 128; }

int PerHead(const RecurrenceArgs& args, const TensorView& x) {
  return args.heads / static_cast<int>(x.size(1));
}

CUtensorMap Map(const TensorView& x) {
  return sm90::MakeTileMap(x.raw(), x.size(0), x.size(1) * x.size(2), x.row_stride(), sm90::kChunk);
}

// As many sequences as leave half of the multiprocessors free: their halves run beside each other.
// 0: not even one, or the delta rule, whose state needs as much work as its outputs.
int SplitUnits(const RecurrenceArgs& args) {
  if (args.update == Update::kDelta) return 0;
  const int blocks = args.heads * static_cast<int>(args.v.size(2) / 64);
  return blocks == 0 ? 0 : cuda::Device().multiprocessors / 2 / blocks;
}

int64_t RecordsBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences) {
  return sm90::ChunkSlots(tokens, sequences) * args.heads *
         sm90::RecordBytes(args.update == Update::kDelta);
}

}  // namespace

sm90::ScalarChunkParams sm90::MakeScalarChunkParams(const RecurrenceArgs& args) {
  ScalarChunkParams p{};
  p.offsets = args.offsets.data<int32_t>();
  p.slots = args.slots.data<int32_t>();
  p.fresh = args.fresh.data<uint8_t>();
  p.sequences = static_cast<int>(args.slots.size(0));
  p.heads = args.heads;
  p.per_q = PerHead(args, args.q);
  p.per_k = PerHead(args, args.k);
  p.per_v = PerHead(args, args.v);
  p.group = std::gcd(p.per_q, p.per_k);
  for (int group = sm90::kMaxGroup; group > 0; --group) {
    if (p.group % group == 0) {
      p.group = group;
      break;
    }
  }
  p.scale = args.scale;
  p.q = args.q.raw();
  p.k = args.k.raw();
  p.q_row = args.q.row_stride();
  p.k_row = args.k.row_stride();
  if (args.decay == Decay::kScalar) {
    p.g = args.g.data<float>();
    p.g_row = args.g.size(0) == 1 ? 0 : args.g.row_stride();
  }
  if (args.update == Update::kDelta) {
    p.beta = args.beta.data<float>();
    p.beta_row = args.beta.row_stride();
  }
  p.out = args.out.raw();
  p.out_row = args.out.row_stride();
  p.v_dim = static_cast<int>(args.v.size(2));
  p.state = static_cast<float*>(args.state);
  p.slot_stride = args.slot_stride_bytes / 4;
  p.records = static_cast<uint8_t*>(args.scratch);
  const int64_t tokens = args.q.size(0);
  if (SplitUnits(args) > 0 && p.sequences <= SplitUnits(args) && tokens >= kSplitChunks * kChunk) {
    p.halves = reinterpret_cast<float*>(p.records + RecordsBytes(args, tokens, p.sequences));
  }
  return p;
}

#if defined(WEIR_SM90A)
constexpr bool kBuilt = true;
#else
constexpr bool kBuilt = false;  // not for the one architecture that can run it
#endif

bool ScalarChunkSupported(const RecurrenceArgs& args) {
  const cuda::DeviceInfo& device = cuda::Device();
  return kBuilt && device.major == 9 && device.minor == 0 && args.decay != Decay::kVector &&
         Loadable(args.q) && Loadable(args.k) && Loadable(args.v) && Loadable(args.out) &&
         Usable(static_cast<int>(args.k.size(2))) && args.v.size(2) % 64 == 0 &&
         reinterpret_cast<uintptr_t>(args.state) % 8 == 0 && args.slot_stride_bytes % 8 == 0;
}

int64_t ScalarChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences) {
  const int64_t halves = std::min<int64_t>(sequences, SplitUnits(args)) * args.heads * 2 * 4 *
                         args.v.size(2) * args.k.size(2);
  return RecordsBytes(args, tokens, sequences) + halves;
}

void ScalarChunk(const RecurrenceArgs& args, Stream stream) {
  const int64_t tokens = args.q.size(0);
  const ScalarChunkParams p = sm90::MakeScalarChunkParams(args);
  if (tokens == 0 || p.sequences == 0 || p.heads == 0) return;
  WEIR_CHECK(reinterpret_cast<uintptr_t>(args.scratch) % 16 == 0 && args.scratch != nullptr);
  const int k_dim = static_cast<int>(args.k.size(2));
  sm90::ScalarChunkPrepare(p, k_dim, sm90::ChunkSlots(tokens, p.sequences), stream);
  sm90::ScalarChunkSerial(p, k_dim, Map(args.q), Map(args.k), Map(args.v), stream);
}

}  // namespace weir::kernels::gpu
