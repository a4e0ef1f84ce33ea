#include "kernels/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using namespace testing;  // NOLINT: the support of this test

constexpr float kInf = std::numeric_limits<float>::infinity();

// Every test runs on the CPU at each level of this machine, and on the GPU.
class SampleTest : public ::testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (GetParam() == Device::kCuda) WEIR_NEEDS_GPU();
  }
  static bool Gpu() { return GetParam() == Device::kCuda; }
  static std::vector<SimdLevel> Levels() {
    const std::vector<SimdLevel> all = MachineLevels();
    return Gpu() ? std::vector<SimdLevel>{all.back()} : all;
  }
  static SampleResult SampleOne(std::vector<float> logits, const SampleRow& row,
                                std::vector<std::pair<int32_t, float>>* top = nullptr);
  // The tokens of `count` draws that follow each other, in one call.
  static std::vector<int32_t> Draws(const std::vector<float>& logits, SampleRow row, int count);
};
INSTANTIATE_TEST_SUITE_P(, SampleTest, ::testing::Values(Device::kCpu, Device::kCuda),
                         [](const auto& info) {
                           return info.param == Device::kCpu ? "cpu" : "gpu";
                         });

SampleResult SampleTest::SampleOne(std::vector<float> logits, const SampleRow& row,
                                   std::vector<std::pair<int32_t, float>>* top) {
  Threads one(1);
  SampleResult result;
  if (top != nullptr) {
    top->assign(std::max(0, row.num_top_logprobs), {-7, 0.0f});
    result.top = absl::MakeSpan(*top);
  }
  const auto vocab = static_cast<int64_t>(logits.size());
  DeviceMirror mirror(GetParam(), DType::kF32, one.stream().pool);
  Sample(mirror.Plain(TensorView(logits.data(), {1, vocab})), {&row, 1}, {&result, 1},
         mirror.stream());
  if (top != nullptr) top->resize(result.top.size());
  return result;
}

std::vector<int32_t> SampleTest::Draws(const std::vector<float>& logits, SampleRow row, int count) {
  static Threads one(1);
  const auto vocab = static_cast<int64_t>(logits.size());
  std::vector<float> copies;
  std::vector<SampleRow> rows(count, row);
  std::vector<SampleResult> results(count);
  for (int i = 0; i < count; ++i) {
    copies.insert(copies.end(), logits.begin(), logits.end());
    rows[i].draw = row.draw + i;
  }
  DeviceMirror mirror(GetParam(), DType::kF32, one.stream().pool);
  Sample(mirror.Plain(TensorView(copies.data(), {count, vocab})), rows, absl::MakeSpan(results),
         mirror.stream());
  std::vector<int32_t> tokens;
  for (const SampleResult& result : results) tokens.push_back(result.token);
  return tokens;
}

// Sorted by probability, ties by id: the order that truncation is defined on.
struct Ranked {
  int32_t id;
  double p;
};
std::vector<Ranked> Rank(const std::vector<float>& logits, double temperature) {
  std::vector<Ranked> ranked;
  const float max = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < logits.size(); ++i) {
    ranked.push_back({static_cast<int32_t>(i), std::exp((double{logits[i]} - max) / temperature)});
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](auto& a, auto& b) { return a.p > b.p; });
  return ranked;
}

// The tokens that stay after truncation, by sorting everything.
std::vector<Ranked> Truncate(const std::vector<float>& logits, const SampleRow& row) {
  std::vector<Ranked> ranked = Rank(logits, row.temperature);
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < ranked.size()) ranked.resize(row.top_k);
  double sum = 0, mass = 0;
  for (const Ranked& r : ranked) sum += r.p;
  size_t keep = 0;
  for (; keep < ranked.size() && (keep == 0 || mass < row.top_p * sum); ++keep)
    mass += ranked[keep].p;
  if (row.top_p < 1.0f) ranked.resize(keep);
  std::erase_if(ranked, [&](const Ranked& r) { return r.p < row.min_p * ranked[0].p; });
  return ranked;
}

SampleRow Row(float temperature, int32_t top_k, float top_p, float min_p) {
  SampleRow row;
  row.temperature = temperature;
  row.top_k = top_k;
  row.top_p = top_p;
  row.min_p = min_p;
  return row;
}

