#include "kernels/device_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using testing::RandomFloats;
using testing::Threads;

constexpr int32_t kUntouched = -77;

// A row and what its spans point to.
struct OwnedRow {
  SampleRow row;
  std::vector<int32_t> prompt, generated, forbidden;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<uint32_t> mask;
  const SampleRow& get() {
    row.prompt = prompt;
    row.generated = generated;
    row.forbidden = forbidden;
    row.logit_bias = bias;
    row.allowed_mask = mask;
    return row;
  }
};

std::vector<int32_t> RandomIds(std::mt19937_64& rng, int count, int64_t vocab) {
  std::vector<int32_t> ids(count);
  // Some repeat, some are out of range.
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % (vocab / 3 + 5)) * 3 - 2;
  return ids;
}

OwnedRow RandomRow(std::mt19937_64& rng, int64_t vocab) {
  const auto one_in = [&](int n) { return rng() % n == 0; };
  const auto unit = [&] { return static_cast<float>(rng() % 1000) / 1000.0f; };
  OwnedRow owned;
  SampleRow& row = owned.row;
  row.temperature = one_in(4) ? 0.0f : 0.3f + 1.5f * unit();
  if (one_in(3)) row.top_k = 1 + static_cast<int32_t>(rng() % (one_in(3) ? vocab : 60));
  if (one_in(2)) row.top_p = 0.05f + 0.949f * unit();
  if (one_in(4)) row.min_p = 0.3f * unit() * unit();
  row.seed = rng();
  row.draw = rng() % 100000;
  if (one_in(3)) row.repetition_penalty = 0.7f + unit();
  if (one_in(4)) row.presence_penalty = unit();
  if (one_in(4)) row.frequency_penalty = unit() - 0.3f;
  owned.prompt = RandomIds(rng, static_cast<int>(rng() % 700), vocab);
  owned.generated = RandomIds(rng, static_cast<int>(rng() % 700), vocab);
  if (one_in(4)) {
    for (int32_t id = 1; id < vocab + 50 && owned.bias.size() < 40; id += 97) {
      owned.bias.emplace_back(id, 4 * unit() - 2);
    }
  }
  if (one_in(4)) owned.forbidden = RandomIds(rng, 20, vocab);
  if (one_in(4)) {
    owned.mask.resize((vocab + 31) / 32 - rng() % 2);
    for (uint32_t& word : owned.mask) word = static_cast<uint32_t>(rng()) | 1u << rng() % 32;
  }
  row.num_top_logprobs = static_cast<int32_t>(rng() % 8) - 1;
  if (one_in(5)) row.num_top_logprobs = 20;
  return owned;
}

struct Outcome {
  std::vector<SampleResult> results;
  std::vector<std::vector<std::pair<int32_t, float>>> top;
  explicit Outcome(const std::vector<SampleRow>& rows) : results(rows.size()), top(rows.size()) {
    for (size_t i = 0; i < rows.size(); ++i) {
      top[i].resize(std::max(0, rows[i].num_top_logprobs));
      results[i].top = absl::MakeSpan(top[i]);
    }
  }
};

Outcome OnCpu(std::vector<float> logits, const std::vector<SampleRow>& rows) {
  static Threads two(2);
  Outcome outcome(rows);
  const auto count = static_cast<int64_t>(rows.size());
  const TensorView view(logits.data(), {count, static_cast<int64_t>(logits.size()) / count});
  Sample(view, rows, absl::MakeSpan(outcome.results), two.stream());
  return outcome;
}

class DeviceSamplerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WEIR_NEEDS_GPU();
    stream_ = cuda::OwnedStream::Make();
  }

  // A sampler for `rows` rows whose launch is captured once.
  void Prepare(int rows, int64_t vocab, int64_t history = 1 << 20) {
    rows_ = rows;
    vocab_ = vocab;
    DeviceSampler::Limits limits;
    limits.max_rows = rows;
    limits.vocab = static_cast<int>(vocab);
    auto made = DeviceSampler::Make(limits, history, stream());
    ASSERT_TRUE(made.ok()) << made.status();
    sampler_ = std::move(*made);
    logits_ = Take(rows * vocab * 4);
    tokens_ = Take(rows * 4);
    fed_ = Take(rows * 4);
    graph_ = cuda::Graph::Capture(stream(), [&] {
      sampler_->Launch(LogitsView(), TensorView(fed_.as<int32_t>(), {rows_}),
                       TensorView(tokens_.as<int32_t>(), {rows_}), stream());
    });
  }
  TensorView LogitsView() const { return TensorView(logits_.as<float>(), {rows_, vocab_}); }

  Outcome OnGpu(const std::vector<float>& logits, const std::vector<SampleRow>& rows,
                const std::vector<uint8_t>& append = {}, const std::vector<int32_t>& fed = {}) {
    Outcome outcome(rows);
    std::vector<int32_t> tokens(rows_, kUntouched);
    cuda::Copy(logits_.data(), logits.data(), logits.size() * 4, stream());
    cuda::Copy(tokens_.data(), tokens.data(), tokens.size() * 4, stream());
    if (!fed.empty()) cuda::Copy(fed_.data(), fed.data(), fed.size() * 4, stream());
    sampler_->Describe(step_, rows, append, stream());
    graph_.Launch(stream());
    sampler_->Fetch(step_, static_cast<int>(rows.size()), true, stream());
    cuda::Copy(tokens.data(), tokens_.data(), tokens.size() * 4, stream());
    cuda::Synchronize(stream());
    sampler_->Read(step_, absl::MakeSpan(outcome.results));
    step_ = 1 - step_;
    for (int i = 0; i < rows_; ++i) {
      const bool described = i < static_cast<int>(rows.size());
      EXPECT_EQ(tokens[i], described ? outcome.results[i].token : kUntouched) << i;
    }
    return outcome;
  }

  void ExpectSame(const std::vector<float>& logits, const std::vector<SampleRow>& rows) {
    const Outcome want = OnCpu(logits, rows), got = OnGpu(logits, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      const SampleRow& row = rows[i];
      SCOPED_TRACE("row " + std::to_string(i) + " T " + std::to_string(row.temperature) + " k " +
                   std::to_string(row.top_k) + " p " + std::to_string(row.top_p) + " min " +
                   std::to_string(row.min_p));
      EXPECT_EQ(got.results[i].token, want.results[i].token);
      if (row.num_top_logprobs < 0 || want.results[i].token != got.results[i].token) continue;
      // A sum of floats, its logarithm, and differences of numbers of size 30.
      EXPECT_NEAR(got.results[i].logprob, want.results[i].logprob, 2e-5);
      ASSERT_EQ(got.results[i].top.size(), want.results[i].top.size());
      for (size_t k = 0; k < want.results[i].top.size(); ++k) {
        EXPECT_EQ(got.results[i].top[k].first, want.results[i].top[k].first) << k;
        EXPECT_NEAR(got.results[i].top[k].second, want.results[i].top[k].second, 2e-5);
      }
    }
  }

  Stream stream() const { return stream_.get(); }
  Buffer Take(int64_t bytes) {
    auto buffer = cuda::AllocateDevice(static_cast<size_t>(bytes), "sampler test");
    WEIR_CHECK(buffer.ok()) << buffer.status().message();
    return std::move(*buffer);
  }

  cuda::OwnedStream stream_;
  std::unique_ptr<DeviceSampler> sampler_;
  Buffer logits_, tokens_, fed_;
  cuda::Graph graph_;
  int64_t rows_ = 0, vocab_ = 0;
  int step_ = 0;
};

std::vector<SampleRow> RowsOf(std::vector<OwnedRow>& owned) {
  std::vector<SampleRow> rows;
  for (OwnedRow& row : owned) rows.push_back(row.get());
  return rows;
}

