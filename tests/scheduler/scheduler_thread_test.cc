// The scheduler with its engine thread and many others, as the server uses it. Run under TSan.
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"
#include "tests/support/fake_executor.h"
#include "tests/support/recording_sink.h"

namespace weir::scheduler {
namespace {

using ::testing::IsEmpty;
using weir::testing::Expected;
using weir::testing::FakeExecutor;
using weir::testing::FakeOptions;
using weir::testing::RecordingSink;

struct Call {
  Request request;
  std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
};

std::shared_ptr<Call> MakeCall(RequestId id, int32_t prompt_tokens, int32_t max_tokens) {
  auto call = std::make_shared<Call>();
  call->request.id = id;
  for (int32_t i = 0; i < prompt_tokens; ++i) {
    call->request.prompt.push_back(static_cast<int32_t>((id * 31 + i) % 97));
  }
  call->request.max_tokens = max_tokens;
  call->request.sampling.seed = id;
  call->request.sink = call->sink;
  return call;
}

void ExpectFree(const Scheduler& scheduler) {
  const SchedulerStats stats = scheduler.stats();
  EXPECT_EQ(stats.slots_used, 0);
  EXPECT_EQ(stats.pages_used, 0);
  EXPECT_EQ(stats.queued_requests, 0);
  EXPECT_EQ(stats.running_sequences, 0);
  EXPECT_EQ(stats.busy_since_us, 0);
}

class SchedulerThreadTest : public ::testing::TestWithParam<int32_t> {
 protected:
  FakeOptions Fake() const {
    FakeOptions fake;
    fake.limits.max_in_flight = GetParam();
    return fake;
  }
  SteadyClock clock_;
};

INSTANTIATE_TEST_SUITE_P(Depths, SchedulerThreadTest, ::testing::Values(1, 2));

TEST_P(SchedulerThreadTest, AnswersFromAnIdleStartAgainAndAgain) {
  FakeExecutor executor(Fake());
  Scheduler scheduler({}, &executor, &clock_, nullptr);
  scheduler.Start();
  for (RequestId id = 1; id <= 50; ++id) {
    const auto call = MakeCall(id, 5, 7);
    ASSERT_TRUE(scheduler.Submit(call->request).ok());
    call->sink->WaitFinished();
    EXPECT_EQ(call->sink->tokens(0), Expected(call->request, 0, executor.limits()).tokens);
  }
  scheduler.WaitIdle();
  scheduler.Stop();
  scheduler.CheckIntegrity();
  ExpectFree(scheduler);
}

TEST_P(SchedulerThreadTest, ManyThreadsSubmitCancelAndStop) {
  FakeOptions fake = Fake();
  fake.step_us = 50;
  FakeExecutor executor(fake);
  Scheduler scheduler({}, &executor, &clock_, nullptr);
  scheduler.Start();
  constexpr int kThreads = 8;
  constexpr int kCalls = 40;
  std::atomic<int> answered = 0, cut = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kCalls; ++i) {
        const RequestId id = 1 + t * kCalls + i;
        const auto call = MakeCall(id, 1 + static_cast<int32_t>(random() % 40), 1 + random() % 20);
        call->request.num_choices = 1 + static_cast<int32_t>(random() % 3);
        const auto what = random() % 4;
        if (what == 0) {
          call->sink->SetOnToken([&scheduler, id](const TokenEvent& event) {
            scheduler.StopChoice(id, event.choice);
          });
        }
        ASSERT_TRUE(scheduler.Submit(call->request).ok());
        if (what == 1) {
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
          scheduler.Cancel(id);
        }
        if (what == 2) {
          EXPECT_EQ(scheduler.stats().slots_total, 8);
        }
        call->sink->WaitFinished();
        EXPECT_THAT(call->sink->faults(), IsEmpty());
        for (int32_t choice = 0; choice < call->request.num_choices; ++choice) {
          const auto expected = Expected(call->request, choice, executor.limits()).tokens;
          const auto tokens = call->sink->tokens(choice);
          ASSERT_LE(tokens.size(), expected.size());
          EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
          ++(tokens.size() == expected.size() ? answered : cut);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  scheduler.WaitIdle();
  ExpectFree(scheduler);
  EXPECT_GT(answered, 0);
  EXPECT_GT(cut, 0);
  scheduler.Stop();
  scheduler.CheckIntegrity();
}

TEST_P(SchedulerThreadTest, ADeadlineCutsWhatRuns) {
  FakeExecutor executor(Fake());
  Scheduler scheduler({}, &executor, &clock_, nullptr);
  scheduler.Start();
  executor.SetTimes(5000, 0);
  const auto call = MakeCall(1, 1, 100);
  call->request.deadline_us = clock_.NowUs() + 30'000;
  ASSERT_TRUE(scheduler.Submit(call->request).ok());
  call->sink->WaitFinished();
  EXPECT_EQ(call->sink->choice(0).reason, FinishReason::kDeadline);
  EXPECT_GE(clock_.NowUs(), call->request.deadline_us);
  scheduler.WaitIdle();
  ExpectFree(scheduler);
}

TEST_P(SchedulerThreadTest, DrainLetsThingsFinishAndWaitIdleReturns) {
  FakeOptions fake = Fake();
  fake.step_us = 100;
  FakeExecutor executor(fake);
  Scheduler scheduler({}, &executor, &clock_, nullptr);
  scheduler.Start();
  std::vector<std::shared_ptr<Call>> calls;
  for (RequestId id = 1; id <= 20; ++id) {
    calls.push_back(MakeCall(id, 4, 20));
    ASSERT_TRUE(scheduler.Submit(calls.back()->request).ok());
  }
  scheduler.Drain(clock_.NowUs() + 60'000'000);
  EXPECT_EQ(scheduler.Submit(MakeCall(99, 1, 1)->request).code(), absl::StatusCode::kUnavailable);
  scheduler.WaitIdle();
  for (const auto& call : calls) {
    ASSERT_TRUE(call->sink->finished());
    EXPECT_EQ(call->sink->choice(0).reason, FinishReason::kLength);
  }
  ExpectFree(scheduler);
}

TEST_P(SchedulerThreadTest, DrainCutsAtItsDeadline) {
  FakeOptions fake = Fake();
  fake.limits.cache.slots = 1;
  fake.step_us = 2000;
  FakeExecutor executor(fake);
  Scheduler scheduler({}, &executor, &clock_, nullptr);
  scheduler.Start();
  const auto running = MakeCall(1, 1, 100);
  const auto queued = MakeCall(2, 1, 100);
  ASSERT_TRUE(scheduler.Submit(running->request).ok());
  ASSERT_TRUE(scheduler.Submit(queued->request).ok());
  scheduler.Drain(clock_.NowUs() + 20'000);
  scheduler.WaitIdle();
  EXPECT_EQ(running->sink->choice(0).reason, FinishReason::kDrained);
  EXPECT_EQ(queued->sink->choice(0).reason, FinishReason::kDrained);
}

TEST_P(SchedulerThreadTest, StopEndsWhatRunsWhileOthersSubmit) {
  FakeOptions fake = Fake();
  fake.step_us = 100;
  FakeExecutor executor(fake);
  Scheduler scheduler({}, &executor, &clock_, nullptr);
  scheduler.Start();
  std::atomic<bool> refused = false;
  std::vector<std::shared_ptr<Call>> calls;
  std::thread client([&] {
    for (RequestId id = 1; !refused; ++id) {
      calls.push_back(MakeCall(id, 3, 100));
      const absl::Status status = scheduler.Submit(calls.back()->request);
      if (status.ok()) continue;
      calls.pop_back();
      // The queue may be full for a while; what ends the test is that the scheduler has stopped.
      refused = status.code() == absl::StatusCode::kUnavailable;
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  scheduler.Stop();
  client.join();
  ASSERT_FALSE(calls.empty());
  for (const auto& call : calls) {
    ASSERT_TRUE(call->sink->finished());
    EXPECT_THAT(call->sink->faults(), IsEmpty());
  }
  ExpectFree(scheduler);
}

TEST_P(SchedulerThreadTest, DyingStopsIt) {
  FakeExecutor executor(Fake());
  const auto call = MakeCall(1, 3, 100);
  executor.SetTimes(1000, 0);
  {
    Scheduler scheduler({}, &executor, &clock_, nullptr);
    scheduler.Start();
    ASSERT_TRUE(scheduler.Submit(call->request).ok());
  }
  EXPECT_TRUE(call->sink->finished());
}

}  // namespace
}  // namespace weir::scheduler