// 99.9 % point of chi-square with n degrees of freedom (Wilson and Hilferty's approximation).
double ChiSquareLimit(double n) {
  const double a = 2.0 / (9.0 * n);
  return n * std::pow(1.0 - a + 3.0902 * std::sqrt(a), 3);
}

TEST_P(SampleTest, DrawsFollowTheTruncatedDistribution) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 1.5f, 0.0f, -3.0f, 1.0f, 0.5f, 1.9f, -0.5f};
  const SampleRow rows[] = {
      Row(1.0f, 0, 1.0f, 0.0f),  Row(0.7f, 0, 1.0f, 0.0f),  Row(2.5f, 0, 1.0f, 0.0f),
      Row(1.0f, 4, 1.0f, 0.0f),  Row(1.0f, 0, 0.8f, 0.0f),  Row(1.0f, 0, 1.0f, 0.2f),
      Row(1.3f, 7, 0.9f, 0.0f),  Row(1.5f, 8, 0.95f, 0.1f), Row(1.0f, 1, 1.0f, 0.0f),
      Row(1.0f, 0, 0.01f, 0.0f), Row(1.0f, 3, 0.5f, 0.99f)};
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (SampleRow row : rows) {
      SCOPED_TRACE("T " + std::to_string(row.temperature) + " k " + std::to_string(row.top_k) +
                   " p " + std::to_string(row.top_p) + " min " + std::to_string(row.min_p));
      const std::vector<Ranked> kept = Truncate(logits, row);
      constexpr int kDraws = 20000;
      std::map<int32_t, int> counts;
      row.seed = 12345;
      for (int32_t token : Draws(logits, row, kDraws)) ++counts[token];
      double sum = 0, chi = 0;
      for (const Ranked& r : kept) sum += r.p;
      int seen = 0;
      for (const Ranked& r : kept) {
        const double expected = r.p / sum * kDraws;
        chi += (counts[r.id] - expected) * (counts[r.id] - expected) / expected;
        seen += counts[r.id];
      }
      EXPECT_EQ(seen, kDraws) << "a token outside the kept set was drawn";
      if (kept.size() > 1) {
        EXPECT_LT(chi, ChiSquareLimit(kept.size() - 1.0));
      }
    }
  }
}

// Many blocks of the draw's first race, each with its own mass.
TEST_P(SampleTest, DrawsFollowTheDistributionAcrossBlocks) {
  constexpr int64_t kVocab = 1500;
  constexpr int kDraws = 60000;
  std::vector<float> logits = RandomFloats(kVocab, 8, 1.5f);
  for (int i = 512; i < 768; ++i) logits[i] -= 30.0f;  // a block that nobody draws
  for (SampleRow row : {Row(1.0f, 0, 1.0f, 0.0f), Row(1.2f, 1000, 0.9f, 0.0f)}) {
    const std::vector<Ranked> kept = Truncate(logits, row);
    std::vector<int> counts(kVocab);
    row.seed = 99;
    for (; row.draw < kDraws; row.draw += 2000) {
      for (int32_t token : Draws(logits, row, 2000)) ++counts[token];
    }
    double sum = 0, chi = 0, rare_expected = 0;
    for (const Ranked& r : kept) sum += r.p;
    int cells = 0, seen = 0, rare = 0;
    for (const Ranked& r : kept) {
      const double expected = r.p / sum * kDraws;
      seen += counts[r.id];
      if (expected < 8) {  // too few to count one by one
        rare_expected += expected, rare += counts[r.id];
        continue;
      }
      chi += (counts[r.id] - expected) * (counts[r.id] - expected) / expected;
      ++cells;
    }
    if (rare_expected > 0) chi += (rare - rare_expected) * (rare - rare_expected) / rare_expected;
    EXPECT_EQ(seen, kDraws);
    EXPECT_GT(cells, 200);
    EXPECT_LT(chi, ChiSquareLimit(cells));
  }
}

