// Both attentions against double loops, whole and cut anywhere, alone and batched.
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/dense_test_support.h"

namespace weir::kernels {
namespace {

using namespace testing;  // NOLINT: the support of this test

struct Shape {
  int64_t heads, kv_heads, head_dim;
  DType dtype;
  int page_tokens;  // pages only
  int window;       // ring only
};

std::string Name(const Shape& s) {
  return std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " heads of " +
         std::to_string(s.head_dim) + " " + std::string(DTypeName(s.dtype)) + " pages of " +
         std::to_string(s.page_tokens) + " window " + std::to_string(s.window);
}

// A sequence with all its queries, keys and values known from the start.
struct Sequence {
  Sequence(const Shape& shape, int64_t length, int slot, uint64_t seed)
      : length(length),
        slot(slot),
        q(RandomFloats(length * shape.heads * shape.head_dim, seed)),
        k(RandomFloats(length * shape.kv_heads * shape.head_dim, seed + 1)),
        v(RandomFloats(length * shape.kv_heads * shape.head_dim, seed + 2)),
        out(q.size(), kPoison) {}
  int64_t length;
  int slot;
  std::vector<float> q, k, v, out;
  int64_t done = 0;
};

struct Part {
  Sequence* sequence;
  int64_t tokens;
};

// The memory of all sequences (pages or ring), and a way to run batches in it.
class Memory {
 public:
  static constexpr int kSlots = 4;

  Memory(const Shape& shape, bool paged, int64_t max_length) : shape_(shape), paged_(paged) {
    entry_bytes_ = shape.kv_heads * shape.head_dim * DTypeSize(shape.dtype);
    if (paged) {
      pages_per_sequence_ = (max_length + shape.page_tokens - 1) / shape.page_tokens;
      // Two layers a page: ours is the second; a gap after it.
      layer_offset_ = 2 * shape.page_tokens * entry_bytes_;
      block_stride_ = 2 * layer_offset_ + 64;
      bytes_.assign(block_stride_ * pages_per_sequence_ * kSlots, '\xff');  // NaN in both types
    } else {
      block_stride_ = 2 * shape.window * entry_bytes_ + 64;
      bytes_.assign(block_stride_ * kSlots, '\xff');
    }
  }

  void Execute(const std::vector<Part>& runs, Stream stream) {
    int64_t tokens = 0;
    std::vector<int32_t> offsets = {0}, slots, cached;
    for (const Part& run : runs) {
      tokens += run.tokens;
      offsets.push_back(static_cast<int32_t>(tokens));
      slots.push_back(run.sequence->slot);
      cached.push_back(static_cast<int32_t>(run.sequence->done));
    }
    const int64_t width = shape_.heads * shape_.head_dim,
                  kv_width = shape_.kv_heads * shape_.head_dim;
    const int64_t gap = 8;  // q, k, v are columns of one projection, as in the model
    const int64_t stride = width + 2 * kv_width + gap;
    std::vector<float> qkv(tokens * stride, kPoison), out(tokens * width, kPoison);
    for (size_t i = 0; i < runs.size(); ++i) {
      const Sequence& s = *runs[i].sequence;
      for (int64_t t = 0; t < runs[i].tokens; ++t) {
        float* row = qkv.data() + (offsets[i] + t) * stride;
        std::copy_n(s.q.data() + (s.done + t) * width, width, row);
        std::copy_n(s.k.data() + (s.done + t) * kv_width, kv_width, row + width);
        std::copy_n(s.v.data() + (s.done + t) * kv_width, kv_width, row + width + kv_width);
      }
    }
    const TensorView all(qkv.data(), {tokens, stride});
    AttentionArgs args;
    args.q = all.Columns(0, width).Reshape({tokens, shape_.heads, shape_.head_dim});
    args.k = all.Columns(width, kv_width).Reshape({tokens, shape_.kv_heads, shape_.head_dim});
    args.v =
        all.Columns(width + kv_width, kv_width).Reshape({tokens, shape_.kv_heads, shape_.head_dim});
    args.out = TensorView(out.data(), {tokens, shape_.heads, shape_.head_dim});
    args.scale = Scale();
    args.offsets = TensorView(offsets.data(), {static_cast<int64_t>(offsets.size())});
    args.slots = TensorView(slots.data(), {static_cast<int64_t>(slots.size())});
    args.cached = TensorView(cached.data(), {static_cast<int64_t>(cached.size())});
    Call(args, runs, stream);
    for (size_t i = 0; i < runs.size(); ++i) {
      Sequence& s = *runs[i].sequence;
      std::copy_n(out.data() + offsets[i] * width, runs[i].tokens * width,
                  s.out.data() + s.done * width);
      s.done += runs[i].tokens;
    }
  }

