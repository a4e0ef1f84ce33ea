#include "kernels/step_inputs.h"

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using testing::DeviceMirror;
using ::testing::ElementsAre;
using testing::Target;

class StepInputs : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (GetParam().device == Device::kCuda) WEIR_NEEDS_GPU();
  }
  static TensorView View(std::vector<int32_t>& values) {
    return TensorView(values.data(), {static_cast<int64_t>(values.size())});
  }
  ThreadPool pool_{1};
};

// A row that sampled nothing (-1) feeds token 0; where no row feeds, the id stays, padding too.
TEST_P(StepInputs, FeedsWhatTheStepBeforeSampled) {
  std::vector<int32_t> ids = {5, 6, 7, -1, 9}, sources = {-1, 2, 0, -1, 1}, previous = {40, -1, 42};
  DeviceMirror mirror(GetParam().device, DType::kF32, &pool_);
  FeedPrevious(mirror.Plain(View(ids)), mirror.Plain(View(sources)), mirror.Plain(View(previous)),
               mirror.stream());
  mirror.Fetch();
  EXPECT_THAT(ids, ElementsAre(5, 42, 40, -1, 0));
  EXPECT_THAT(previous, ElementsAre(40, -1, 42));
}

TEST_P(StepInputs, ScattersToTheNamedPlacesAlone) {
  constexpr int64_t kSize = 5000;
  std::vector<int32_t> to(kSize, -7), indices, values;
  for (int32_t i = 3; i < kSize; i += 7) {
    indices.push_back(static_cast<int32_t>(kSize) - i);
    values.push_back(10 * i);
  }
  std::vector<int32_t> expected = to;
  for (size_t i = 0; i < indices.size(); ++i) expected[static_cast<size_t>(indices[i])] = values[i];
  DeviceMirror mirror(GetParam().device, DType::kF32, &pool_);
  ScatterInts(mirror.Plain(View(to)), mirror.Plain(View(indices)), mirror.Plain(View(values)),
              mirror.stream());
  mirror.Fetch();
  EXPECT_EQ(to, expected);
}

TEST_P(StepInputs, NothingIsNothing) {
  std::vector<int32_t> to = {1, 2};
  DeviceMirror mirror(GetParam().device, DType::kF32, &pool_);
  const TensorView none(to.data(), {0});
  FeedPrevious(none, none, mirror.Plain(View(to)), mirror.stream());
  ScatterInts(mirror.Plain(View(to)), none, none, mirror.stream());
  mirror.Fetch();
  EXPECT_THAT(to, ElementsAre(1, 2));
}

INSTANTIATE_TEST_SUITE_P(Targets, StepInputs,
                         ::testing::Values(Target{Device::kCpu, DType::kF32},
                                           Target{Device::kCuda, DType::kF32}),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace weir::kernels
