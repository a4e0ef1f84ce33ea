#include "scheduler/retry_hint.h"

#include "gtest/gtest.h"

namespace weir::scheduler {
namespace {

TEST(RetryHintTest, ASecondWhileNothingIsKnown) {
  EXPECT_EQ(RetryHint().AfterMs(100, 5'000'000), 1000);
}

TEST(RetryHintTest, TheTimeForHalfTheQueueAtTheRecentPace) {
  RetryHint hint;
  for (int i = 0; i < 100; ++i) hint.LeftQueue(i * 20'000);
  // 32 departures in 31 * 20 ms up to the last one, a moment later: 20 ms each, 50 of 100 to go.
  EXPECT_EQ(hint.AfterMs(100, 100 * 20'000), 1000);
  EXPECT_EQ(hint.AfterMs(10, 100 * 20'000), 100);
}

TEST(RetryHintTest, AQueueThatStandsStillStretchesIt) {
  RetryHint hint;
  for (int i = 0; i < 100; ++i) hint.LeftQueue(i * 20'000);
  EXPECT_GT(hint.AfterMs(100, 12'000'000), 10'000);
}

TEST(RetryHintTest, StaysWithinItsBounds) {
  RetryHint hint;
  for (int i = 0; i < 100; ++i) hint.LeftQueue(1);
  EXPECT_EQ(hint.AfterMs(1000, 1), 50);
  EXPECT_EQ(hint.AfterMs(1000, 1'000'000'000'000), 60'000);
}

}  // namespace
}  // namespace weir::scheduler
