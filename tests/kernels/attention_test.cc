// Both attentions against double loops, whole and cut anywhere, alone and batched, on both devices.
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

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

// A sequence with all its queries, keys and values known from the start; on the GPU as the
// activations' type holds them.
struct Sequence {
  Sequence(const Shape& shape, int64_t length, int slot, uint64_t seed, DType activations)
      : length(length),
        slot(slot),
        q(Random(length * shape.heads * shape.head_dim, seed, activations)),
        k(Random(length * shape.kv_heads * shape.head_dim, seed + 1, activations)),
        v(Random(length * shape.kv_heads * shape.head_dim, seed + 2, activations)),
        gate(Random(length * shape.heads * shape.head_dim, seed + 3, activations)),
        out(q.size(), kPoison) {}
  static std::vector<float> Random(int64_t n, uint64_t seed, DType dtype) {
    std::vector<float> x = RandomFloats(n, seed);
    for (float& v : x) v = RoundTo(dtype, v);
    return x;
  }
  int64_t length;
  int slot;
  std::vector<float> q, k, v, gate, out;
  int64_t done = 0;
};

struct Part {
  Sequence* sequence;
  int64_t tokens;
};

// What the op does besides attending.
struct Options {
  bool norm = false, rotary = false, gate = false;
  bool prepares() const { return norm || rotary; }
  bool any() const { return prepares() || gate; }
};

// The memory of all sequences (pages or ring), and a way to run batches in it.
class Memory {
 public:
  static constexpr int kSlots = 4;
  static constexpr float kNormEps = 1e-2f;

  Memory(const Target& target, const Shape& shape, bool paged, int64_t max_length,
         Options options = {})
      : target_(target), shape_(shape), paged_(paged), options_(options) {
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
    q_norm_ = RandomFloats(shape.head_dim, 91);
    k_norm_ = RandomFloats(shape.head_dim, 92);
    const int64_t rotary_dim = shape.head_dim / 4 * 2;
    for (int64_t i = 0; i < rotary_dim / 2; ++i) {
      inv_freq_.push_back(
          std::pow(1e4f, -2.0f * static_cast<float>(i) / static_cast<float>(rotary_dim)));
    }
    if (inv_freq_.empty()) options_.rotary = false;
  }

  // As inside a captured graph: the op gets no host copies. REQUIRES: runs of one token.
  void ExecuteCaptured(const std::vector<Part>& runs, ThreadPool* pool) {
    captured_ = true;
    Execute(runs, pool);
    captured_ = false;
  }

