// Softmax attention: where keys and values live, storing the new ones, plain products.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "core/thread_pool.h"
#include "kernels/cpu/scratch.h"

namespace weir::kernels {
namespace {

float LoadKv(const void* p, DType dtype, int64_t i) {
  return dtype == DType::kF32 ? static_cast<const float*>(p)[i]
                              : ToFloat(static_cast<const BFloat16*>(p)[i]);
}
void StoreKv(void* p, DType dtype, int64_t i, float x) {
  if (dtype == DType::kF32) {
    static_cast<float*>(p)[i] = x;
  } else {
    static_cast<BFloat16*>(p)[i] = ToBFloat16(x);
  }
}
float RoundKv(DType dtype, float x) { return dtype == DType::kF32 ? x : ToFloat(ToBFloat16(x)); }

struct Shape {
  int64_t sequences, tokens, heads, kv_heads, head_dim;
};

Shape CheckShapes(const AttentionArgs& a, DType kv) {
  Shape s{a.slots.num_elements(), a.q.size(0), a.q.size(1), a.k.size(1), a.q.size(2)};
  WEIR_CHECK(a.q.rank() == 3 && a.k.rank() == 3 && a.v.rank() == 3 && a.out.rank() == 3);
  WEIR_CHECK(a.k.size(0) == s.tokens && a.k.size(2) == s.head_dim) << a.k.ToString();
  WEIR_CHECK(a.v.size(0) == s.tokens && a.v.size(1) == s.kv_heads && a.v.size(2) == s.head_dim)
      << a.v.ToString();
  WEIR_CHECK(a.out.size(0) == s.tokens && a.out.size(1) == s.heads && a.out.size(2) == s.head_dim)
      << a.out.ToString();
  WEIR_CHECK(s.kv_heads > 0 && s.heads % s.kv_heads == 0) << s.heads << " / " << s.kv_heads;
  WEIR_CHECK(a.offsets.num_elements() == s.sequences + 1) << a.offsets.ToString();
  WEIR_CHECK(a.cached.num_elements() == s.sequences) << a.cached.ToString();
  WEIR_CHECK(kv == DType::kF32 || kv == DType::kBF16) << DTypeName(kv);
  return s;
}

// One query head over entries [first, last]: key(j), value(j) fill head_dim floats.
template <typename Key, typename Value>
void Attend(const float* q, int64_t head_dim, float scale, int64_t first, int64_t last,
            const Key& key, const Value& value, float* out) {
  static thread_local Scratch scratch;
  float* weights = scratch.Of<float>(last - first + 1 + head_dim);
  float* row = weights + (last - first + 1);
  float max = -INFINITY;
  for (int64_t j = first; j <= last; ++j) {
    key(j, row);
    float dot = 0;
    for (int64_t d = 0; d < head_dim; ++d) dot += q[d] * row[d];
    weights[j - first] = dot * scale;
    max = std::max(max, dot * scale);
  }
  float sum = 0;
  for (int64_t d = 0; d < head_dim; ++d) out[d] = 0;
  for (int64_t j = first; j <= last; ++j) {
    const float w = std::exp(weights[j - first] - max);
    sum += w;
    value(j, row);
    for (int64_t d = 0; d < head_dim; ++d) out[d] += w * row[d];
  }
  for (int64_t d = 0; d < head_dim; ++d) out[d] /= sum;
}

}  // namespace

void PagedAttention(const AttentionArgs& args, const PagedKv& kv, Stream stream) {
  const Shape s = CheckShapes(args, kv.dtype);
  const int32_t* offsets = args.offsets.data<int32_t>();
  const int32_t* slots = args.slots.data<int32_t>();
  const int32_t* cached = args.cached.data<int32_t>();
  const int64_t entry_bytes = s.kv_heads * s.head_dim * DTypeSize(kv.dtype);
  auto find = [&](int64_t seq, int64_t j, bool value) {
    const int64_t page = kv.block_table.row<int32_t>(seq)[j / kv.page_tokens];
    return static_cast<char*>(kv.base) + page * kv.page_stride_bytes + kv.layer_offset_bytes +
           (j % kv.page_tokens + (value ? kv.page_tokens : 0)) * entry_bytes;
  };
  for (int64_t seq = 0; seq < s.sequences; ++seq) {
    if (slots[seq] < 0) continue;
    for (int64_t t = offsets[seq]; t < offsets[seq + 1]; ++t) {
      const int64_t j = cached[seq] + t - offsets[seq];
      for (int64_t i = 0; i < s.kv_heads * s.head_dim; ++i) {
        StoreKv(find(seq, j, false), kv.dtype, i, args.k.row<float>(t)[i]);
        StoreKv(find(seq, j, true), kv.dtype, i, args.v.row<float>(t)[i]);
      }
    }
  }
  stream.pool->ParallelRanges(s.sequences * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t seq = item / s.heads, h = item % s.heads;
      const int64_t kv_base = h / (s.heads / s.kv_heads) * s.head_dim;
      for (int64_t t = offsets[seq]; t < offsets[seq + 1]; ++t) {
        float* out = args.out.row<float>(t) + h * s.head_dim;
        if (slots[seq] < 0) {
          std::fill_n(out, s.head_dim, 0.0f);
          continue;
        }
        auto load = [&](bool value) {
          return [&, value](int64_t j, float* row) {
            const char* p = find(seq, j, value);
            for (int64_t d = 0; d < s.head_dim; ++d) row[d] = LoadKv(p, kv.dtype, kv_base + d);
          };
        };
        Attend(args.q.row<float>(t) + h * s.head_dim, s.head_dim, args.scale, 0,
               cached[seq] + t - offsets[seq], load(false), load(true), out);
      }
    }
  });
}