  double Scale() const { return 1.0 / std::sqrt(static_cast<float>(shape_.head_dim)); }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  void Call(const AttentionArgs& args, const std::vector<Part>& runs, Stream stream) {
    if (!paged_) {
      WindowAttention(args, {bytes_.data(), block_stride_, shape_.window, shape_.dtype}, stream);
      return;
    }
    // Pages of a sequence lie in scattered order; past the need the table holds garbage.
    std::vector<int32_t> table(runs.size() * (pages_per_sequence_ + 2), -1234567);
    for (size_t i = 0; i < runs.size(); ++i) {
      const Sequence& s = *runs[i].sequence;
      if (s.slot < 0) continue;
      const int64_t need = (s.done + runs[i].tokens + shape_.page_tokens - 1) / shape_.page_tokens;
      for (int64_t page = 0; page < need; ++page) {
        table[i * (pages_per_sequence_ + 2) + page] =
            static_cast<int32_t>((pages_per_sequence_ - 1 - page) * kSlots + s.slot);
      }
    }
    PagedKv kv;
    kv.base = bytes_.data();
    kv.page_stride_bytes = block_stride_;
    kv.layer_offset_bytes = layer_offset_;
    kv.page_tokens = shape_.page_tokens;
    kv.dtype = shape_.dtype;
    kv.block_table =
        TensorView(table.data(), {static_cast<int64_t>(runs.size()), pages_per_sequence_ + 2});
    PagedAttention(args, kv, stream);
  }