  void Execute(const std::vector<Part>& runs, ThreadPool* pool) {
    int64_t tokens = 0;
    std::vector<int32_t> offsets = {0}, slots, cached, positions;
    for (const Part& run : runs) {
      tokens += run.tokens;
      offsets.push_back(static_cast<int32_t>(tokens));
      slots.push_back(run.sequence->slot);
      cached.push_back(static_cast<int32_t>(run.sequence->done));
      for (int64_t t = 0; t < run.tokens; ++t) {
        positions.push_back(static_cast<int32_t>(run.sequence->done + t));
      }
    }
    const int64_t width = shape_.heads * shape_.head_dim,
                  kv_width = shape_.kv_heads * shape_.head_dim;
    const int64_t gap = 8;  // q, k, v, gate are columns of one projection, as in the model
    const int64_t stride = 2 * width + 2 * kv_width + gap;
    std::vector<float> all_values(tokens * stride, kPoison), out(tokens * width, kPoison);
    for (size_t i = 0; i < runs.size(); ++i) {
      const Sequence& s = *runs[i].sequence;
      for (int64_t t = 0; t < runs[i].tokens; ++t) {
        float* row = all_values.data() + (offsets[i] + t) * stride;
        std::copy_n(s.q.data() + (s.done + t) * width, width, row);
        std::copy_n(s.k.data() + (s.done + t) * kv_width, kv_width, row + width);
        std::copy_n(s.v.data() + (s.done + t) * kv_width, kv_width, row + width + kv_width);
        std::copy_n(s.gate.data() + (s.done + t) * width, width, row + width + 2 * kv_width);
      }
    }
    DeviceMirror mirror(target_.device, target_.activations, pool);
    const TensorView all = mirror.Activation(TensorView(all_values.data(), {tokens, stride}));
    AttentionArgs args;
    args.q = all.Columns(0, width).Reshape({tokens, shape_.heads, shape_.head_dim});
    args.k = all.Columns(width, kv_width).Reshape({tokens, shape_.kv_heads, shape_.head_dim});
    args.v =
        all.Columns(width + kv_width, kv_width).Reshape({tokens, shape_.kv_heads, shape_.head_dim});
    args.out = mirror.Activation(TensorView(out.data(), {tokens, shape_.heads, shape_.head_dim}));
    args.scale = Scale();
    const auto ints = [&](std::vector<int32_t>& values) {
      return mirror.Plain(TensorView(values.data(), {static_cast<int64_t>(values.size())}));
    };
    const auto floats = [&](std::vector<float>& values) {
      return mirror.Plain(TensorView(values.data(), {static_cast<int64_t>(values.size())}));
    };
    args.offsets = ints(offsets);
    args.slots = ints(slots);
    args.cached = ints(cached);
    if (options_.norm) {
      args.q_norm = floats(q_norm_);
      args.k_norm = floats(k_norm_);
      args.norm_eps = kNormEps;
    }
    if (options_.rotary && tokens > 0) {
      args.positions = ints(positions);
      args.inv_freq = floats(inv_freq_);
    }
    if (options_.gate) args.gate = all.Columns(width + 2 * kv_width, width);
    Plan(args, runs, offsets, cached, mirror);
    Call(args, runs, mirror);
    mirror.Fetch();
    for (size_t i = 0; i < runs.size(); ++i) {
      Sequence& s = *runs[i].sequence;
      std::copy_n(out.data() + offsets[i] * width, runs[i].tokens * width,
                  s.out.data() + s.done * width);
      s.done += runs[i].tokens;
    }
  }

