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
using weir::testing::ExpectedPromptLogprobs;
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

FakeOptions InFlight(int32_t depth) {
  FakeOptions fake;
  fake.limits.max_in_flight = depth;
  return fake;
}

// ---- the ways of a request

TEST(SchedulerTest, EveryDepthGivesTheSameTokens) {
  for (const int32_t depth : {1, 2, 3}) {
    Bench bench(InFlight(depth));
    std::vector<std::pair<Request, std::shared_ptr<RecordingSink>>> all;
    for (int32_t i = 0; i < 12; ++i) {
      std::vector<int32_t> prompt(1 + i * 3);
      for (size_t j = 0; j < prompt.size(); ++j) prompt[j] = static_cast<int32_t>((i * 7 + j) % 97);
      Request request = bench.Make(prompt, 5 + i);
      all.emplace_back(request, bench.sink);
      ASSERT_TRUE(bench.scheduler->Submit(request).ok());
    }
    bench.Run();
    for (const auto& [request, sink] : all) ExpectAnswer(*sink, request, bench.executor->limits());
    EXPECT_EQ(bench.executor->seen().most_in_flight, depth);
    if (depth == 1) {
      EXPECT_EQ(bench.executor->seen().fed, 0);
    } else {
      EXPECT_GT(bench.executor->seen().fed, 50);
    }
    bench.ExpectFree();
  }
}

TEST(SchedulerTest, APromptLongerThanAStepRunsInPieces) {
  Bench bench;
  const Request request = bench.Make(std::vector<int32_t>(100, 3), 4);
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  ASSERT_TRUE(bench.scheduler->RunOnce());
  EXPECT_THAT(bench.executor->last_step(), ElementsAre(std::make_pair(32, false)));
  bench.Run();
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
  EXPECT_EQ(bench.executor->seen().steps, 4 + 3);
}

TEST(SchedulerTest, ALongPromptDoesNotStopThoseWhoDecode) {
  SchedulerOptions options;
  options.step_tokens = 8;
  Bench bench(InFlight(1), options);
  const Request talker = bench.Make({1}, 40);
  const auto talker_sink = bench.sink;
  ASSERT_TRUE(bench.scheduler->Submit(talker).ok());
  bench.Run(3);
  const Request reader = bench.Make(std::vector<int32_t>(80, 2), 1);
  ASSERT_TRUE(bench.scheduler->Submit(reader).ok());
  size_t tokens = talker_sink->tokens(0).size();
  while (!bench.sink->finished()) {
    ASSERT_TRUE(bench.scheduler->RunOnce());
    EXPECT_EQ(talker_sink->tokens(0).size(), ++tokens);  // one in every step
  }
  bench.Run();
  ExpectAnswer(*talker_sink, talker, bench.executor->limits());
  ExpectAnswer(*bench.sink, reader, bench.executor->limits());
}

class MixedBudget : public ::testing::TestWithParam<int32_t> {};
INSTANTIATE_TEST_SUITE_P(Depths, MixedBudget, ::testing::Values(1, 2));