// A vocabulary of real size: what is drawn lies in the set that sorting gives, and with a flat
// distribution the whole set is drawn.
TEST_P(SampleTest, TruncationIsExactOnALargeVocabulary) {
  constexpr int64_t kVocab = 248320;
  for (float spread : {0.01f, 2.0f, 8.0f}) {
    const std::vector<float> logits = RandomFloats(kVocab, 3, spread);
    const SampleRow rows[] = {Row(1.0f, 20, 1.0f, 0.0f),    Row(0.8f, 0, 0.9f, 0.0f),
                              Row(1.0f, 5000, 0.3f, 0.0f),  Row(1.0f, 0, 1.0f, 0.05f),
                              Row(0.5f, 50, 0.95f, 0.1f),   Row(1.0f, 0, 1e-6f, 0.0f),
                              Row(1.0f, 200000, 1.0f, 0.0f)};
    for (SampleRow row : rows) {
      std::set<int32_t> kept;
      for (const Ranked& r : Truncate(logits, row)) kept.insert(r.id);
      for (SimdLevel level : Levels()) {
        AtLevel at(level);
        std::set<int32_t> drawn;
        row.seed = 5;
        for (const int32_t token : Draws(logits, row, 10)) {
          // Exactly at the edge of top-p our sums and the reference's may round apart: none of
          // these seeds meets it.
          ASSERT_TRUE(kept.contains(token)) << row.top_k << " " << row.top_p << " " << row.min_p;
          drawn.insert(token);
        }
        if (kept.size() > 100000 && spread <= 1.0f) {
          EXPECT_GE(drawn.size(), 9u) << "draws vary";
        }
      }
    }
  }
}

TEST_P(SampleTest, TopKOnALargeVocabularyReachesEveryKeptToken) {
  std::vector<float> logits = RandomFloats(100003, 4, 0.5f);
  // Twelve near-equal winners far apart, two of them exactly equal to the thirteenth.
  std::set<int32_t> want;
  for (int i = 0; i < 12; ++i) {
    logits[i * 8001 + 17] = 10.0f + 0.01f * static_cast<float>(i);
    want.insert(i * 8001 + 17);
  }
  logits[99000] = 10.0f;  // ties with the weakest winner and has a higher id
  SampleRow row = Row(1.0f, 12, 1.0f, 0.0f);
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    std::set<int32_t> drawn;
    for (row.draw = 0; row.draw < 400; row.draw += 20) {
      for (int32_t token : Draws(logits, row, 20)) drawn.insert(token);
    }
    EXPECT_EQ(drawn, want);
  }
}

TEST_P(SampleTest, GreedyTakesTheLowestIdOfEquals) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (int64_t vocab : {1, 7, 16, 33, 1000, 5001}) {
      for (int64_t best : {int64_t{0}, vocab / 3, vocab - 1}) {
        std::vector<float> logits(vocab, -2.0f);
        logits[best] = 1.0f;
        logits[vocab - 1] = 1.0f;
        EXPECT_EQ(SampleOne(logits, Row(0.0f, 0, 1.0f, 0.0f)).token, best);
      }
    }
  }
}

TEST_P(SampleTest, PenaltiesByHand) {
  // Greedy shows the order after each change. Logits 4, 3.5, -1, 3.
  const std::vector<float> logits = {4.0f, 3.5f, -1.0f, 3.0f};
  const std::vector<int32_t> prompt = {0, 0}, generated = {1, 1, 1, 99, -5};
  SampleRow row = Row(0.0f, 0, 1.0f, 0.0f);
  row.num_top_logprobs = 4;
  row.prompt = prompt;
  row.generated = generated;
  auto run = [&](SampleRow changed) {
    std::vector<std::pair<int32_t, float>> top;
    SampleOne(logits, changed, &top);
    std::vector<float> value(4);
    for (auto [id, logprob] : top) value[id] = logprob;
    // Log probabilities are shifted logits: undo the shift by the untouched token 3.
    const float shift = 3.0f - value[3];
    for (float& v : value) v += shift;
    return value;
  };
  const float tolerance = 1e-5f;
  SampleRow r = row;
  r.repetition_penalty = 2.0f;  // prompt and generated, each once
  EXPECT_NEAR(run(r)[0], 2.0f, tolerance);
  EXPECT_NEAR(run(r)[1], 1.75f, tolerance);
  EXPECT_NEAR(run(r)[2], -1.0f, tolerance);
  const std::vector<int32_t> negative = {2};
  r.generated = negative;
  EXPECT_NEAR(run(r)[2], -2.0f, tolerance);
  r = row;
  r.presence_penalty = 0.5f;  // generated only
  EXPECT_NEAR(run(r)[0], 4.0f, tolerance);
  EXPECT_NEAR(run(r)[1], 3.0f, tolerance);
  r = row;
  r.frequency_penalty = 0.25f;
  EXPECT_NEAR(run(r)[1], 2.75f, tolerance);
  r = row;
  const std::vector<std::pair<int32_t, float>> bias = {{2, 6.0f}, {77, 1.0f}, {-1, 3.0f}};
  r.logit_bias = bias;
  EXPECT_NEAR(run(r)[2], 5.0f, tolerance);
  EXPECT_EQ(SampleOne(logits, r).token, 2);
  r = row;
  r.repetition_penalty = 2.0f;  // 3.5 / 2 - 0.5 - 3 * 0.25 = 0.5
  r.presence_penalty = 0.5f;
  r.frequency_penalty = 0.25f;
  EXPECT_NEAR(run(r)[1], 0.5f, tolerance);
}