TEST_F(DeviceSamplerTest, SameTokensAsTheCpuForEveryParameter) {
  std::mt19937_64 rng(1);
  for (int64_t vocab : {4099, 1000, 20000}) {
    const int rows = vocab > 5000 ? 33 : 120;
    Prepare(rows, vocab);
    for (int repeat = 0; repeat < 4; ++repeat) {
      std::vector<OwnedRow> owned;
      for (int i = 0; i < rows - repeat; ++i) owned.push_back(RandomRow(rng, vocab));
      std::vector<float> logits = RandomFloats((rows - repeat) * vocab, 5 + repeat, 2.5f);
      logits[3] = std::numeric_limits<float>::quiet_NaN();
      logits[vocab + 9] = -std::numeric_limits<float>::infinity();
      SCOPED_TRACE("vocab " + std::to_string(vocab) + " repeat " + std::to_string(repeat));
      ExpectSame(logits, RowsOf(owned));
    }
  }
}

// All ways through the kernel at the size of a real vocabulary: peaked and flat logits, many equal
// ones, all equal, and large ones standing together.
TEST_F(DeviceSamplerTest, LargeVocabulary) {
  constexpr int64_t kVocab = 248320;
  struct Want {
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    int top;
  };
  const Want wants[] = {{0, 0, 1, 0, 5},           {1, 0, 1, 0, -1},       {0.7f, 20, 0.8f, 0, 20},
                        {1, 5000, 1, 0, -1},       {1, 0, 0.9f, 0, 20},    {1.5f, 0, 0.999f, 0, -1},
                        {0.3f, 0, 0.9f, 0, 0},     {1, 0, 1, 0.02f, -1},   {1, 100000, 0.7f, 0, 3},
                        {1, 50, 0.95f, 0.05f, -1}, {1, 3000, 0.5f, 0, -1}, {2, 0, 1, 0, 0}};
  const int rows = static_cast<int>(std::size(wants));
  Prepare(rows, kVocab);
  for (int kind = 0; kind < 6; ++kind) {
    SCOPED_TRACE("kind " + std::to_string(kind));
    std::vector<float> logits = RandomFloats(rows * kVocab, kind, kind == 1 ? 0.01f : 2.5f);
    if (kind == 2) {
      for (float& x : logits) x = std::round(x * 2) / 2;  // a few dozen values
    } else if (kind == 3) {
      std::fill(logits.begin(), logits.end(), 1.25f);
    } else if (kind == 4) {
      for (int64_t r = 0; r < rows; ++r) {  // one after the other, from 5000 on
        for (int64_t i = 0; i < 9000; ++i) logits[r * kVocab + 5000 + i] += 9.0f;
      }
    } else if (kind == 5) {
      for (float& x : logits)
        x = std::abs(x) > 9.5f ? 0.0f : -std::numeric_limits<float>::infinity();
    }
    std::vector<SampleRow> described;
    for (int r = 0; r < rows; ++r) {
      SampleRow row;
      row.temperature = wants[r].temperature;
      row.top_k = wants[r].top_k;
      row.top_p = wants[r].top_p;
      row.min_p = wants[r].min_p;
      row.num_top_logprobs = wants[r].top;
      row.seed = 1000 * kind + r;
      described.push_back(row);
    }
    ExpectSame(logits, described);
  }
}

// What one row gets is what it gets among many: the split over thread blocks differs.
TEST_F(DeviceSamplerTest, TheBatchDoesNotMatter) {
  constexpr int64_t kVocab = 50000;
  std::mt19937_64 rng(4);
  std::vector<OwnedRow> owned;
  for (int i = 0; i < 40; ++i) owned.push_back(RandomRow(rng, kVocab));
  const std::vector<SampleRow> rows = RowsOf(owned);
  const std::vector<float> logits = RandomFloats(40 * kVocab, 3, 2.0f);
  Prepare(40, kVocab);
  const Outcome together = OnGpu(logits, rows);
  Prepare(1, kVocab);
  for (int i = 0; i < 40; ++i) {
    const Outcome alone =
        OnGpu({logits.begin() + i * kVocab, logits.begin() + (i + 1) * kVocab}, {rows[i]});
    EXPECT_EQ(alone.results[0].token, together.results[i].token) << i;
    if (rows[i].num_top_logprobs < 0) continue;
    EXPECT_EQ(alone.results[0].logprob, together.results[i].logprob) << i;
    EXPECT_EQ(alone.top[0], together.top[i]) << i;
  }
}