TEST_P(MixedBudget, FollowsTheTarget) {
  FakeOptions fake = InFlight(GetParam());
  fake.limits.max_position = 100'000;
  fake.limits.max_step_tokens = 2000;
  fake.limits.cache.pages = 50'000;
  fake.step_us = 1000;
  fake.token_us = 10;
  SchedulerOptions options;
  options.target_inter_token_us = 5000;  // 1000 + 10 (p + 1): p = 399
  Bench bench(fake, options);
  ASSERT_TRUE(bench.scheduler->Submit(bench.Make({1}, 200)).ok());
  bench.Run(2);
  ASSERT_TRUE(bench.scheduler->Submit(bench.Make(std::vector<int32_t>(60'000, 1), 1)).ok());
  bench.Run(60);
  const auto& step = bench.executor->last_step();
  ASSERT_EQ(step.size(), 2u);
  EXPECT_NEAR(step[1].first, 399, 40);
}

// ---- stop rules

// The first `count` tokens that a request would get if nothing stopped it.
std::vector<int32_t> Unstopped(Request request, int32_t count, const ExecutorLimits& limits) {
  request.max_tokens = count;
  request.stop_ids.clear();
  return Expected(request, 0, limits).tokens;
}

TEST(SchedulerTest, AStopIdIsDeliveredAndEndsTheChoice) {
  for (const int32_t depth : {1, 2}) {
    Bench bench(InFlight(depth));
    Request request = bench.Make({9, 9}, 50);
    request.stop_ids = {Unstopped(request, 6, bench.executor->limits())[5]};
    ASSERT_TRUE(bench.scheduler->Submit(request).ok());
    bench.Run();
    ExpectAnswer(*bench.sink, request, bench.executor->limits());
    EXPECT_EQ(bench.sink->choice(0).stop_id, request.stop_ids[0]);
    EXPECT_EQ(bench.sink->tokens(0).back(), request.stop_ids[0]);
    bench.ExpectFree();
  }
}

TEST(SchedulerTest, BelowMinTokensStopIdsAreForbidden) {
  Bench bench;
  Request request = bench.Make({9, 9}, 50);
  request.stop_ids = {Unstopped(request, 3, bench.executor->limits())[2]};
  request.min_tokens = 10;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  EXPECT_GE(bench.sink->tokens(0).size(), 10u);
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
}

TEST(SchedulerTest, MaxTokensIsExactAndNoStepIsWasted) {
  Bench bench(InFlight(2));
  const Request request = bench.Make({1, 2, 3}, 7);
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  EXPECT_EQ(bench.sink->tokens(0).size(), 7u);
  EXPECT_EQ(bench.executor->seen().steps, 7);
}

TEST(SchedulerTest, TheLongestSequenceEndsWithLength) {
  Bench bench;
  const Request request = bench.Make(std::vector<int32_t>(120, 1), 1000);
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  EXPECT_EQ(bench.sink->tokens(0).size(), 8u);
  EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kLength);
}

TEST(SchedulerTest, NothingToChooseIsAnError) {
  for (const int32_t depth : {1, 2}) {
    Bench bench(InFlight(depth));
    Request request = bench.Make({1, 2, 3}, 20);
    request.sampling.logit_bias = {{weir::testing::kNanAtDraw, 4.0f}};
    ASSERT_TRUE(bench.scheduler->Submit(request).ok());
    bench.Run();
    EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kError);
    EXPECT_EQ(bench.sink->tokens(0).size(), 4u);
    bench.ExpectFree();
  }
}

TEST(SchedulerTest, LogprobsComeThrough) {
  Bench bench;
  Request request = bench.Make({1, 2, 3}, 3);
  request.sampling.logprobs = 2;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  for (const TokenEvent& event : bench.sink->events()) {
    EXPECT_LT(event.token.logprob, 0.0f);
    EXPECT_EQ(event.token.top.size(), 2u);
  }
}

TEST(SchedulerTest, PenaltiesSeeTheWholeHistoryAtAnyDepth) {
  for (const int32_t depth : {1, 2, 3}) {
    Bench bench(InFlight(depth));
    Request request = bench.Make({1, 2, 3}, 20);
    request.sampling.repetition_penalty = 1.3f;
    ASSERT_TRUE(bench.scheduler->Submit(request).ok());
    bench.Run();
    ExpectAnswer(*bench.sink, request, bench.executor->limits());
  }
}

// ---- several choices

TEST(SchedulerTest, ChoicesShareOnePrefillAndDrawEachWithItsSeed) {
  Bench bench;
  Request request = bench.Make({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 6);
  request.num_choices = 4;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
  EXPECT_NE(bench.sink->tokens(0), bench.sink->tokens(1));
  const auto& seen = bench.executor->seen();
  EXPECT_EQ(seen.copied_slots, 3);
  EXPECT_EQ(seen.copied_pages, 3);     // 10 tokens, pages of 4: the third is partly filled
  EXPECT_EQ(seen.tokens, 10 + 4 * 6);  // the prefix once, then each choice its own
  bench.ExpectFree();
}

TEST(SchedulerTest, ChoicesOfAPromptOfOneTokenStartFromZero) {
  Bench bench;
  Request request = bench.Make({42}, 6);
  request.num_choices = 3;
  request.prompt_logprobs = 1;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
  EXPECT_EQ(bench.executor->seen().copied_slots, 0);
  EXPECT_EQ(bench.sink->prompt_logprobs_calls(), 1);
  EXPECT_THAT(bench.sink->prompt_logprobs(), IsEmpty());
}

TEST(SchedulerTest, MoreChoicesThanSequencesInAStepTakeTurns) {
  FakeOptions fake;
  fake.limits.max_step_sequences = 2;
  Bench bench(fake);
  Request request = bench.Make({1, 2, 3}, 6);
  request.num_choices = 5;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
}

class EndsBeforeTheFork : public ::testing::TestWithParam<int32_t> {};
INSTANTIATE_TEST_SUITE_P(Depths, EndsBeforeTheFork, ::testing::Values(1, 2));

TEST_P(EndsBeforeTheFork, ThePrefixIsRunForTheOthers) {
  SchedulerOptions options;
  options.prefill_chunk_tokens = 4;
  Bench bench(InFlight(GetParam()), options);
  Request request = bench.Make(std::vector<int32_t>(30, 5), 6);
  request.num_choices = 3;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run(2);
  bench.scheduler->StopChoice(request.id, 0);
  bench.scheduler->StopChoice(request.id, 2);
  bench.Run();
  EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kStop);
  EXPECT_THAT(bench.sink->tokens(0), IsEmpty());
  EXPECT_THAT(bench.sink->tokens(2), IsEmpty());
  EXPECT_EQ(bench.sink->tokens(1), Expected(request, 1, bench.executor->limits()).tokens);
  EXPECT_EQ(bench.executor->seen().copied_slots, 1);
  bench.ExpectFree();
}

TEST(SchedulerTest, PromptLogprobsComeOnceWhateverThePieces) {
  for (const int32_t chunk : {0, 1, 5}) {
    for (const int32_t choices : {1, 3}) {
      SchedulerOptions options;
      options.prefill_chunk_tokens = chunk;
      Bench bench({}, options);
      Request request = bench.Make({3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5}, 3);
      request.prompt_logprobs = 2;
      request.num_choices = choices;
      ASSERT_TRUE(bench.scheduler->Submit(request).ok());
      bench.Run();
      ExpectAnswer(*bench.sink, request, bench.executor->limits());
      const auto expected = ExpectedPromptLogprobs(request, bench.executor->limits());
      const auto got = bench.sink->prompt_logprobs();
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].token, expected[i].token);
        EXPECT_EQ(got[i].logprob, expected[i].logprob);
      }
    }
  }
}

