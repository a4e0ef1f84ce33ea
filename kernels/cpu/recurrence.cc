#include "kernels/recurrence.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/recurrence_job.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {
namespace {

struct Sizes {
  int64_t tokens = 0, sequences = 0, dim_k = 0, dim_v = 0;
};

// Aborts unless the shapes are those of the contract.
Sizes Validate(const RecurrenceArgs& a) {
  Sizes n;
  WEIR_CHECK(a.q.rank() == 3 && a.k.rank() == 3 && a.v.rank() == 3 && a.out.rank() == 3)
      << "q, k, v, out must be [tokens, heads, dim]: " << a.q.ToString() << " " << a.k.ToString()
      << " " << a.v.ToString() << " " << a.out.ToString();
  n.tokens = a.q.size(0);
  n.dim_k = a.q.size(2);
  n.dim_v = a.v.size(2);
  WEIR_CHECK(a.heads > 0 && n.dim_k > 0 && n.dim_v > 0) << a.heads << " heads";
  WEIR_CHECK(a.k.size(0) == n.tokens && a.v.size(0) == n.tokens && a.out.size(0) == n.tokens)
      << "token counts differ";
  WEIR_CHECK(a.k.size(2) == n.dim_k) << a.q.ToString() << " against " << a.k.ToString();
  WEIR_CHECK(a.out.size(1) == a.heads && a.out.size(2) == n.dim_v) << a.out.ToString();
  for (const TensorView* x : {&a.q, &a.k, &a.v}) {
    WEIR_CHECK(x->size(1) > 0 && a.heads % x->size(1) == 0)
        << a.heads << " heads are no multiple of " << x->ToString();
  }
  if (a.decay == Decay::kScalar) {
    WEIR_CHECK(a.g.rank() == 2 && (a.g.size(0) == n.tokens || a.g.size(0) == 1) &&
               a.g.size(1) == a.heads)
        << "scalar decay " << a.g.ToString();
  } else if (a.decay == Decay::kVector) {
    WEIR_CHECK(a.g.rank() == 3 && a.g.size(0) == n.tokens && a.g.size(1) > 0 &&
               a.heads % a.g.size(1) == 0 && a.g.size(2) == n.dim_k)
        << "decay per channel " << a.g.ToString();
  }
  if (a.update == Update::kDelta) {
    WEIR_CHECK(a.beta.rank() == 2 && a.beta.size(0) == n.tokens && a.beta.size(1) == a.heads)
        << "beta " << a.beta.ToString();
  }
  WEIR_CHECK(a.slots.rank() == 1) << "slots " << a.slots.ToString();
  n.sequences = a.slots.size(0);
  WEIR_CHECK(a.offsets.rank() == 1 && a.offsets.size(0) == n.sequences + 1)
      << "offsets " << a.offsets.ToString() << " for " << n.sequences << " sequences";
  WEIR_CHECK(a.fresh.rank() == 1 && a.fresh.size(0) == n.sequences) << a.fresh.ToString();
  const int32_t* offsets = a.offsets.data<int32_t>();
  for (int64_t s = 0; s < n.sequences; ++s) {
    WEIR_CHECK(0 <= offsets[s] && offsets[s] <= offsets[s + 1] && offsets[s + 1] <= n.tokens)
        << "sequence " << s << " owns tokens [" << offsets[s] << ", " << offsets[s + 1] << ") of "
        << n.tokens;
  }
  return n;
}

// Token t, value head `head` of a [tokens, x.size(1), dim] tensor whose heads are shared evenly.
const float* HeadRow(const TensorView& x, int64_t t, int head, int heads) {
  return x.row<float>(t) + head / (heads / x.size(1)) * x.size(2);
}

float* StateOf(const RecurrenceArgs& a, const Sizes& n, int64_t slot, int head) {
  char* base = static_cast<char*>(a.state) + slot * a.slot_stride_bytes;
  return reinterpret_cast<float*>(base) + head * n.dim_v * n.dim_k;
}

void ReferenceToken(const RecurrenceArgs& a, const Sizes& n, int64_t t, int head, float* state) {
  const int64_t K = n.dim_k;
  const float* q = HeadRow(a.q, t, head, a.heads);
  const float* k = HeadRow(a.k, t, head, a.heads);
  const float* v = HeadRow(a.v, t, head, a.heads);
  float* out = a.out.row<float>(t) + head * n.dim_v;
  std::vector<float> decay(K, 1.0f);
  if (a.decay == Decay::kScalar) {
    decay.assign(K, std::exp(a.g.row<float>(a.g.size(0) == 1 ? 0 : t)[head]));
  } else if (a.decay == Decay::kVector) {
    const float* g = HeadRow(a.g, t, head, a.heads);
    for (int64_t c = 0; c < K; ++c) decay[c] = std::exp(g[c]);
  }
  for (int64_t j = 0; j < n.dim_v; ++j) {
    float* s = state + j * K;  // column j of S
    float seen = 0.0f;         // (S-^T k)_j
    for (int64_t c = 0; c < K; ++c) {
      s[c] *= decay[c];
      seen += s[c] * k[c];
    }
    float write = v[j];
    if (a.update == Update::kDelta) write = a.beta.row<float>(t)[head] * (v[j] - seen);
    float read = 0.0f;
    for (int64_t c = 0; c < K; ++c) {
      s[c] += k[c] * write;
      read += s[c] * q[c];
    }
    out[j] = a.scale * read;
  }
}

void ReferenceRun(const RecurrenceArgs& a, const Sizes& n, int64_t s, int head) {
  const int32_t slot = a.slots.data<int32_t>()[s];
  const int64_t begin = a.offsets.data<int32_t>()[s], end = a.offsets.data<int32_t>()[s + 1];
  if (slot < 0) {
    for (int64_t t = begin; t < end; ++t) {
      std::fill_n(a.out.row<float>(t) + head * n.dim_v, n.dim_v, 0.0f);
    }
    return;
  }
  if (begin == end) return;
  float* state = StateOf(a, n, slot, head);
  if (a.fresh.data<uint8_t>()[s]) std::fill_n(state, n.dim_v * n.dim_k, 0.0f);
  for (int64_t t = begin; t < end; ++t) ReferenceToken(a, n, t, head, state);
}

using RunFn = void (*)(const RecurrenceJob&);

RunFn ChooseRun() {
#if defined(__x86_64__)
  const SimdLevel level = CurrentSimdLevel();
  if (level >= SimdLevel::kAvx512) return RunRecurrenceAvx512;
  if (level >= SimdLevel::kAvx2) return RunRecurrenceAvx2;
#endif
  return RunRecurrenceBaseline;
}

// Columns [first, first + count) of value head `head` of sequence s.
void RunColumns(const RecurrenceArgs& a, const Sizes& n, int64_t s, int head, int64_t first,
                int64_t count, RunFn run) {
  const int32_t slot = a.slots.data<int32_t>()[s];
  const int64_t begin = a.offsets.data<int32_t>()[s], end = a.offsets.data<int32_t>()[s + 1];
  if (begin == end) return;
  if (slot < 0) {
    for (int64_t t = begin; t < end; ++t) {
      std::fill_n(a.out.row<float>(t) + head * n.dim_v + first, count, 0.0f);
    }
    return;
  }
  RecurrenceJob job;
  job.vector_decay = a.decay == Decay::kVector;
  job.delta = a.update == Update::kDelta;
  job.scale = a.scale;
  job.tokens = end - begin;
  job.dim_k = n.dim_k;
  job.dim_v = count;
  job.q = HeadRow(a.q, begin, head, a.heads);
  job.q_stride = a.q.row_stride();
  job.k = HeadRow(a.k, begin, head, a.heads);
  job.k_stride = a.k.row_stride();
  job.v = HeadRow(a.v, begin, head, a.heads) + first;
  job.v_stride = a.v.row_stride();
  if (a.decay == Decay::kVector) {
    job.g = HeadRow(a.g, begin, head, a.heads);
    job.g_stride = a.g.row_stride();
  } else if (a.decay == Decay::kScalar) {
    const bool fixed = a.g.size(0) == 1;
    job.g = a.g.row<float>(fixed ? 0 : begin) + head;
    job.g_stride = fixed ? 0 : a.g.row_stride();
  }
  if (job.delta) {
    job.beta = a.beta.row<float>(begin) + head;
    job.beta_stride = a.beta.row_stride();
  }
  job.out = a.out.row<float>(begin) + head * n.dim_v + first;
  job.out_stride = a.out.row_stride();
  job.state = StateOf(a, n, slot, head) + first * n.dim_k;
  job.fresh = a.fresh.data<uint8_t>()[s] != 0;
  static thread_local Scratch scratch;
  job.scratch = scratch.Of<float>(RecurrenceScratchFloats(n.dim_k, n.dim_v));
  run(job);
}

// Splits the work into tasks of (sequence, head), of (sequence, head, columns of V) where that
// alone would leave threads idle, and of several heads where one is too little for a task.
void RunAll(const RecurrenceArgs& a, const Sizes& n, Stream stream) {
  constexpr int64_t kColumns = 64;         // a multiple of every panel but AVX2's
  constexpr int64_t kLeastWork = 1 << 14;  // state entries x tokens per task, ~2 us
  const RunFn run = ChooseRun();
  const int64_t heads = n.sequences * a.heads, threads = stream.pool->num_threads();
  int64_t parts = 1;
  if (heads < 2 * threads) {
    parts = std::min((n.dim_v + kColumns - 1) / kColumns,
                     (2 * threads + heads - 1) / std::max<int64_t>(heads, 1));
  }
  const int64_t units = (n.dim_v + kColumns - 1) / kColumns;
  const int64_t items = heads * parts;
  const int64_t work = n.dim_k * n.dim_v * n.tokens * a.heads / std::max<int64_t>(items, 1);
  const int64_t per_task = std::max<int64_t>(1, kLeastWork / std::max<int64_t>(work, 1));
  stream.pool->ParallelFor((items + per_task - 1) / per_task, [&](int64_t task) {
    for (int64_t item = task * per_task; item < std::min(items, (task + 1) * per_task); ++item) {
      const int64_t part = item % parts, head = item / parts % a.heads;
      int64_t first = 0, last = n.dim_v;
      if (parts > 1) {
        first = units * part / parts * kColumns;
        last = std::min(n.dim_v, units * (part + 1) / parts * kColumns);
      }
      RunColumns(a, n, item / parts / a.heads, static_cast<int>(head), first, last - first, run);
    }
  });
}

}  // namespace