  Shape shape_;
  bool paged_;
  int64_t entry_bytes_ = 0, pages_per_sequence_ = 0, layer_offset_ = 0, block_stride_ = 0;
  std::vector<char> bytes_;
};

void ExpectNearReference(const Shape& shape, const Sequence& s, bool paged, double scale) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim;
  std::vector<double> weight(s.length), want(dim);
  for (int64_t t = 0; t < s.length; ++t) {
    const int64_t first = paged ? 0 : std::max<int64_t>(0, t - shape.window + 1);
    for (int64_t h = 0; h < shape.heads; ++h) {
      const float* q = s.q.data() + (t * shape.heads + h) * dim;
      double max = -1e300, sum = 0, max_v = 0, max_dot = 0;
      for (int64_t j = first; j <= t; ++j) {
        const float* k = s.k.data() + (j * shape.kv_heads + h / group) * dim;
        double dot = 0, magnitude = 0;
        for (int64_t d = 0; d < dim; ++d) {
          dot += double{q[d]} * RoundTo(shape.dtype, k[d]);
          magnitude += std::fabs(double{q[d]} * k[d]);
        }
        weight[j] = dot * scale;
        max = std::max(max, weight[j]);
        max_dot = std::max(max_dot, magnitude * scale);
      }
      std::fill(want.begin(), want.end(), 0.0);
      for (int64_t j = first; j <= t; ++j) {
        const float* v = s.v.data() + (j * shape.kv_heads + h / group) * dim;
        const double w = std::exp(weight[j] - max);
        sum += w;
        for (int64_t d = 0; d < dim; ++d) {
          want[d] += w * RoundTo(shape.dtype, v[d]);
          max_v = std::max(max_v, std::fabs(double{v[d]}));
        }
      }
      // A score is off by at most 2 (dim + 4) roundings of its sum of magnitudes, which is the
      // relative error of its weight, in numerator and denominator; the weighted sum of n terms,
      // the sum of weights and rescaling add at most 2 n + 32 roundings (the exponential is good to
      // 4).
      const double n = static_cast<double>(t - first + 1);
      const double tolerance = (4 * (dim + 4) * max_dot + 2 * n + 32) * kEps * max_v;
      for (int64_t d = 0; d < dim; ++d) {
        ASSERT_NEAR(s.out[(t * shape.heads + h) * dim + d], want[d] / sum, tolerance)
            << "token " << t << " head " << h << " element " << d;
      }
    }
  }
}

struct Case {
  Shape shape;
  int64_t length;
};

// Head sizes of published models and odd ones; groups of 1, 2, 3, 4, 8; lengths over the edges of
// key blocks and splits; windows shorter and longer than the run, and of one entry.
const Case kCases[] = {
    {{4, 2, 20, DType::kF32, 16, 7}, 61},      {{3, 1, 24, DType::kBF16, 4, 64}, 200},
    {{6, 6, 36, DType::kF32, 64, 100}, 131},   {{8, 2, 80, DType::kBF16, 32, 33}, 150},
    {{4, 1, 256, DType::kBF16, 16, 128}, 140}, {{8, 1, 64, DType::kF32, 128, 1}, 70},
    {{2, 1, 20, DType::kBF16, 16, 600}, 1100}, {{2, 2, 8, DType::kF32, 5, 513}, 1040},
    {{1, 1, 1, DType::kF32, 1, 3}, 5},
};

class AttentionTest : public ::testing::TestWithParam<bool> {
 protected:
  bool paged() const { return GetParam(); }
  std::vector<float> Whole(const Case& c, Stream stream) {
    Memory memory(c.shape, paged(), c.length);
    Sequence s(c.shape, c.length, 1, 5);
    memory.Execute({{&s, c.length}}, stream);
    return s.out;
  }
};

TEST_P(AttentionTest, AgreesWithDoubleLoops) {
  Threads threads(2);
  for (const Case& c : kCases) {
    SCOPED_TRACE(Name(c.shape));
    for (SimdLevel level : MachineLevels()) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      Memory memory(c.shape, paged(), c.length);
      Sequence s(c.shape, c.length, 1, 5);
      memory.Execute({{&s, c.length}}, threads.stream());
      ASSERT_NO_FATAL_FAILURE(ExpectNearReference(c.shape, s, paged(), memory.Scale()));
    }
  }
}

TEST_P(AttentionTest, TheNumberOfThreadsDoesNotMatter) {
  Threads one(1), two(2), three(3);
  for (const Case& c : kCases) {
    SCOPED_TRACE(Name(c.shape));
    for (SimdLevel level : MachineLevels()) {
      AtLevel at(level);
      const std::vector<float> out = Whole(c, one.stream());
      EXPECT_TRUE(SameBits(out, Whole(c, two.stream())));
      EXPECT_TRUE(SameBits(out, Whole(c, three.stream())));
    }
  }
}

TEST_P(AttentionTest, CutsAndNeighboursDoNotMatter) {
  Threads threads(2);
  for (const Case& c : kCases) {
    SCOPED_TRACE(Name(c.shape));
    for (SimdLevel level : MachineLevels()) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      const std::vector<float> whole = Whole(c, threads.stream());
      std::mt19937 rng(17);
      for (const char* how : {"random cuts", "token by token"}) {
        // Not the slot and not the pages of the whole run either, and three neighbours, one of
        // them padding.
        Memory memory(c.shape, paged(), c.length);
        Sequence s(c.shape, c.length, 2, 5), other(c.shape, c.length, 0, 50);
        Sequence padding(c.shape, c.length, -1, 60), third(c.shape, c.length, 3, 70);
        const bool single = std::string(how) == "token by token";
        while (s.done < s.length) {
          auto next = [&](const Sequence& q) {
            const int64_t most = single ? 1 : 1 + static_cast<int64_t>(rng() % 90);
            return std::min<int64_t>(q.length - q.done, most);
          };
          std::vector<Part> batch = {{&other, next(other) / 2},
                                     {&padding, next(padding)},
                                     {&s, next(s)},
                                     {&third, next(third)}};
          if (rng() % 2 == 0) std::swap(batch[0], batch[2]);
          memory.Execute(batch, threads.stream());
        }
        ASSERT_TRUE(SameBits(whole, s.out)) << how;
        for (float v : padding.out) ASSERT_TRUE(v == 0.0f || std::isnan(v));
        for (int64_t i = 0; i < padding.done; ++i) {
          ASSERT_EQ(padding.out[i * c.shape.heads * c.shape.head_dim], 0.0f)
              << "padding gets zeros";
        }
      }
    }
  }
}

