// The goldens on a GPU: reference logits on every path, and what must hold exactly there: decoding
// does not depend on the batch, a saved state equals one never stopped, and nothing is allocated
// once warm.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/cuda/runtime.h"
#include "model/check.h"
#include "model/model.h"

namespace weir::model {
namespace {

namespace fs = std::filesystem;

// The tree may have moved since the build: WEIR_TREE says where it is.
std::string GoldenRoot() {
  const char* tree = std::getenv("WEIR_TREE");
  return std::string(tree != nullptr ? tree : WEIR_SOURCE_DIR) + "/tests/golden";
}

std::vector<std::string> GoldenFolders() {
  std::vector<std::string> names;
  if (!fs::is_directory(GoldenRoot())) return names;
  for (const auto& entry : fs::directory_iterator(GoldenRoot())) {
    if (fs::exists(entry.path() / "expected.safetensors")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string Describe(const PathReport& path) {
  return path.path + ": relative error " + std::to_string(path.relative_error * 1e6) +
         "e-6 (prompt " + std::to_string(path.worst_prompt) + "), greedy " +
         std::to_string(path.greedy_equal) + "+" + std::to_string(path.greedy_ties) + " of " +
         std::to_string(path.greedy_tokens);
}

class GpuGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto device = cuda::Open();
    if (device.ok()) return;
    if (std::getenv("WEIR_REQUIRE_GPU") != nullptr) FAIL() << device.status();
    GTEST_SKIP() << "no GPU: " << device.status().message();
  }
  std::string Folder() const { return GoldenRoot() + "/" + GetParam(); }
};

void ExpectAgreement(const std::string& folder, ComputeDType dtype, double tolerance) {
  LoadOptions options;
  options.device = DeviceChoice::kCuda;
  options.dtype = dtype;
  auto report = CheckModel(folder, "", options, tolerance, 17);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->paths.size(), 5u);
  for (const PathReport& path : report->paths) EXPECT_TRUE(path.ok) << Describe(path);
}

TEST_P(GpuGolden, F32AgreesOnEveryPath) { ExpectAgreement(Folder(), ComputeDType::kF32, 1e-3); }

TEST_P(GpuGolden, Bf16AgreesOnEveryPath) {
  LoadOptions options;
  options.device = DeviceChoice::kCuda;
  auto info = DescribeModel(Folder(), options);
  ASSERT_TRUE(info.ok()) << info.status();
  if (info->checkpoint_dtype == DType::kF32) GTEST_SKIP() << "an f32 checkpoint";
  ExpectAgreement(Folder(), ComputeDType::kBF16, 2e-2);
}

// Whatever shares the batch, whichever slot and pages it has: decode rows are bit-identical, up to
// as many as our own kernels for few rows serve (kernels/matmul.h: kStreamRows; a row may count
// once per head).
TEST_P(GpuGolden, DecodingDoesNotDependOnTheBatch) {
  LoadOptions options;
  options.device = DeviceChoice::kCuda;
  options.slots = 40;
  options.pages = 1500;
  options.max_step_tokens = 1024;
  options.max_step_sequences = 40;
  auto model = LoadModel(Folder(), options);
  ASSERT_TRUE(model.ok()) << model.status();
  auto prompts = ReadExpected(Folder() + "/expected.safetensors", (*model)->info().vocab_size);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  const std::vector<int32_t>& tokens = prompts->front().tokens;
  const auto open = [](ManualEngine& engine) {
    auto sequence = engine.Open(200);
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    return sequence.value_or(0);
  };
  const int64_t allocations = cuda::Allocations().allocations;
  constexpr size_t kSteps = 8;
  ManualEngine alone(model.value()->executor(), 1);
  const int subject = open(alone);
  std::vector<std::vector<float>> expected;
  for (size_t i = 0; i < kSteps; ++i) {
    expected.push_back(alone.Step({{subject, {tokens[i % tokens.size()]}}})[0]);
  }
  for (const int neighbours : {1, 2, 4}) {
    ManualEngine engine(model.value()->executor(), 2 + static_cast<uint64_t>(neighbours));
    std::vector<ManualEngine::Run> batch;
    for (int n = 0; n <= neighbours; ++n) batch.push_back({open(engine), {}});
    const size_t at = static_cast<size_t>(neighbours) / 2;
    for (size_t i = 0; i < kSteps; ++i) {
      for (size_t n = 0; n < batch.size(); ++n) {
        batch[n].tokens = {tokens[(n == at ? i : i + n + 1) % tokens.size()]};
      }
      EXPECT_EQ(engine.Step(batch)[at], expected[i]) << neighbours << " neighbours, step " << i;
    }
  }
  // Saved, and restored into another slot.
  ManualEngine engine(model.value()->executor(), 99);
  const int straight = open(engine), stopped = open(engine);
  for (const int sequence : {straight, stopped}) engine.Step({{sequence, {tokens[0]}}});
  engine.Step({{straight, {tokens[1 % tokens.size()]}}, {stopped, {tokens[1 % tokens.size()]}}});
  const std::vector<std::byte> state = engine.Save(stopped);
  engine.Close(stopped);
  engine.Step({{open(engine), {tokens[0]}}});
  auto resumed = engine.Restore(state, 2, 200);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(engine.Step({{straight, {tokens[0]}}}), engine.Step({{*resumed, {tokens[0]}}}));
  EXPECT_EQ(cuda::Allocations().allocations, allocations) << "allocated while serving";
  EXPECT_EQ(cuda::Allocations().after_seal, 0);
}

INSTANTIATE_TEST_SUITE_P(All, GpuGolden, testing::ValuesIn(GoldenFolders()),
                         [](const auto& info) { return info.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GpuGolden);

}  // namespace
}  // namespace weir::model