void RecurrenceReference(const RecurrenceArgs& args) {
  const Sizes n = Validate(args);
  for (int64_t s = 0; s < n.sequences; ++s) {
    for (int head = 0; head < args.heads; ++head) ReferenceRun(args, n, s, head);
  }
}

void RecurrenceChunk(const RecurrenceArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::RecurrenceChunk(args, stream);
  }
  RunAll(args, Validate(args), stream);
}

void RecurrenceStep(const RecurrenceArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::RecurrenceStep(args, stream);
  }
  const Sizes n = Validate(args);
  const int32_t* offsets = args.offsets.data<int32_t>();
  for (int64_t s = 0; s < n.sequences; ++s) {
    WEIR_CHECK(offsets[s + 1] - offsets[s] <= 1)
        << "sequence " << s << " brings more than one token";
  }
  RunAll(args, n, stream);
}

int64_t RecurrenceScratchFloats(int64_t dim_k, int64_t dim_v) {
  const int64_t K = (dim_k + 15) / 16 * 16;
  // The chunk form: the state in panels, five matrices [chunk, K], three vectors [K], two [chunk,
  // chunk], one [chunk, panel]. The step form needs four matrices [kStepTokens, K]: less.
  constexpr int64_t kMostChunk = 64, kMostPanel = 64;
  return K * (dim_v + kMostPanel) + (5 * kMostChunk + 8) * K + 2 * kMostChunk * kMostChunk +
         kMostChunk * kMostPanel + 256;
}

int64_t RecurrenceChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences,
                                    Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) {
      return gpu::RecurrenceChunkScratchBytes(args, tokens, sequences);
    }
  }
  return 0;
}

}  // namespace weir::kernels
