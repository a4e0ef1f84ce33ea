// What the scheduler exports, read as Prometheus reads it.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>

#include "core/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "metrics/registry.h"
#include "scheduler/scheduler.h"
#include "tests/support/fake_executor.h"
#include "tests/support/recording_sink.h"

namespace weir::scheduler {
namespace {

using weir::testing::FakeExecutor;
using weir::testing::FakeOptions;
using weir::testing::RecordingSink;

// "name{labels}" -> value.
std::map<std::string, double> Scrape(const metrics::Registry& registry) {
  std::map<std::string, double> values;
  std::istringstream lines(registry.Serialize());
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string::npos) continue;
    values[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
  }
  return values;
}

class SchedulerMetricsTest : public ::testing::Test {
 protected:
  void Build(SchedulerOptions options = {}, int32_t step_sequences = 8) {
    clock_.AdvanceUs(1);
    FakeOptions fake;
    fake.limits.max_in_flight = 1;
    fake.limits.cache.slots = 2;
    fake.limits.max_step_sequences = step_sequences;
    fake.clock = &clock_;
    fake.step_us = 2000;
    executor_ = std::make_unique<FakeExecutor>(fake);
    scheduler_ = std::make_unique<Scheduler>(options, executor_.get(), &clock_, &registry_);
  }
  Request Make(int32_t prompt, int32_t max_tokens) {
    Request request;
    request.id = ++last_id_;
    request.prompt.assign(prompt, 3);
    request.max_tokens = max_tokens;
    sink_ = std::make_shared<RecordingSink>();
    request.sink = sink_;
    return request;
  }
  void Run(int most = 1000) {
    for (int turn = 0; turn < most && scheduler_->RunOnce(); ++turn) {
    }
  }
  double Value(const std::string& name) {
    const auto values = Scrape(registry_);
    const auto found = values.find(name);
    EXPECT_NE(found, values.end()) << name;
    return found == values.end() ? -1 : found->second;
  }

