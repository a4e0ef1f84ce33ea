// Constrained answers: masks reach the executor in time, follow every token, and end with it.
#include <algorithm>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/mask_pool.h"
#include "scheduler/scheduler.h"
#include "scheduler/scheduler_metrics.h"
#include "tests/support/fake_constraint.h"
#include "tests/support/fake_executor.h"
#include "tests/support/recording_sink.h"

namespace weir::scheduler {
namespace {

using ::testing::IsEmpty;
using weir::testing::Expected;
using weir::testing::ExpectedChoice;
using weir::testing::FakeConstraint;
using weir::testing::FakeExecutor;
using weir::testing::FakeOptions;
using weir::testing::RecordingSink;

FakeConstraint::Rules RulesOf(const ExecutorLimits& limits, uint64_t seed) {
  FakeConstraint::Rules rules;
  rules.seed = seed;
  rules.vocab = limits.vocab_size;
  return rules;
}

struct Running {
  Request request;
  std::shared_ptr<RecordingSink> sink;
  std::shared_ptr<FakeConstraint> constraint;
};

Running Make(RequestId id, FakeConstraint::Rules rules, int32_t max_tokens) {
  Running running;
  running.constraint = std::make_shared<FakeConstraint>(rules);
  running.sink = std::make_shared<RecordingSink>();
  Request& request = running.request;
  request.id = id;
  request.prompt = {static_cast<int32_t>(id), 2, 3};
  request.max_tokens = max_tokens;
  request.sampling.seed = 7 * id;
  request.stop_ids = rules.stop_ids;
  request.constraint = running.constraint;
  request.sink = running.sink;
  return running;
}

void ExpectAnswer(const Running& running, const ExecutorLimits& limits) {
  ASSERT_TRUE(running.sink->finished());
  EXPECT_THAT(running.sink->faults(), IsEmpty());
  for (int32_t choice = 0; choice < running.request.num_choices; ++choice) {
    const ExpectedChoice expected = Expected(running.request, choice, limits);
    EXPECT_EQ(running.sink->tokens(choice), expected.tokens) << "choice " << choice;
    EXPECT_EQ(running.sink->choice(choice).reason, expected.reason) << "choice " << choice;
    EXPECT_EQ(running.sink->choice(choice).stop_id, expected.stop_id) << "choice " << choice;
  }
}

// With 0 mask threads on this thread, else as a server runs.
void RunAll(std::vector<Running>& all, int32_t depth, int32_t mask_threads) {
  FakeOptions fake;
  fake.limits.max_in_flight = depth;
  VirtualClock clock;
  fake.clock = &clock;
  fake.step_us = 100;
  FakeExecutor executor(fake);
  SchedulerOptions options;
  options.mask_threads = mask_threads;
  Scheduler scheduler(options, &executor, &clock, nullptr);
  for (Running& running : all) ASSERT_TRUE(scheduler.Submit(running.request).ok());
  while (scheduler.RunOnce()) scheduler.CheckIntegrity();
  if (depth > 1) {
    EXPECT_GT(executor.seen().fed, 0);
  }
  for (const Running& running : all) ExpectAnswer(running, executor.limits());
  EXPECT_EQ(scheduler.stats().slots_used, 0);
}

TEST(ConstraintTest, EveryTokenIsAllowedWhateverTheDepthAndTheThreads) {
  const ExecutorLimits limits = FakeOptions().limits;
  for (const int32_t depth : {1, 2, 3}) {
    for (const int32_t threads : {0, 1, 3}) {
      std::vector<Running> all;
      for (RequestId id = 1; id <= 10; ++id) {
        FakeConstraint::Rules rules = RulesOf(limits, id);
        rules.stop_ids = {4, 9};
        rules.complete_after = static_cast<int32_t>(3 * id);
        all.push_back(Make(id, rules, 40));
        all.back().request.num_choices = id % 3 == 0 ? 3 : 1;
        if (id % 4 == 0) all.back().request.constraint = nullptr;
      }
      RunAll(all, depth, threads);
    }
  }
}

TEST(ConstraintTest, ACompleteAnswerEndsBelowMinTokens) {
  const ExecutorLimits limits = FakeOptions().limits;
  FakeConstraint::Rules rules = RulesOf(limits, 5);
  rules.stop_ids = {4};
  rules.complete_after = 6;
  std::vector<Running> all;
  all.push_back(Make(1, rules, 40));
  all.back().request.min_tokens = 20;
  RunAll(all, 2, 0);
  const std::vector<int32_t> tokens = all[0].sink->tokens(0);
  ASSERT_EQ(tokens.size(), 7u);
  EXPECT_EQ(tokens.back(), 4);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 4), 1) << "a stop id below min_tokens";
  EXPECT_EQ(all[0].sink->choice(0).reason, FinishReason::kStop);
}

