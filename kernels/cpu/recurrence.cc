#include "kernels/recurrence.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"

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

}  // namespace

void RecurrenceReference(const RecurrenceArgs& args) {
  const Sizes n = Validate(args);
  for (int64_t s = 0; s < n.sequences; ++s) {
    for (int head = 0; head < args.heads; ++head) ReferenceRun(args, n, s, head);
  }
}

void RecurrenceChunk(const RecurrenceArgs& args, Stream stream) {
  const Sizes n = Validate(args);
  stream.pool->ParallelFor(n.sequences * args.heads, [&](int64_t task) {
    ReferenceRun(args, n, task / args.heads, static_cast<int>(task % args.heads));
  });
}

void RecurrenceStep(const RecurrenceArgs& args, Stream stream) {
  const int32_t* offsets = args.offsets.data<int32_t>();
  for (int64_t s = 0; s < args.slots.size(0); ++s) {
    WEIR_CHECK(offsets[s + 1] - offsets[s] <= 1)
        << "sequence " << s << " brings more than one token";
  }
  RecurrenceChunk(args, stream);
}

}  // namespace weir::kernels