  VirtualClock clock_;
  metrics::Registry registry_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<Scheduler> scheduler_;
  std::shared_ptr<RecordingSink> sink_;
  RequestId last_id_ = 0;
};

TEST_F(SchedulerMetricsTest, OneRequestIsCountedThroughout) {
  Build();
  ASSERT_TRUE(scheduler_->Submit(Make(40, 5)).ok());  // 32 a step: two prefill steps, four decodes
  Run();
  EXPECT_EQ(Value("weir_requests_total{outcome=\"length\"}"), 1);
  EXPECT_EQ(Value("weir_requests_total{outcome=\"stop\"}"), 0);
  EXPECT_EQ(Value("weir_prefill_tokens_total"), 40);
  EXPECT_EQ(Value("weir_decode_tokens_total"), 5);
  EXPECT_EQ(Value("weir_steps_total{kind=\"prefill\"}"), 2);
  EXPECT_EQ(Value("weir_steps_total{kind=\"decode\"}"), 4);
  EXPECT_EQ(Value("weir_steps_total{kind=\"mixed\"}"), 0);
  EXPECT_EQ(Value("weir_time_to_first_token_seconds_count"), 1);
  EXPECT_NEAR(Value("weir_time_to_first_token_seconds_sum"), 0.004, 1e-9);
  EXPECT_EQ(Value("weir_inter_token_seconds_count"), 4);
  EXPECT_NEAR(Value("weir_inter_token_seconds_sum"), 0.008, 1e-9);
  EXPECT_NEAR(Value("weir_request_seconds_sum"), 0.012, 1e-9);
  EXPECT_EQ(Value("weir_queue_wait_seconds_count"), 1);
  EXPECT_EQ(Value("weir_step_sequences_count"), 6);
  EXPECT_EQ(Value("weir_step_sequences_sum"), 6);
  EXPECT_EQ(Value("weir_step_tokens_sum"), 44);
  EXPECT_EQ(Value("weir_step_seconds_count{kind=\"decode\",phase=\"execute\"}"), 4);
  EXPECT_NEAR(Value("weir_step_seconds_sum{kind=\"decode\",phase=\"execute\"}"), 0.008, 1e-9);
  EXPECT_EQ(Value("weir_step_seconds_count{kind=\"prefill\",phase=\"plan\"}"), 2);
  EXPECT_EQ(Value("weir_step_seconds_count{kind=\"prefill\",phase=\"commit\"}"), 2);
}

TEST_F(SchedulerMetricsTest, GaugesShowWhatRunsAndWaits) {
  Build();
  ASSERT_TRUE(scheduler_->Submit(Make(10, 50)).ok());  // 15 pages of 4
  Request choices = Make(7, 5);
  choices.num_choices = 2;
  ASSERT_TRUE(scheduler_->Submit(choices).ok());  // one slot is left: it waits
  Run(2);
  EXPECT_EQ(Value("weir_running_requests"), 1);
  EXPECT_EQ(Value("weir_running_sequences"), 1);
  EXPECT_EQ(Value("weir_queue_requests"), 1);
  EXPECT_EQ(Value("weir_queue_tokens"), 7);
  EXPECT_EQ(Value("weir_slots{state=\"used\"}"), 1);
  EXPECT_EQ(Value("weir_slots{state=\"free\"}"), 1);
  EXPECT_EQ(Value("weir_pages{state=\"used\"}"), 15);
  EXPECT_EQ(Value("weir_pages{state=\"free\"}"), 64 - 15);
  EXPECT_EQ(Value("weir_memory_used_ratio"), 0.5);
  Run();
  EXPECT_EQ(Value("weir_running_requests"), 0);
  EXPECT_EQ(Value("weir_running_sequences"), 0);
  EXPECT_EQ(Value("weir_queue_requests"), 0);
  EXPECT_EQ(Value("weir_slots{state=\"used\"}"), 0);
  EXPECT_EQ(Value("weir_memory_used_ratio"), 0);
}

TEST_F(SchedulerMetricsTest, RefusalsAndCancelsAreCountedByReason) {
  SchedulerOptions options;
  options.max_queued_requests = 3;
  options.max_queued_tokens = 50;
  Build(options);
  EXPECT_FALSE(scheduler_->Submit(Make(0, 1)).ok());
  ASSERT_TRUE(scheduler_->Submit(Make(1, 100)).ok());
  ASSERT_TRUE(scheduler_->Submit(Make(1, 100)).ok());
  EXPECT_FALSE(scheduler_->Submit(Make(50, 1)).ok());
  ASSERT_TRUE(scheduler_->Submit(Make(1, 100)).ok());
  EXPECT_FALSE(scheduler_->Submit(Make(1, 1)).ok());
  Run(3);
  scheduler_->Cancel(2);
  scheduler_->Cancel(5, FinishReason::kDeadline);  // still waits
  Run(3);
  scheduler_->Drain(clock_.NowUs());
  EXPECT_FALSE(scheduler_->Submit(Make(1, 1)).ok());
  Run();
  EXPECT_EQ(Value("weir_requests_rejected_total{reason=\"invalid\"}"), 1);
  EXPECT_EQ(Value("weir_requests_rejected_total{reason=\"queue_tokens\"}"), 1);
  EXPECT_EQ(Value("weir_requests_rejected_total{reason=\"queue_requests\"}"), 1);
  EXPECT_EQ(Value("weir_requests_rejected_total{reason=\"draining\"}"), 1);
  EXPECT_EQ(Value("weir_requests_cancelled_total{phase=\"running\",reason=\"cancelled\"}"), 1);
  EXPECT_EQ(Value("weir_requests_cancelled_total{phase=\"queue\",reason=\"deadline\"}"), 1);
  EXPECT_EQ(Value("weir_requests_cancelled_total{phase=\"running\",reason=\"drained\"}"), 1);
  EXPECT_EQ(Value("weir_requests_total{outcome=\"cancelled\"}"), 1);
  EXPECT_EQ(Value("weir_requests_total{outcome=\"deadline\"}"), 1);
  EXPECT_EQ(Value("weir_requests_total{outcome=\"drained\"}"), 1);
}

TEST_F(SchedulerMetricsTest, TheOutcomeIsTheWorstOfTheChoices) {
  Build({}, /*step_sequences=*/1);  // the choices take turns
  Request request = Make(1, 20);
  request.num_choices = 2;
  request.sampling.logit_bias = {{weir::testing::kNanAtDraw, 3.0f}};
  ASSERT_TRUE(scheduler_->Submit(request).ok());
  while (!sink_->choice_finished(0)) ASSERT_TRUE(scheduler_->RunOnce());
  ASSERT_FALSE(sink_->choice_finished(1));
  scheduler_->StopChoice(request.id, 1);
  Run();
  EXPECT_EQ(sink_->choice(0).reason, FinishReason::kError);
  EXPECT_EQ(sink_->choice(1).reason, FinishReason::kStop);
  EXPECT_EQ(Value("weir_requests_total{outcome=\"error\"}"), 1);
  EXPECT_EQ(Value("weir_requests_total{outcome=\"stop\"}"), 0);
}

TEST_F(SchedulerMetricsTest, EveryFamilyIsDocumented) {
  Build();
  std::ifstream file(WEIR_SOURCE_DIR "/docs/metrics.md");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  int ours = 0;  // the registry itself adds those of the process
  for (const auto& [name, help] : registry_.Families()) {
    if (!name.starts_with("weir_")) continue;
    ++ours;
    EXPECT_NE(text.find("| `" + name + "` |"), std::string::npos) << name << ": " << help;
  }
  EXPECT_EQ(ours, 25);
}

TEST_F(SchedulerMetricsTest, LimitsAreExported) {
  Build();
  EXPECT_EQ(Value("weir_limit{limit=\"slots\"}"), 2);
  EXPECT_EQ(Value("weir_limit{limit=\"pages\"}"), 64);
  EXPECT_EQ(Value("weir_limit{limit=\"step_tokens\"}"), 32);
  EXPECT_EQ(Value("weir_limit{limit=\"queued_requests\"}"), 1024);
  EXPECT_EQ(Value("weir_prefill_budget_tokens"), 32);
}

}  // namespace
}  // namespace weir::scheduler