  // x [rows, heads, head_dim] of consecutive positions from 0 as the op prepares it, in double.
  std::vector<double> Prepared(const std::vector<float>& x, int64_t heads, bool query) const {
    std::vector<double> out(x.begin(), x.end());
    const int64_t dim = shape_.head_dim, half = static_cast<int64_t>(inv_freq_.size());
    for (int64_t row = 0; row < static_cast<int64_t>(x.size()) / dim; ++row) {
      double* y = out.data() + row * dim;
      if (options_.norm) {
        double sum = 0;
        for (int64_t d = 0; d < dim; ++d) sum += y[d] * y[d];
        const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + kNormEps);
        for (int64_t d = 0; d < dim; ++d) y[d] *= inverse * (query ? q_norm_ : k_norm_)[d];
      }
      if (!options_.rotary) continue;
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<float>(row / heads) * inv_freq_[i];
        const double a = y[i], b = y[i + half];
        y[i] = a * std::cos(angle) - b * std::sin(angle);
        y[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    return out;
  }

  double Scale() const { return 1.0 / std::sqrt(static_cast<float>(shape_.head_dim)); }
  const std::vector<char>& bytes() const { return bytes_; }
  const Options& options() const { return options_; }
  const Target& target() const { return target_; }
  DType kv_dtype() const { return shape_.dtype; }

 private:
  void Plan(AttentionArgs& args, const std::vector<Part>& runs, const std::vector<int32_t>& offsets,
            const std::vector<int32_t>& cached, DeviceMirror& mirror) const {
    if (!captured_) {
      args.host_offsets = offsets.data();
      args.host_cached = cached.data();
    }
    for (const Part& run : runs) {
      const int64_t entries = run.sequence->done + run.tokens;
      args.max_entries = std::max(args.max_entries, static_cast<int32_t>(entries));
    }
    if (captured_) args.max_entries += 1000;  // a bound only
    args.scratch = mirror.Scratch(AttentionScratchBytes(
        static_cast<int>(shape_.heads), static_cast<int>(shape_.kv_heads),
        static_cast<int>(shape_.head_dim), offsets.back(), static_cast<int64_t>(runs.size()),
        args.max_entries, mirror.activations(), mirror.stream()));
  }

  void Call(const AttentionArgs& args, const std::vector<Part>& runs, DeviceMirror& mirror) {
    void* memory = mirror.Memory(bytes_.data(), bytes_.size());
    if (!paged_) {
      WindowAttention(args, {memory, block_stride_, shape_.window, shape_.dtype}, mirror.stream());
      return;
    }
    // Pages of a sequence lie in scattered order; past the need the table holds garbage.
    table_.assign(runs.size() * (pages_per_sequence_ + 2), -1234567);
    for (size_t i = 0; i < runs.size(); ++i) {
      const Sequence& s = *runs[i].sequence;
      if (s.slot < 0) continue;
      const int64_t need = (s.done + runs[i].tokens + shape_.page_tokens - 1) / shape_.page_tokens;
      for (int64_t page = 0; page < need; ++page) {
        table_[i * (pages_per_sequence_ + 2) + page] =
            static_cast<int32_t>((pages_per_sequence_ - 1 - page) * kSlots + s.slot);
      }
    }
    PagedKv kv;
    kv.base = memory;
    kv.page_stride_bytes = block_stride_;
    kv.layer_offset_bytes = layer_offset_;
    kv.page_tokens = shape_.page_tokens;
    kv.dtype = shape_.dtype;
    kv.block_table = mirror.Plain(
        TensorView(table_.data(), {static_cast<int64_t>(runs.size()), pages_per_sequence_ + 2}));
    PagedAttention(args, kv, mirror.stream());
  }

  Target target_;
  Shape shape_;
  bool paged_, captured_ = false;
  Options options_;
  int64_t entry_bytes_ = 0, pages_per_sequence_ = 0, layer_offset_ = 0, block_stride_ = 0;
  std::vector<char> bytes_;
  std::vector<int32_t> table_;  // of the batch that runs: the mirror writes it back
  std::vector<float> q_norm_, k_norm_, inv_freq_;
};

// The bound of one element's error. A score is off by at most 2 (dim + 4) roundings of its sum of
// magnitudes (more where q and k are prepared: norm, rotation), which is the relative error of its
// weight, in numerator and denominator; the weighted sum of n terms, the sum of weights and
// rescaling add at most 2 n + 32 roundings (the exponential is good to 4). bf16 activations: each
// prepared element, each weight, the gated result and the gate are rounded once more; those of a
// score are independent, so their sum is taken as 8 deviations of a random walk.
double Tolerance(const Memory& m, double dim, double n, double max_dot, double max_walk,
                 double max_v) {
  const bool prepared = m.options().prepares();
  double bound = ((prepared ? 8 : 4) * (dim + 4) * max_dot + 2 * n + 32) * kEps;
  if (m.target().device == Device::kCuda && m.target().activations == DType::kBF16) {
    bound += ActivationEps(m.target()) * ((prepared ? 8 * max_walk : 0) + 4);
  } else if (prepared) {
    bound += ActivationEps({Device::kCuda, m.kv_dtype()}) * 8 * max_walk;
  }
  return bound * max_v;
}

void ExpectNearReference(const Shape& shape, const Memory& memory, const Sequence& s, bool paged) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim;
  const double scale = memory.Scale();
  const std::vector<double> q = memory.Prepared(s.q, shape.heads, true);
  const std::vector<double> k = memory.Prepared(s.k, shape.kv_heads, false);
  std::vector<double> weight(s.length), want(dim);
  for (int64_t t = 0; t < s.length; ++t) {
    const int64_t first = paged ? 0 : std::max<int64_t>(0, t - shape.window + 1);
    for (int64_t h = 0; h < shape.heads; ++h) {
      double max = -1e300, sum = 0, max_v = 0, max_dot = 0, max_walk = 0;
      for (int64_t j = first; j <= t; ++j) {
        double dot = 0, magnitude = 0, walk = 0;
        for (int64_t d = 0; d < dim; ++d) {
          const double key = k[(j * shape.kv_heads + h / group) * dim + d];
          const double product = q[(t * shape.heads + h) * dim + d] *
                                 (memory.options().prepares() ? key : RoundTo(shape.dtype, key));
          dot += product;
          magnitude += std::fabs(product);
          walk += product * product;
        }
        weight[j] = dot * scale;
        max = std::max(max, weight[j]);
        max_dot = std::max(max_dot, magnitude * scale);
        max_walk = std::max(max_walk, std::sqrt(walk) * scale);
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
      const double tolerance = Tolerance(memory, dim, t - first + 1, max_dot, max_walk, max_v);
      for (int64_t d = 0; d < dim; ++d) {
        const int64_t at = (t * shape.heads + h) * dim + d;
        const double gate = memory.options().gate ? 1 / (1 + std::exp(-double{s.gate[at]})) : 1;
        ASSERT_NEAR(s.out[at], want[d] / sum * gate, tolerance)
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
// What the GPU has kernels of its own for.
const Case kTensorCoreCases[] = {
    {{8, 2, 256, DType::kBF16, 16, 48}, 300},  {{8, 1, 64, DType::kBF16, 16, 256}, 290},
    {{6, 2, 128, DType::kBF16, 32, 144}, 400}, {{2, 2, 128, DType::kBF16, 64, 16}, 130},
    {{10, 2, 64, DType::kBF16, 16, 80}, 150},  {{2, 1, 256, DType::kBF16, 48, 512}, 900},
};

struct Param {
  Target target;
  bool paged;
};

class AttentionTest : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    if (on_gpu()) WEIR_NEEDS_GPU();
  }
  const Target& target() const { return GetParam().target; }
  bool on_gpu() const { return target().device == Device::kCuda; }
  bool paged() const { return GetParam().paged; }
  std::vector<SimdLevel> Levels() const {
    return on_gpu() ? std::vector<SimdLevel>{CurrentSimdLevel()} : MachineLevels();
  }
  std::vector<Case> Cases() const {
    std::vector<Case> cases(std::begin(kCases), std::end(kCases));
    if (on_gpu()) {
      cases.insert(cases.end(), std::begin(kTensorCoreCases), std::end(kTensorCoreCases));
    }
    return cases;
  }
  Sequence Make(const Case& c, int slot, uint64_t seed) const {
    return {c.shape, c.length, slot, seed, on_gpu() ? target().activations : DType::kF32};
  }
  std::vector<float> Whole(const Case& c, ThreadPool* pool, Options options = {}) {
    Memory memory(target(), c.shape, paged(), c.length, options);
    Sequence s = Make(c, 1, 5);
    memory.Execute({{&s, c.length}}, pool);
    return s.out;
  }
  // On the GPU each step of a test costs milliseconds: long sequences begin with one run.
  int64_t RunBeforeSingles(const Case& c) const {
    return on_gpu() ? std::max<int64_t>(1, c.length - 70) : 1;
  }
  // Runs of s of the lengths that `cuts` draws, with or without three neighbours, one of them
  // padding, in other slots and pages than Whole().
  void RunCut(const Case& c, bool single, bool neighbours, Options options, Sequence& s,
              ThreadPool* pool) {
    Memory memory(target(), c.shape, paged(), c.length, options);
    Sequence other = Make(c, 0, 50), padding = Make(c, -1, 60), third = Make(c, 3, 70);
    std::mt19937 cuts(17), rng(18);
    const auto next = [&](const Sequence& q, std::mt19937& random) {
      const int64_t most = single ? 1 : 1 + static_cast<int64_t>(random() % 90);
      return std::min<int64_t>(q.length - q.done, most);
    };
    if (single) memory.Execute({{&s, RunBeforeSingles(c)}}, pool);
    while (s.done < s.length) {
      std::vector<Part> batch = {{&s, next(s, cuts)}};
      if (neighbours) {
        batch = {{&other, next(other, rng) / 2},
                 {&padding, next(padding, rng)},
                 batch[0],
                 {&third, next(third, rng)}};
        if (rng() % 2 == 0) std::swap(batch[0], batch[2]);
        if (single && rng() % 2 == 0) batch.erase(batch.begin() + (batch[0].sequence == &s));
      }
      memory.Execute(batch, pool);
    }
    for (float v : padding.out) ASSERT_TRUE(v == 0.0f || std::isnan(v));
    for (int64_t i = 0; i < padding.done; ++i) {
      ASSERT_EQ(padding.out[i * c.shape.heads * c.shape.head_dim], 0.0f) << "padding gets zeros";
    }
  }
};

TEST_P(AttentionTest, AgreesWithDoubleLoops) {
  ThreadPool pool(2);
  const Options all_options[] = {{},
                                 {.norm = true},
                                 {.rotary = true},
                                 {.gate = true},
                                 {.norm = true, .rotary = true, .gate = true}};
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c.shape));
    for (const Options& options : all_options) {
      const bool all = options.norm && options.gate;
      if (options.any() && c.length > (all ? 300 : 150)) continue;
      SCOPED_TRACE(::testing::Message() << options.norm << options.rotary << options.gate);
      for (SimdLevel level : Levels()) {
        SCOPED_TRACE(SimdLevelName(level));
        AtLevel at(level);
        Memory memory(target(), c.shape, paged(), c.length, options);
        Sequence s = Make(c, 1, 5);
        memory.Execute({{&s, c.length}}, &pool);
        ASSERT_NO_FATAL_FAILURE(ExpectNearReference(c.shape, memory, s, paged()));
      }
    }
  }
}

