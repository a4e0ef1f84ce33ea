#include "kernels/machine_rates.h"

#include <gtest/gtest.h>

#include "tests/kernels/dense_test_support.h"

namespace weir::kernels {
namespace {

using namespace testing;  // NOLINT: the support of this test

// From a slow shared core to a large server, debug builds included.
TEST(MachineRatesTest, RatesAreOfThisWorld) {
  Threads two(2);
  const double bandwidth = MeasureReadBandwidth(two.stream());
  EXPECT_GT(bandwidth, 1e8);
  EXPECT_LT(bandwidth, 1e13);
  for (SimdLevel level : MachineLevels()) {
    SCOPED_TRACE(SimdLevelName(level));
    AtLevel at(level);
    for (DType compute : {DType::kF32, DType::kBF16}) {
      const double rate = MeasureMatrixRate(compute, two.stream());
      EXPECT_GT(rate, 1e8);
      EXPECT_LT(rate, 1e14);
    }
  }
}

// Wider vectors and bf16 pairs multiply the rate: at least half of the nominal step shows even on a
// busy machine.
TEST(MachineRatesTest, WiderIsFaster) {
  Threads one(1);
  double last = 0;
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    const double rate = MeasureMatrixRate(DType::kBF16, one.stream());
    EXPECT_GT(rate, 0.5 * last) << SimdLevelName(level);
    last = rate;
  }
}

}  // namespace
}  // namespace weir::kernels