void WindowAttention(const AttentionArgs& args, const RingKv& ring, Stream stream) {
  const Shape s = CheckShapes(args, ring.dtype);
  const int32_t* offsets = args.offsets.data<int32_t>();
  const int32_t* slots = args.slots.data<int32_t>();
  const int32_t* cached = args.cached.data<int32_t>();
  WEIR_CHECK(ring.window > 0) << ring.window;
  const int64_t entry_bytes = s.kv_heads * s.head_dim * DTypeSize(ring.dtype);
  auto find = [&](int64_t seq, int64_t j, bool value) {
    return static_cast<char*>(ring.base) + slots[seq] * ring.slot_stride_bytes +
           (j % ring.window + (value ? ring.window : 0)) * entry_bytes;
  };
  stream.pool->ParallelRanges(s.sequences * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t seq = item / s.heads, h = item % s.heads;
      const int64_t kv_base = h / (s.heads / s.kv_heads) * s.head_dim;
      for (int64_t t = offsets[seq]; t < offsets[seq + 1]; ++t) {
        float* out = args.out.row<float>(t) + h * s.head_dim;
        if (slots[seq] < 0) {
          std::fill_n(out, s.head_dim, 0.0f);
          continue;
        }
        auto load = [&](bool value) {
          return [&, value](int64_t j, float* row) {
            if (j < cached[seq]) {
              const char* p = find(seq, j, value);
              for (int64_t d = 0; d < s.head_dim; ++d) row[d] = LoadKv(p, ring.dtype, kv_base + d);
              return;
            }
            const TensorView& fresh = value ? args.v : args.k;
            const float* p = fresh.row<float>(offsets[seq] + j - cached[seq]) + kv_base;
            for (int64_t d = 0; d < s.head_dim; ++d) row[d] = RoundKv(ring.dtype, p[d]);
          };
        };
        const int64_t last = cached[seq] + t - offsets[seq];
        Attend(args.q.row<float>(t) + h * s.head_dim, s.head_dim, args.scale,
               std::max<int64_t>(0, last - ring.window + 1), last, load(false), load(true), out);
      }
    }
  });
  for (int64_t seq = 0; seq < s.sequences; ++seq) {
    if (slots[seq] < 0) continue;
    // Only the last `window` tokens of the run survive it.
    const int64_t first = std::max<int64_t>(offsets[seq], offsets[seq + 1] - ring.window);
    for (int64_t t = first; t < offsets[seq + 1]; ++t) {
      const int64_t j = cached[seq] + t - offsets[seq];
      for (int64_t i = 0; i < s.kv_heads * s.head_dim; ++i) {
        StoreKv(find(seq, j, false), ring.dtype, i, args.k.row<float>(t)[i]);
        StoreKv(find(seq, j, true), ring.dtype, i, args.v.row<float>(t)[i]);
      }
    }
  }
}

}  // namespace weir::kernels