// ---- ends that come from outside

TEST(SchedulerTest, CancelWhileQueuedRunsNothing) {
  Bench bench;
  const Request request = bench.Make({1, 2}, 5);
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.scheduler->Cancel(request.id);
  bench.Run();
  EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kCancelled);
  EXPECT_EQ(bench.executor->seen().steps, 0);
  EXPECT_EQ(bench.sink->times().started_us, 0);
  bench.ExpectFree();
}

TEST(SchedulerTest, CancelAtEveryTurnLeaksNothing) {
  for (const int32_t depth : {1, 2}) {
    for (int at = 0; at < 14; ++at) {
      SchedulerOptions options;
      options.prefill_chunk_tokens = 3;
      Bench bench(InFlight(depth), options);
      Request request = bench.Make({1, 2, 3, 4, 5, 6, 7}, 6);
      request.num_choices = 3;
      ASSERT_TRUE(bench.scheduler->Submit(request).ok());
      bench.Run(at);
      const bool over = bench.sink->finished();
      bench.scheduler->Cancel(request.id);
      bench.Run();
      ASSERT_TRUE(bench.sink->finished());
      EXPECT_THAT(bench.sink->faults(), IsEmpty());
      if (!over) {
        EXPECT_EQ(bench.sink->choice(2).reason, FinishReason::kCancelled);
      }
      bench.ExpectFree();
    }
  }
}

TEST(SchedulerTest, AStopStringEndsOneChoiceAndDropsWhatIsInFlight) {
  Bench bench(InFlight(2));
  Request request = bench.Make({1, 2, 3}, 30);
  request.num_choices = 2;
  bench.sink->SetOnToken([&](const TokenEvent& event) {
    if (event.choice == 1 && bench.sink->tokens(1).size() == 4) {
      bench.scheduler->StopChoice(request.id, 1);
    }
  });
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  EXPECT_EQ(bench.sink->tokens(0), Expected(request, 0, bench.executor->limits()).tokens);
  EXPECT_EQ(bench.sink->tokens(1).size(), 4u);
  EXPECT_EQ(bench.sink->choice(1).reason, FinishReason::kStop);
  EXPECT_EQ(bench.sink->choice(1).stop_id, -1);
  bench.ExpectFree();
}