TEST_P(SampleTest, ForbiddenAndMaskedTokensAreNeverDrawn) {
  const std::vector<float> logits = RandomFloats(77, 1);
  std::vector<uint32_t> mask(3, 0);
  for (int id : {3, 31, 32, 70, 76}) mask[id / 32] |= 1u << (id % 32);
  const std::vector<int32_t> forbidden = {31, 500, -2};
  SampleRow row = Row(1.0f, 0, 1.0f, 0.0f);
  row.allowed_mask = mask;
  row.forbidden = forbidden;
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    std::set<int32_t> drawn;
    for (int32_t token : Draws(logits, row, 3000)) drawn.insert(token);
    EXPECT_EQ(drawn, (std::set<int32_t>{3, 32, 70, 76}));
    SampleRow shorter = row;  // ids past the mask are not allowed
    shorter.allowed_mask = absl::MakeConstSpan(mask).subspan(0, 1);
    EXPECT_EQ(SampleOne(logits, shorter).token, 3);
  }
}

TEST_P(SampleTest, NothingLeftIsMinusOne) {
  const std::vector<float> nan(40, kPoison), never(40, -kInf);
  const std::vector<uint32_t> none(2, 0);
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (float temperature : {0.0f, 1.0f}) {
      SampleRow row = Row(temperature, temperature > 0 ? 5 : 0, 0.9f, 0.0f);
      row.num_top_logprobs = 3;
      std::vector<std::pair<int32_t, float>> top;
      EXPECT_EQ(SampleOne(nan, row, &top).token, -1);
      EXPECT_TRUE(top.empty());
      EXPECT_EQ(SampleOne(never, row, &top).token, -1);
      row.allowed_mask = none;
      EXPECT_EQ(SampleOne(std::vector<float>(40, 1.0f), row, &top).token, -1);
    }
  }
}

TEST_P(SampleTest, NanIsNeverDrawnAndInfinityAlwaysWins) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    std::vector<float> logits(50, 0.0f);
    for (int i = 0; i < 50; i += 2) logits[i] = kPoison;
    for (float temperature : {0.0f, 1.0f}) {
      SampleRow row = Row(temperature, 0, 1.0f, 0.0f);
      for (int32_t token : Draws(logits, row, 200)) ASSERT_EQ(token % 2, 1);
      std::vector<float> infinite = logits;
      infinite[21] = kInf;
      for (int32_t token : Draws(infinite, row, 20)) ASSERT_EQ(token, 21);
    }
  }
}