TEST_F(DeviceSamplerTest, TheFedTokenExtendsTheHistory) {
  constexpr int64_t kVocab = 300;
  Prepare(3, kVocab);
  std::vector<float> logits(3 * kVocab, 0.0f);
  for (int r = 0; r < 3; ++r) logits[r * kVocab + 40] = 1.0f, logits[r * kVocab + 50] = 0.5f;
  const std::vector<int32_t> generated = {40};
  SampleRow row;
  row.temperature = 0.0f;
  row.frequency_penalty = 0.3f;  // twice: 1 - 0.6 < 0.5
  row.generated = generated;
  const Outcome got = OnGpu(logits, {row, row, row}, {1, 0, 1}, {40, 40, -1});
  EXPECT_EQ(got.results[0].token, 50);
  EXPECT_EQ(got.results[1].token, 40) << "not to be extended";
  EXPECT_EQ(got.results[2].token, 40) << "nothing was sampled";
}

// A captured launch whose rows come later: it must leave everything alone, and the launch that
// makes up for it must find the logits as they were.
TEST_F(DeviceSamplerTest, RowsMayBeDescribedAfterACapturedLaunch) {
  constexpr int64_t kVocab = 700;
  Prepare(3, kVocab);
  std::mt19937_64 rng(8);
  const std::vector<float> logits = RandomFloats(3 * kVocab, 4);
  std::vector<OwnedRow> owned;
  for (int i = 0; i < 3; ++i) {
    owned.push_back(RandomRow(rng, kVocab));
    owned.back().mask.assign((kVocab + 31) / 32, 0x00f0f00fu);
  }
  const std::vector<SampleRow> rows = RowsOf(owned);
  const Outcome want = OnCpu(logits, rows);
  OnGpu(logits, rows);  // rows that must not be chosen for again
  const std::vector<int32_t> untouched(3, kUntouched);
  std::vector<int32_t> tokens(3);
  cuda::Copy(logits_.data(), logits.data(), logits.size() * 4, stream());
  cuda::Copy(tokens_.data(), untouched.data(), 3 * 4, stream());
  sampler_->DescribeNone(stream());
  graph_.Launch(stream());
  cuda::Copy(tokens.data(), tokens_.data(), 3 * 4, stream());
  cuda::Synchronize(stream());
  EXPECT_EQ(tokens, untouched);
  Outcome got(rows);
  sampler_->Describe(step_, rows, {}, stream());
  sampler_->Launch(LogitsView(), TensorView(fed_.as<int32_t>(), {rows_}),
                   TensorView(tokens_.as<int32_t>(), {rows_}), stream());
  sampler_->Fetch(step_, 3, true, stream());
  cuda::Synchronize(stream());
  sampler_->Read(step_, absl::MakeSpan(got.results));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(got.results[i].token, want.results[i].token) << i;
}

TEST_F(DeviceSamplerTest, NothingToChooseFrom) {
  Prepare(4, 513);
  std::vector<float> logits(4 * 513, std::numeric_limits<float>::quiet_NaN());
  std::fill(logits.begin() + 3 * 513, logits.end(), 1.0f);
  const std::vector<uint32_t> none(17, 0);
  std::vector<SampleRow> rows(4);
  rows[0].temperature = 0.0f;
  rows[2].top_p = 0.5f;
  rows[3].allowed_mask = none;
  for (SampleRow& row : rows) row.num_top_logprobs = 3;
  const Outcome got = OnGpu(logits, rows);
  for (const SampleResult& result : got.results) {
    EXPECT_EQ(result.token, -1);
    EXPECT_TRUE(result.top.empty());
  }
  rows.resize(1);
  std::fill(logits.begin(), logits.end(), 0.0f);
  EXPECT_EQ(OnGpu(logits, rows).results[0].token, 0) << "the next step starts afresh";
}

}  // namespace
}  // namespace weir::kernels