TEST(SchedulerTest, DeadlinesHoldInTheQueueAndWhileRunning) {
  FakeOptions fake;
  fake.limits.cache.slots = 1;
  Bench bench(fake);
  Request running = bench.Make({1}, 100);
  running.deadline_us = 20'500;
  const auto running_sink = bench.sink;
  Request queued = bench.Make({2}, 100);
  queued.deadline_us = 5'500;
  const auto queued_sink = bench.sink;
  ASSERT_TRUE(bench.scheduler->Submit(running).ok());
  ASSERT_TRUE(bench.scheduler->Submit(queued).ok());
  bench.Run();
  EXPECT_EQ(queued_sink->choice(0).reason, FinishReason::kDeadline);
  EXPECT_EQ(queued_sink->choice(0).generated_tokens, 0);
  EXPECT_NEAR(queued_sink->times().finished_us, 5'500, 1000);
  EXPECT_EQ(running_sink->choice(0).reason, FinishReason::kDeadline);
  EXPECT_NEAR(running_sink->times().finished_us, 20'500, 1000);
  EXPECT_GT(running_sink->choice(0).generated_tokens, 15);
  bench.ExpectFree();
}

TEST(SchedulerTest, ADeadlineThatHasPassedRunsNothing) {
  Bench bench;
  bench.clock.AdvanceUs(100);
  Request request = bench.Make({1}, 100);
  request.deadline_us = 50;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kDeadline);
  EXPECT_EQ(bench.executor->seen().steps, 0);
}

TEST(SchedulerTest, ASlowReaderIsCancelledAndNobodyElse) {
  Bench bench;
  const Request other = bench.Make({1}, 20);
  const auto other_sink = bench.sink;
  Request slow = bench.Make({2}, 20);
  slow.num_choices = 2;
  const auto slow_sink = std::make_shared<RecordingSink>(5);
  slow.sink = slow_sink;
  ASSERT_TRUE(bench.scheduler->Submit(other).ok());
  ASSERT_TRUE(bench.scheduler->Submit(slow).ok());
  bench.Run();
  EXPECT_EQ(slow_sink->choice(0).reason, FinishReason::kSlowReader);
  EXPECT_EQ(slow_sink->choice(1).reason, FinishReason::kSlowReader);
  EXPECT_EQ(slow_sink->choice(0).generated_tokens + slow_sink->choice(1).generated_tokens, 5);
  ExpectAnswer(*other_sink, other, bench.executor->limits());
  bench.ExpectFree();
}

// Refuses the first token of choice 1 and would take all others.
class RefusesOne final : public TokenSink {
 public:
  bool OnPromptLogprobs(std::vector<TokenLogprob>) override { return true; }
  bool OnToken(const TokenEvent& event) override { return event.choice != 1 || refused_++ > 0; }
  void OnChoiceFinished(const ChoiceFinished& finished) override {
    EXPECT_EQ(finished.reason, FinishReason::kSlowReader);
    EXPECT_EQ(finished.generated_tokens, finished.choice == 0 ? 1 : 0);
    ++finished_;
  }
  void OnRequestFinished(const RequestTimes&) override { EXPECT_EQ(finished_, 3); }
  int finished() const { return finished_; }

 private:
  int refused_ = 0;
  int finished_ = 0;
};

TEST(SchedulerTest, OneRefusedTokenEndsTheWholeRequest) {
  Bench bench;
  Request request = bench.Make({2}, 20);
  request.num_choices = 3;
  const auto sink = std::make_shared<RefusesOne>();
  request.sink = sink;
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  EXPECT_EQ(sink->finished(), 3);
  bench.ExpectFree();
}

TEST(SchedulerTest, DrainRefusesFinishesAndCutsAtItsDeadline) {
  FakeOptions fake;
  fake.limits.cache.slots = 2;
  Bench bench(fake);
  const Request brief = bench.Make({1}, 3);
  const auto brief_sink = bench.sink;
  const Request longer = bench.Make({2}, 100);
  const auto longer_sink = bench.sink;
  ASSERT_TRUE(bench.scheduler->Submit(brief).ok());
  ASSERT_TRUE(bench.scheduler->Submit(longer).ok());
  bench.Run(1);
  bench.scheduler->Drain(bench.clock.NowUs() + 30'000);
  const absl::Status refused = bench.scheduler->Submit(bench.Make({3}, 1));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(GetErrorDetails(refused).retry_after_ms.has_value());
  bench.Run();
  ExpectAnswer(*brief_sink, brief, bench.executor->limits());
  EXPECT_EQ(longer_sink->choice(0).reason, FinishReason::kDrained);
  EXPECT_GT(longer_sink->choice(0).generated_tokens, 20);
  EXPECT_FALSE(bench.sink->finished());
  bench.ExpectFree();
}

TEST(SchedulerTest, DrainAlsoEndsWhatStillWaits) {
  FakeOptions fake;
  fake.limits.cache.slots = 1;
  Bench bench(fake);
  ASSERT_TRUE(bench.scheduler->Submit(bench.Make({1}, 100)).ok());
  ASSERT_TRUE(bench.scheduler->Submit(bench.Make({2}, 100)).ok());
  bench.Run(3);
  bench.scheduler->Drain(bench.clock.NowUs());
  bench.Run();
  EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kDrained);
  EXPECT_EQ(bench.sink->choice(0).generated_tokens, 0);
  bench.ExpectFree();
}

TEST(SchedulerTest, StopEndsEverythingInFlightToo) {
  Bench bench(InFlight(2));
  ASSERT_TRUE(bench.scheduler->Submit(bench.Make({1}, 100)).ok());
  bench.Run(5);
  const auto running_sink = bench.sink;
  ASSERT_TRUE(bench.scheduler->Submit(bench.Make({2}, 100)).ok());  // still in the mailbox
  bench.scheduler->Stop();
  bench.scheduler->CheckIntegrity();
  EXPECT_EQ(running_sink->choice(0).reason, FinishReason::kDrained);
  EXPECT_EQ(bench.sink->choice(0).reason, FinishReason::kDrained);
  bench.ExpectFree();
  EXPECT_EQ(bench.scheduler->Submit(bench.Make({3}, 1)).code(), absl::StatusCode::kUnavailable);
  bench.scheduler->Stop();  // again: nothing
}

// ---- admission

TEST(SchedulerTest, WaitsForExactlyTheMemoryItNeeds) {
  FakeOptions fake;
  fake.limits.cache.pages = 10;  // of 4 tokens
  Bench bench(fake);
  const Request first = bench.Make({1, 2, 3, 4}, 24);  // 28 tokens: 7 pages
  ASSERT_TRUE(bench.scheduler->Submit(first).ok());
  const Request second = bench.Make({1, 2, 3, 4}, 12);  // 16 tokens: 4 pages, 3 are free
  ASSERT_TRUE(bench.scheduler->Submit(second).ok());
  const auto second_sink = bench.sink;
  const Request third = bench.Make({1, 2, 3, 4}, 8);  // 12 tokens: 3 pages
  ASSERT_TRUE(bench.scheduler->Submit(third).ok());
  bench.Run(1);
  const SchedulerStats stats = bench.scheduler->stats();
  EXPECT_EQ(stats.pages_used, 10);
  EXPECT_EQ(stats.running_sequences, 2);
  EXPECT_EQ(stats.queued_requests, 1);
  bench.Run();
  ExpectAnswer(*second_sink, second, bench.executor->limits());
  bench.ExpectFree();
}

TEST(SchedulerTest, MoreRequestsThanSlotsAllGetTheirAnswers) {
  FakeOptions fake;
  fake.limits.cache.slots = 3;
  Bench bench(fake);
  std::vector<std::pair<Request, std::shared_ptr<RecordingSink>>> all;
  for (int i = 0; i < 50; ++i) {
    const Request request = bench.Make(std::vector<int32_t>(1 + i % 20, i), 1 + i % 11);
    all.emplace_back(request, bench.sink);
    ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  }
  bench.Run();
  for (const auto& [request, sink] : all) ExpectAnswer(*sink, request, bench.executor->limits());
  bench.ExpectFree();
}

TEST(SchedulerTest, HigherPriorityIsAdmittedFirst) {
  FakeOptions fake;
  fake.limits.cache.slots = 1;
  Bench bench(fake);
  std::vector<RequestId> order;
  for (const int32_t priority : {0, 0, 2, 1}) {
    Request request = bench.Make({1}, 2);
    request.priority = priority;
    const RequestId id = request.id;
    bench.sink->SetOnToken([&order, id](const TokenEvent&) {
      if (order.empty() || order.back() != id) order.push_back(id);
    });
    ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  }
  bench.Run();
  EXPECT_THAT(order, ElementsAre(3, 4, 1, 2));
}

// ---- refusals

TEST(SchedulerTest, WhatCanNeverFitIsRefusedWithTheNumbers) {
  FakeOptions fake;
  fake.limits.cache.pages = 10;
  fake.limits.cache.slots = 2;
  SchedulerOptions options;
  options.max_queued_tokens = 60;
  Bench bench(fake, options);
  const auto expect = [&](Request request, const std::string& field, const std::string& words) {
    const absl::Status status = bench.scheduler->Submit(std::move(request));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    ASSERT_EQ(GetErrorDetails(status).field_violations.size(), 1u);
    EXPECT_EQ(GetErrorDetails(status).field_violations[0].first, field);
    EXPECT_FALSE(bench.scheduler->RunOnce());
    EXPECT_FALSE(bench.sink->finished());  // the sink hears nothing
  };
  expect(bench.Make({}, 1), "input", "the prompt is empty");
  expect(bench.Make({1, 97}, 1), "input", "token 1 of the prompt is 97; ids go from 0 to 96");
  expect(bench.Make({-1}, 1), "input", "token 0 of the prompt is -1");
  expect(bench.Make(std::vector<int32_t>(128, 1), 1), "input",
         "the prompt has 128 tokens; the model holds 128 in all");
  expect(bench.Make(std::vector<int32_t>(61, 1), 1), "input", "the queue holds 60 in all");
  expect(bench.Make({1}, 0), "stopping.max_tokens", "is 0; at least 1");
  expect(
      bench.Make(std::vector<int32_t>(20, 1), 21), "stopping.max_tokens",
      "a prompt of 20 tokens and 1 answer(s) of up to 21 need 11 KV pages of 4 tokens; the server "
      "has 10");
  Request request = bench.Make({1}, 1);
  request.num_choices = 3;
  expect(request, "n", "3 choices need 3 state slots; the server has 2");
  request.num_choices = 17;
  expect(request, "n", "is 17; at least 1 and at most 16");
  request.num_choices = 0;
  expect(request, "n", "is 0; at least 1");
  // What just fits is taken.
  request = bench.Make(std::vector<int32_t>(20, 1), 20);
  EXPECT_TRUE(bench.scheduler->Submit(request).ok());
  bench.Run();
  ExpectAnswer(*bench.sink, request, bench.executor->limits());
}

TEST(SchedulerTest, AFullQueueRefusesWithAHint) {
  FakeOptions fake;
  fake.limits.cache.slots = 1;
  SchedulerOptions options;
  options.max_queued_requests = 3;
  Bench bench(fake, options);
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(bench.scheduler->Submit(bench.Make({1}, 10)).ok());
    bench.Run(1);  // the first leaves the queue
  }
  const absl::Status status = bench.scheduler->Submit(bench.Make({1}, 10));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetails(status).exhausted_resource, "queue");
  EXPECT_GE(GetErrorDetails(status).retry_after_ms.value_or(0), 50);
  bench.Run();
  EXPECT_TRUE(bench.scheduler->Submit(bench.Make({1}, 10)).ok());
  bench.Run();
  bench.ExpectFree();
}

TEST(SchedulerTest, TimesAreOnTheClockOfTheScheduler) {
  Bench bench(InFlight(1));
  bench.clock.AdvanceUs(777);
  const Request request = bench.Make({1, 2}, 3);
  ASSERT_TRUE(bench.scheduler->Submit(request).ok());
  bench.clock.AdvanceUs(23);
  bench.Run();
  const RequestTimes times = bench.sink->times();
  EXPECT_EQ(times.arrived_us, 777);
  EXPECT_EQ(times.started_us, 800);
  EXPECT_EQ(times.first_token_us, 1800);
  EXPECT_EQ(times.finished_us, 3800);
  EXPECT_EQ(bench.scheduler->stats().last_step_us, 3800);
  EXPECT_EQ(bench.scheduler->stats().steps, 3);
}

}  // namespace
}  // namespace weir::scheduler