TEST_P(AttentionTest, TokenByTokenAgreesWithDoubleLoops) {
  ThreadPool pool(2);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c.shape));
    Memory memory(target(), c.shape, paged(), c.length, {true, true, true});
    Sequence s = Make(c, 1, 5), padding = Make(c, -1, 6);
    memory.Execute({{&s, RunBeforeSingles(c)}}, &pool);
    while (s.done < s.length) {
      // The last padding element past the end of its data would be read: it starts again.
      padding.done = 0;
      if (s.done % 3 == 0) {
        memory.ExecuteCaptured({{&padding, 1}, {&s, 1}}, &pool);
      } else {
        memory.ExecuteCaptured({{&s, 1}}, &pool);
      }
    }
    ASSERT_NO_FATAL_FAILURE(ExpectNearReference(c.shape, memory, s, paged()));
  }
}

TEST_P(AttentionTest, TheNumberOfThreadsDoesNotMatter) {
  ThreadPool one(1), two(2), three(3);
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c.shape));
    for (SimdLevel level : Levels()) {
      AtLevel at(level);
      const std::vector<float> out = Whole(c, &one);
      EXPECT_TRUE(SameBits(out, Whole(c, &two)));
      EXPECT_TRUE(SameBits(out, Whole(c, &three)));
    }
  }
}

