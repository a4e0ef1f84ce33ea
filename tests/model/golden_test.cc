// Every checkpoint under tests/golden against its reference logits, on every path; and what must
// hold between paths: batch invariance, chunk invariance, a saved state equals one never stopped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "model/check.h"
#include "model/model.h"

namespace weir::model {
namespace {

namespace fs = std::filesystem;

std::string GoldenRoot() { return std::string(WEIR_SOURCE_DIR) + "/tests/golden"; }

std::vector<std::string> GoldenFolders() {
  std::vector<std::string> names;
  if (!fs::is_directory(GoldenRoot())) return names;
  for (const auto& entry : fs::directory_iterator(GoldenRoot())) {
    if (fs::exists(entry.path() / "config.json") &&
        fs::exists(entry.path() / "expected.safetensors")) {
      names.push_back(entry.path().filename());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> Bf16Folders() {
  std::vector<std::string> names;
  for (const std::string& name : GoldenFolders()) {
    auto info = DescribeModel(GoldenRoot() + "/" + name, {});
    // One that cannot be described fails in the other tests.
    if (info.ok() && info->checkpoint_dtype == DType::kBF16) names.push_back(name);
  }
  return names;
}

TEST(Golden, FoldersAreThere) {
  if (GoldenFolders().empty()) GTEST_SKIP() << "no goldens under " << GoldenRoot();
  EXPECT_GT(GoldenFolders().size(), 0u);
}

// Of a multimodal checkpoint the text is served; what is left out is named.
TEST(Golden, MultimodalPartsAreSkippedByName) {
  const std::string folder = GoldenRoot() + "/qwen3_5_multimodal";
  if (!fs::exists(folder)) GTEST_SKIP() << "no golden at " << folder;
  auto info = DescribeModel(folder, {});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_THAT(info->skipped_tensors,
              testing::AllOf(testing::SizeIs(testing::Ge(10)),
                             testing::Each(testing::AnyOf(testing::StartsWith("model.visual."),
                                                          testing::StartsWith("mtp."))),
                             testing::Contains(testing::StartsWith("model.visual.")),
                             testing::Contains("mtp.norm.weight")));
}

class GoldenTest : public testing::TestWithParam<std::string> {
 protected:
  std::string Folder() const { return GoldenRoot() + "/" + GetParam(); }
};

std::string Describe(const PathReport& path) {
  return path.path + ": relative error " + std::to_string(path.relative_error * 1e6) +
         "e-6 (prompt " + std::to_string(path.worst_prompt) + "), max abs " +
         std::to_string(path.max_abs_error) + ", greedy " + std::to_string(path.greedy_equal) +
         "+" + std::to_string(path.greedy_ties) + " of " + std::to_string(path.greedy_tokens);
}

TEST_P(GoldenTest, F32AgreesOnEveryPath) {
  LoadOptions options;
  options.dtype = ComputeDType::kF32;
  options.device = DeviceChoice::kCpu;
  auto report = CheckModel(Folder(), "", options, 5e-5, 17);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->paths.size(), 5u);
  for (const PathReport& path : report->paths) {
    EXPECT_TRUE(path.ok) << Describe(path);
    EXPECT_EQ(path.greedy_equal, path.greedy_tokens) << Describe(path);
    EXPECT_GT(path.greedy_tokens, 0);
  }
}

// Checkpoints in bf16 served as such: weights and the inputs of products rounded to 8 bits.
class Bf16Golden : public GoldenTest {};

TEST_P(Bf16Golden, AgreesOnEveryPath) {
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  auto report = CheckModel(Folder(), "", options, 2e-2, 18);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->info.compute_dtype, DType::kBF16);
  for (const PathReport& path : report->paths) EXPECT_TRUE(path.ok) << Describe(path);
}

// One model loaded for the tests between paths, with its prompts.
class Invariance : public GoldenTest {
 protected:
  void SetUp() override {
    LoadOptions options;
    options.dtype = ComputeDType::kF32;
    options.device = DeviceChoice::kCpu;
    options.slots = 9;
    options.pages = 200;
    options.max_step_tokens = 1024;
    auto model = LoadModel(Folder(), options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    auto prompts = ReadExpected(Folder() + "/expected.safetensors", model_->info().vocab_size);
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    prompts_ = std::move(*prompts);
    for (const ExpectedPrompt& prompt : prompts_) {
      if (prompt.tokens.size() > subject_.size()) subject_ = prompt.tokens;
    }
    subject_.resize(std::min<size_t>(subject_.size(), 90));
  }

  // Opens a sequence; a test cannot go on without it.
  int Open(ManualEngine& engine) {
    auto sequence = engine.Open(300);
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    return sequence.value_or(0);
  }

  // Tokens [begin, end) of the subject.
  std::vector<int32_t> Part(size_t begin, size_t end) const {
    return {subject_.begin() + static_cast<int64_t>(begin),
            subject_.begin() + static_cast<int64_t>(end)};
  }

  std::unique_ptr<LoadedModel> model_;
  std::vector<ExpectedPrompt> prompts_;
  std::vector<int32_t> subject_;  // the longest prompt, cut
};

// Whatever shares the batch, whichever slot and pages it has: bit-identical.
TEST_P(Invariance, OfTheBatchIsExact) {
  ASSERT_GT(subject_.size(), 20u);
  ManualEngine alone_engine(model_->executor(), 1);
  const int alone = Open(alone_engine);
  std::vector<std::vector<float>> expected;
  const std::vector<std::pair<size_t, size_t>> runs = {{0, 13},  {13, 14}, {14, 15},
                                                       {15, 18}, {18, 19}, {19, subject_.size()}};
  for (const auto& [begin, end] : runs) {
    expected.push_back(alone_engine.Step({{alone, Part(begin, end)}})[0]);
  }
  for (uint64_t seed = 2; seed < 5; ++seed) {
    ManualEngine engine(model_->executor(), seed);
    const int first = Open(engine), subject = Open(engine), last = Open(engine),
              late = Open(engine);
    size_t step = 0;
    for (const auto& [begin, end] : runs) {
      // Neighbours before and after it, of one and of several tokens, in changing order.
      std::vector<ManualEngine::Run> batch = {
          {first, {subject_[step]}}, {subject, Part(begin, end)}, {last, Part(step, step + 7)}};
      if (step % 2 == 1) std::swap(batch[0], batch[1]);
      if (step == 3) batch.push_back({late, Part(0, 20)});
      const auto logits = engine.Step(batch);
      EXPECT_EQ(logits[step % 2 == 1 ? 0 : 1], expected[step])
          << "step " << step << " seed " << seed;
      ++step;
    }
  }
}

// Wherever its prompt is cut: within rounding; decode rows after it too.
TEST_P(Invariance, OfChunksIsClose) {
  ManualEngine engine(model_->executor(), 3);
  const int whole = Open(engine);
  const std::vector<float> expected = engine.Step({{whole, subject_}})[0];
  for (const size_t cut : {size_t{1}, size_t{2}, size_t{17}, size_t{33}, subject_.size() - 1}) {
    const int parts = Open(engine);
    std::vector<float> logits = engine.Step({{parts, Part(0, cut)}})[0];
    const std::vector<float> rest = engine.Step({{parts, Part(cut, subject_.size())}})[0];
    logits.insert(logits.end(), rest.begin(), rest.end());
    EXPECT_LE(RelativeError(logits, expected), 1e-5) << "cut at " << cut;
    engine.Close(parts);
  }
  const int singles = Open(engine);
  std::vector<float> logits;
  for (const int32_t token : subject_) {
    const std::vector<float> row = engine.Step({{singles, {token}}})[0];
    logits.insert(logits.end(), row.begin(), row.end());
  }
  EXPECT_LE(RelativeError(logits, expected), 1e-5) << "token by token";
}

// A state copied out, its slot and pages overwritten, and copied in elsewhere: bit-identical.
TEST_P(Invariance, SavedStateEqualsNeverStopped) {
  ManualEngine engine(model_->executor(), 4);
  const int straight = Open(engine), stopped = Open(engine);
  const size_t at = 37;
  ASSERT_GT(subject_.size(), at + 10);
  engine.Step({{straight, Part(0, at)}});
  engine.Step({{stopped, Part(0, at)}});
  const std::vector<std::byte> state = engine.Save(stopped);
  EXPECT_EQ(static_cast<int64_t>(state.size()),
            model_->info().layout.BytesFor(static_cast<int64_t>(at)));
  engine.Close(stopped);
  const int other = Open(engine), another = Open(engine);
  engine.Step({{other, Part(5, 60)}, {another, Part(1, 3)}});
  auto resumed = engine.Restore(state, static_cast<int>(at), 300);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(engine.Step({{straight, Part(at, at + 1)}}),
            engine.Step({{*resumed, Part(at, at + 1)}}));
  EXPECT_EQ(engine.Step({{straight, Part(at + 1, subject_.size())}}),
            engine.Step({{*resumed, Part(at + 1, subject_.size())}}));
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(GoldenFolders()),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(All, Bf16Golden, testing::ValuesIn(Bf16Folders()),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(All, Invariance, testing::ValuesIn(GoldenFolders()),
                         [](const auto& info) { return info.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenTest);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bf16Golden);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Invariance);

}  // namespace
}  // namespace weir::model