TEST_P(AttentionTest, PaddingAloneTouchesNoMemory) {
  Threads threads(2);
  const Shape shape = kCases[0].shape;
  Memory memory(shape, paged(), 40);
  const std::vector<char> before = memory.bytes();
  Sequence padding(shape, 40, -1, 60);
  memory.Execute({{&padding, 40}}, threads.stream());
  EXPECT_EQ(before, memory.bytes());
  for (float v : padding.out) ASSERT_EQ(v, 0.0f);
}

TEST_P(AttentionTest, HugeScoresDoNotOverflow) {
  Threads one(1);
  const Shape shape = {2, 1, 24, DType::kF32, 16, 50};
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    Memory memory(shape, paged(), 100);
    Sequence s(shape, 100, 0, 3);
    for (float& q : s.q) q *= 1e4f;  // scores of +- 1e5: one key takes all
    memory.Execute({{&s, 100}}, one.stream());
    for (float v : s.out) {
      ASSERT_TRUE(std::isfinite(v));
      ASSERT_LE(std::fabs(v), 6.0f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionTest, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Paged" : "Window"; });

TEST(PagedAttentionTest, StoresRoundedKeysAndValuesWhereTheTableSays) {
  Threads one(1);
  const int page_tokens = 4;
  std::vector<uint16_t> memory(3 * 2 * page_tokens * 2, 0xffff);
  std::vector<float> q(5 * 2, 0.0f), k(5 * 2), v(5 * 2), out(5 * 2);
  for (int i = 0; i < 10; ++i) {
    k[i] = 1.0f + static_cast<float>(i) * 0.01f;
    v[i] = -1.0f - static_cast<float>(i) * 0.01f;
  }
  std::vector<int32_t> table = {2, 0, -9}, offsets = {0, 5}, slots = {0}, cached = {0};
  AttentionArgs args;
  args.q = TensorView(q.data(), {5, 1, 2});
  args.k = TensorView(k.data(), {5, 1, 2});
  args.v = TensorView(v.data(), {5, 1, 2});
  args.out = TensorView(out.data(), {5, 1, 2});
  args.offsets = TensorView(offsets.data(), {2});
  args.slots = TensorView(slots.data(), {1});
  args.cached = TensorView(cached.data(), {1});
  PagedKv kv;
  kv.base = memory.data();
  kv.page_stride_bytes = 2 * page_tokens * 2 * 2;
  kv.page_tokens = page_tokens;
  kv.block_table = TensorView(table.data(), {1, 3});
  PagedAttention(args, kv, one.stream());
  for (int j = 0; j < 5; ++j) {
    for (int d = 0; d < 2; ++d) {
      const int64_t row = table[j / 4] * 2 * page_tokens + j % 4;
      EXPECT_EQ(memory[row * 2 + d], ToBFloat16(k[j * 2 + d]).bits);
      EXPECT_EQ(memory[(row + page_tokens) * 2 + d], ToBFloat16(v[j * 2 + d]).bits);
    }
  }
  for (int i = 0; i < 16; ++i) EXPECT_EQ(memory[16 + i], 0xffff) << "page 1 is not ours";
}

}  // namespace
}  // namespace weir::kernels