// On the GPU bf16 runs and single tokens have kernels of their own, which agree only as far as
// rounding goes: there, the same cuts give the same bits whatever the batch.
TEST_P(AttentionTest, CutsAndNeighboursDoNotMatter) {
  ThreadPool pool(2);
  const bool same_bits = !on_gpu() || target().activations == DType::kF32;
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c.shape));
    for (SimdLevel level : Levels()) {
      SCOPED_TRACE(SimdLevelName(level));
      AtLevel at(level);
      const std::vector<float> whole = Whole(c, &pool);
      for (bool single : {false, true}) {
        SCOPED_TRACE(single ? "token by token" : "random cuts");
        Sequence batched = Make(c, 2, 5), alone = Make(c, 2, 5);
        ASSERT_NO_FATAL_FAILURE(RunCut(c, single, true, {}, batched, &pool));
        if (same_bits) {
          ASSERT_TRUE(SameBits(whole, batched.out));
          continue;
        }
        RunCut(c, single, false, {}, alone, &pool);
        ASSERT_TRUE(SameBits(alone.out, batched.out));
        Memory memory(target(), c.shape, paged(), c.length);
        if (c.length > 300) continue;
        ASSERT_NO_FATAL_FAILURE(ExpectNearReference(c.shape, memory, batched, paged()));
      }
    }
  }
}

TEST_P(AttentionTest, PaddingAloneTouchesNoMemory) {
  ThreadPool pool(2);
  for (const Case& c : Cases()) {
    for (const int64_t tokens : {1, 40}) {
      Memory memory(target(), c.shape, paged(), 40);
      const std::vector<char> before = memory.bytes();
      Case padded = c;
      padded.length = tokens;
      Sequence padding = Make(padded, -1, 60);
      memory.Execute({{&padding, tokens}}, &pool);
      EXPECT_EQ(before, memory.bytes());
      for (float v : padding.out) ASSERT_EQ(v, 0.0f);
    }
  }
}