TEST(ConstraintTest, AConstraintThatCannotGoOnEndsWithAnError) {
  const ExecutorLimits limits = FakeOptions().limits;
  for (const int32_t at : {0, 1, 5}) {
    FakeConstraint::Rules rules = RulesOf(limits, 5);
    rules.fails_at = at;
    std::vector<Running> all;
    all.push_back(Make(1, rules, 40));
    all.push_back(Make(2, RulesOf(limits, 6), 20));
    RunAll(all, 2, 1);
    EXPECT_EQ(all[0].sink->choice(0).reason, FinishReason::kError);
    EXPECT_EQ(all[0].sink->tokens(0).size(), static_cast<size_t>(at));
    EXPECT_EQ(all[1].sink->choice(0).reason, FinishReason::kLength);
  }
}

// Each token costs one mask, and the one that ends the answer costs none after it.
TEST(ConstraintTest, NoMaskIsMadeInVain) {
  std::vector<Running> all;
  all.push_back(Make(1, RulesOf(FakeOptions().limits, 3), 12));
  RunAll(all, 2, 0);
  EXPECT_EQ(all[0].sink->tokens(0).size(), 12u);
  // What to expect was found out with the same constraint: another 12 of each.
  EXPECT_EQ(all[0].constraint->masks(), 12 + 12);
  EXPECT_EQ(all[0].constraint->accepted(), 12 + 11);
}

TEST(ConstraintTest, CancelledWhileAMaskIsMadeOrAwaited) {
  FakeOptions fake;
  fake.limits.max_in_flight = 2;
  fake.step_us = 200;  // real
  FakeExecutor executor(fake);
  SteadyClock clock;
  SchedulerOptions options;
  options.mask_threads = 2;
  Scheduler scheduler(options, &executor, &clock, nullptr);
  scheduler.Start();
  FakeConstraint::Rules rules = RulesOf(fake.limits, 5);
  rules.mask_us = 500;
  for (RequestId id = 1; id <= 40; ++id) {
    Running running = Make(id, rules, 1000);
    RecordingSink* sink = running.sink.get();
    const int64_t most = static_cast<int64_t>(id % 5);
    sink->SetOnToken(
        [&scheduler, id, most, seen = std::make_shared<int64_t>(0)](const TokenEvent&) {
          if (++*seen > most) scheduler.Cancel(id);
        });
    ASSERT_TRUE(scheduler.Submit(running.request).ok());
    if (most == 0) scheduler.Cancel(id);
    sink->WaitFinished();
    EXPECT_EQ(sink->choice(0).reason, FinishReason::kCancelled);
  }
  scheduler.Stop();
  EXPECT_EQ(scheduler.stats().slots_used, 0);
}

// The seam itself: whoever waits for a mask that will never come goes on.
TEST(SequenceMaskTest, CloseLetsTheExecutorGoOn) {
  SchedulerMetrics metrics(nullptr, {}, FakeOptions().limits);
  MaskPool pool(1, &metrics);
  FakeConstraint::Rules rules;
  rules.vocab = 70;
  auto mask = std::make_shared<SequenceMask>(std::make_shared<FakeConstraint>(rules),
                                             SequenceMask::Limits{70, 0, {}}, &pool);
  mask->Begin();
  EXPECT_EQ(mask->Await(0).size(), 3u);
  std::thread executor([&] { EXPECT_TRUE(mask->Await(1).empty()); });
  mask->Close();
  executor.join();
  mask->Advance(1);  // nothing happens
  EXPECT_TRUE(mask->Await(1).empty());
}

}  // namespace
}  // namespace weir::scheduler
