// The scheduler through its public face, one rule a test, on the fake executor.
#include "scheduler/scheduler.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/error_details.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_executor.h"
#include "tests/support/recording_sink.h"

namespace weir::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using weir::testing::Expected;
using weir::testing::ExpectedChoice;
using weir::testing::FakeExecutor;
using weir::testing::FakeOptions;
using weir::testing::RecordingSink;

struct Bench {
  explicit Bench(FakeOptions fake = {}, SchedulerOptions options = {}) {
    fake.clock = &clock;
    if (fake.step_us == 0) fake.step_us = 1000;
    executor = std::make_unique<FakeExecutor>(fake);
    scheduler = std::make_unique<Scheduler>(options, executor.get(), &clock, nullptr);
  }

  Request Make(std::vector<int32_t> prompt, int32_t max_tokens) {
    Request request;
    request.id = ++last_id;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.sampling.seed = 100 + last_id;
    sink = std::make_shared<RecordingSink>();
    request.sink = sink;
    return request;
  }
  // Until idle; every turn's integrity is checked.
  int Run(int most = 10'000) {
    int turns = 0;
    while (turns < most && scheduler->RunOnce()) {
      scheduler->CheckIntegrity();
      ++turns;
    }
    return turns;
  }
  void ExpectFree() {
    const SchedulerStats stats = scheduler->stats();
    EXPECT_EQ(stats.slots_used, 0);
    EXPECT_EQ(stats.pages_used, 0);
    EXPECT_EQ(stats.queued_requests, 0);
    EXPECT_EQ(stats.running_sequences, 0);
  }

  VirtualClock clock;
  std::unique_ptr<FakeExecutor> executor;
  std::unique_ptr<Scheduler> scheduler;
  std::shared_ptr<RecordingSink> sink;  // of the request made last
  RequestId last_id = 0;
};

void ExpectAnswer(const RecordingSink& sink, const Request& request, const ExecutorLimits& limits) {
  EXPECT_TRUE(sink.finished());
  EXPECT_THAT(sink.faults(), IsEmpty());
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    const ExpectedChoice expected = Expected(request, choice, limits);
    EXPECT_EQ(sink.tokens(choice), expected.tokens) << "choice " << choice;
    EXPECT_EQ(sink.choice(choice).reason, expected.reason) << "choice " << choice;
    EXPECT_EQ(sink.choice(choice).stop_id, expected.stop_id) << "choice " << choice;
    EXPECT_EQ(sink.choice(choice).generated_tokens, std::ssize(expected.tokens));
  }
}

TEST(SchedulerTest, OneRequestGetsItsTokens) {
  Bench bench;
  const Request request = bench.Make({5, 6, 7}, 9);
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
  bench.ExpectFree();
}

}  // namespace
}  // namespace weir::scheduler