TEST_P(AttentionTest, HugeScoresDoNotOverflow) {
  ThreadPool pool(1);
  const Case cases[] = {{{2, 1, 24, DType::kF32, 16, 50}, 100},
                        {{2, 1, 128, DType::kBF16, 16, 48}, 100}};
  for (const Case& c : cases) {
    for (SimdLevel level : Levels()) {
      AtLevel at(level);
      for (bool single : {false, true}) {
        Memory memory(target(), c.shape, paged(), c.length);
        Sequence s = Make(c, 0, 3);
        for (float& q : s.q) q *= 8192.0f;  // scores of +- 1e5: one key takes all
        while (s.done < s.length) memory.Execute({{&s, single ? 1 : c.length}}, &pool);
        for (float v : s.out) {
          ASSERT_TRUE(std::isfinite(v));
          ASSERT_LE(std::fabs(v), 6.0f);
        }
      }
    }
  }
}

std::vector<Param> Params() {
  std::vector<Param> params;
  for (const Target& target : Targets()) {
    for (bool paged : {true, false}) params.push_back({target, paged});
  }
  return params;
}
INSTANTIATE_TEST_SUITE_P(All, AttentionTest, ::testing::ValuesIn(Params()), [](const auto& info) {
  return (info.param.paged ? "Paged_" : "Window_") + info.param.target.name();
});

class PagedAttentionTest : public ::testing::TestWithParam<Target> {};

TEST_P(PagedAttentionTest, StoresRoundedKeysAndValuesWhereTheTableSays) {
  if (GetParam().device == Device::kCuda) WEIR_NEEDS_GPU();
  ThreadPool pool(1);
  DeviceMirror mirror(GetParam().device, GetParam().activations, &pool);
  const int page_tokens = 4;
  std::vector<uint16_t> memory(3 * 2 * page_tokens * 2, 0xffff);
  std::vector<float> q(5 * 2, 0.0f), k(5 * 2), v(5 * 2), out(5 * 2);
  for (int i = 0; i < 10; ++i) {
    k[i] = 1.0f + static_cast<float>(i) * 0.01f;
    v[i] = -1.0f - static_cast<float>(i) * 0.01f;
  }
  std::vector<int32_t> table = {2, 0, -9}, offsets = {0, 5}, slots = {0}, cached = {0};
  AttentionArgs args;
  args.q = mirror.Activation(TensorView(q.data(), {5, 1, 2}));
  args.k = mirror.Activation(TensorView(k.data(), {5, 1, 2}));
  args.v = mirror.Activation(TensorView(v.data(), {5, 1, 2}));
  args.out = mirror.Activation(TensorView(out.data(), {5, 1, 2}));
  args.offsets = mirror.Plain(TensorView(offsets.data(), {2}));
  args.slots = mirror.Plain(TensorView(slots.data(), {1}));
  args.cached = mirror.Plain(TensorView(cached.data(), {1}));
  PagedKv kv;
  kv.base = mirror.Memory(memory.data(), memory.size() * 2);
  kv.page_stride_bytes = 2 * page_tokens * 2 * 2;
  kv.page_tokens = page_tokens;
  kv.block_table = mirror.Plain(TensorView(table.data(), {1, 3}));
  args.host_offsets = offsets.data();
  args.host_cached = cached.data();
  args.max_entries = 5;
  PagedAttention(args, kv, mirror.stream());
  mirror.Fetch();
  for (int j = 0; j < 5; ++j) {
    for (int d = 0; d < 2; ++d) {
      const int64_t row = table[j / 4] * 2 * page_tokens + j % 4;
      EXPECT_EQ(memory[row * 2 + d], ToBFloat16(k[j * 2 + d]).bits);
      EXPECT_EQ(memory[(row + page_tokens) * 2 + d], ToBFloat16(v[j * 2 + d]).bits);
    }
  }
  for (int i = 0; i < 16; ++i) EXPECT_EQ(memory[16 + i], 0xffff) << "page 1 is not ours";
}

INSTANTIATE_TEST_SUITE_P(All, PagedAttentionTest, ::testing::ValuesIn(Targets()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace weir::kernels