TEST_P(SampleTest, LogProbabilitiesIgnoreTemperatureAndTruncation) {
  for (int64_t vocab : {1, 5, 100, 5003}) {
    const std::vector<float> logits = RandomFloats(vocab, 6, 2.0f);
    double sum = 0;
    for (float x : logits) sum += std::exp(double{x});
    std::vector<Ranked> ranked = Rank(logits, 1.0);
    for (SimdLevel level : Levels()) {
      AtLevel at(level);
      SampleRow row = Row(0.3f, 2, 0.9f, 0.0f);
      row.num_top_logprobs = 8;
      std::vector<std::pair<int32_t, float>> top;
      const SampleResult result = SampleOne(logits, row, &top);
      // log of a float sum: a few roundings of values of this size.
      const double tolerance = 8 * kEps * (std::log(sum) + 10);
      EXPECT_NEAR(result.logprob, logits[result.token] - std::log(sum), tolerance);
      ASSERT_EQ(top.size(), std::min<size_t>(8, vocab));
      for (size_t i = 0; i < top.size(); ++i) {
        EXPECT_EQ(top[i].first, ranked[i].id);
        EXPECT_NEAR(top[i].second, logits[ranked[i].id] - std::log(sum), tolerance);
      }
      row.num_top_logprobs = 0;
      EXPECT_NEAR(SampleOne(logits, row, &top).logprob, logits[result.token] - std::log(sum),
                  tolerance);
      EXPECT_TRUE(top.empty());
    }
  }
}

TEST_P(SampleTest, LogProbsOfTargets) {
  Threads two(2);
  const int64_t rows = 5, vocab = 1003;
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    std::vector<float> logits = RandomFloats(rows * vocab, 11, 3.0f);
    logits[2 * vocab + 7] = kPoison;
    const std::vector<float> before = logits;
    const std::vector<int32_t> targets = {0, 1002, 7, 500, 3};
    std::vector<std::pair<int32_t, float>> memory(rows * 4);
    std::vector<SampleResult> results(rows);
    for (int64_t r = 0; r < rows; ++r) results[r].top = absl::MakeSpan(memory).subspan(r * 4, r);
    DeviceMirror mirror(GetParam(), DType::kF32, two.stream().pool);
    LogProbs(mirror.Plain(TensorView(logits.data(), {rows, vocab})), targets,
             absl::MakeSpan(results), mirror.stream());
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<float> row(before.begin() + r * vocab, before.begin() + (r + 1) * vocab);
      if (r == 2) row[7] = -kInf;
      double sum = 0;
      for (float x : row) sum += std::exp(double{x});
      EXPECT_EQ(results[r].token, targets[r]);
      if (r == 2) {
        EXPECT_EQ(results[r].logprob, -kInf);
      } else {
        EXPECT_NEAR(results[r].logprob, row[targets[r]] - std::log(sum),
                    8 * kEps * (std::log(sum) + 10));
      }
      ASSERT_EQ(results[r].top.size(), static_cast<size_t>(r));
      const std::vector<Ranked> ranked = Rank(row, 1.0);
      for (int64_t i = 0; i < r; ++i) EXPECT_EQ(results[r].top[i].first, ranked[i].id);
    }
  }
}

TEST_P(SampleTest, TheBatchAndTheThreadsDoNotMatter) {
  constexpr int64_t kRows = 7, kVocab = 20001;
  const std::vector<float> logits = RandomFloats(kRows * kVocab, 21, 2.0f);
  std::vector<SampleRow> rows;
  for (int r = 0; r < kRows; ++r) {
    rows.push_back(Row(0.5f + 0.2f * static_cast<float>(r), r % 3 == 0 ? 0 : r * 10,
                       r % 2 ? 0.9f : 1.0f, 0.0f));
    rows.back().seed = 77 + r;
    rows.back().num_top_logprobs = 0;
  }
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    std::vector<SampleResult> alone;
    for (int r = 0; r < kRows; ++r) {
      alone.push_back(
          SampleOne({logits.begin() + r * kVocab, logits.begin() + (r + 1) * kVocab}, rows[r]));
    }
    for (int thread_count : {1, 2, 3}) {
      if (Gpu() && thread_count > 1) break;
      Threads threads(thread_count);
      std::vector<float> copy = logits;
      std::vector<SampleResult> results(kRows);
      DeviceMirror mirror(GetParam(), DType::kF32, threads.stream().pool);
      Sample(mirror.Plain(TensorView(copy.data(), {kRows, kVocab})), rows, absl::MakeSpan(results),
             mirror.stream());
      for (int r = 0; r < kRows; ++r) {
        EXPECT_EQ(results[r].token, alone[r].token);
        EXPECT_EQ(results[r].logprob, alone[r].logprob);
      }
    }
  }
}

}  // namespace
}  // namespace weir::kernels
