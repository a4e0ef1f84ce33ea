// The fake must notice what it is there to notice.
#include "tests/support/fake_executor.h"

#include <deque>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace weir::testing {
namespace {

using scheduler::SamplingParams;
using scheduler::SequenceInput;
using scheduler::StepPlan;

class FakeExecutorTest : public ::testing::Test {
 protected:
  // Keeps copies of what the spans point to.
  SequenceInput Input(scheduler::SequenceId id, int32_t slot, const std::vector<int32_t>& pages,
                      int32_t position, const std::vector<int32_t>& tokens, bool sample = true) {
    SequenceInput input;
    input.sequence = id;
    input.slot = slot;
    input.pages = kept_.emplace_back(pages);
    input.position = position;
    input.tokens = kept_.emplace_back(tokens);
    input.sample = sample;
    input.sampling = &sampling_;
    input.draw = 0;
    return input;
  }
  int32_t Run(const SequenceInput& input) {
    fake_.Submit({{input}});
    return fake_.Wait().outputs[0].chosen.token;
  }
  // What a request with this prompt gets first.
  int32_t First(const std::vector<int32_t>& prompt) {
    scheduler::Request request;
    request.prompt = prompt;
    request.max_tokens = 1;
    return Expected(request, 0, fake_.limits()).tokens[0];
  }

  std::deque<std::vector<int32_t>> kept_;
  SamplingParams sampling_;
  FakeExecutor fake_{FakeOptions{}};
  const std::vector<int32_t> a_ = {0, 1}, b_ = {2, 3}, five_ = {1, 2, 3, 4, 5}, one_ = {6};
};

TEST_F(FakeExecutorTest, TokensAreThoseExpectedWhateverThePieces) {
  EXPECT_EQ(Run(Input(1, 0, a_, 0, five_)), First(five_));
  const std::vector<int32_t> head = {1, 2}, tail = {3, 4, 5};
  Run(Input(2, 1, b_, 0, head, false));
  EXPECT_EQ(Run(Input(2, 1, b_, 2, tail)), First(five_));
}

TEST_F(FakeExecutorTest, AFedTokenIsTheOneChosenBefore) {
  std::vector<int32_t> history = five_;
  fake_.Submit({{Input(1, 0, a_, 0, five_)}});
  SequenceInput fed = Input(1, 0, a_, 5, {one_});
  fed.feed_previous = true;
  fake_.Submit({{fed}});
  history.push_back(fake_.Wait().outputs[0].chosen.token);
  EXPECT_EQ(fake_.Wait().outputs[0].chosen.token, First(history));
}

TEST_F(FakeExecutorTest, AWrongPageIsAWrongToken) {
  const std::vector<int32_t> six = {1, 2, 3, 4, 5, 6};
  Run(Input(1, 0, a_, 0, five_, false));
  Run(Input(2, 1, b_, 0, {five_.rbegin(), five_.rend()}, false));
  const std::vector<int32_t> mixed = {b_[0], a_[1]};
  EXPECT_NE(Run(Input(1, 0, mixed, 5, one_)), First(six));
}

TEST_F(FakeExecutorTest, AForkGoesOnAsTheOriginalDoes) {
  Run(Input(1, 0, a_, 0, five_, false));
  fake_.Copy({{0, 4}}, {{a_[1], 7}});
  const std::vector<int32_t> table = {a_[0], 7}, six = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(Run(Input(2, 4, table, 5, one_)), First(six));
  EXPECT_EQ(Run(Input(1, 0, a_, 5, one_)), First(six));
}

TEST_F(FakeExecutorTest, StateGoesOutAndIn) {
  Run(Input(1, 0, a_, 0, five_, false));
  std::vector<std::byte> state(fake_.limits().layout.BytesFor(5));
  fake_.CopyOut(0, a_, state.data());
  Run(Input(3, 0, a_, 0, {9, 9, 9, 9, 9, 9}, false));  // the memory is used for another
  fake_.CopyIn(5, b_, state.data());
  const std::vector<int32_t> six = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(Run(Input(1, 5, b_, 5, one_)), First(six));
}

using FakeExecutorDeathTest = FakeExecutorTest;

TEST_F(FakeExecutorDeathTest, PositionsAndOwners) {
  Run(Input(1, 0, a_, 0, five_, false));
  EXPECT_DEATH(Run(Input(1, 0, a_, 4, one_)), "slot 0 stands at 5, not 4");
  EXPECT_DEATH(Run(Input(2, 0, a_, 5, one_)), "slot 0 is of 1, used by 2");
  EXPECT_DEATH(Run(Input(1, 8, a_, 0, one_)), "slot 8");
  EXPECT_DEATH(Run(Input(1, 0, {a_[0]}, 5, one_)), "1 pages for 6 tokens");
  EXPECT_DEATH(Run(Input(1, 0, {a_[0], 64}, 5, one_)), "page 64");
  EXPECT_DEATH(Run(Input(1, 0, a_, 5, {97})), "token 97");
}

TEST_F(FakeExecutorDeathTest, MemoryInFlight) {
  fake_.Submit({{Input(1, 0, a_, 0, five_)}});
  EXPECT_DEATH(fake_.Submit({{Input(2, 0, b_, 0, one_)}}), "slot 0 of 1 in flight, taken by 2");
  EXPECT_DEATH(fake_.Submit({{Input(2, 1, {a_[1]}, 0, one_)}}),
               "page 1 of 1 in flight, written by 2");
  EXPECT_DEATH(fake_.Copy({{3, 0}}, {}), "copy onto slot 0, which a step in flight uses");
  EXPECT_DEATH(fake_.Copy({{0, 3}}, {{5, 1}}), "copy onto page 1, which a step in flight uses");
  fake_.Submit({{Input(2, 1, b_, 0, one_)}});
  EXPECT_DEATH(fake_.Submit({{Input(3, 2, {9}, 0, one_)}}), "2 steps in flight");
}

TEST_F(FakeExecutorDeathTest, PlansThatChangeInFlight) {
  fake_.Submit({{Input(1, 0, a_, 0, five_)}});
  kept_.back()[2] = 50;
  EXPECT_DEATH(fake_.Wait(), "the plan of sequence 1 changed while in flight");
}

TEST_F(FakeExecutorDeathTest, FeedingWhatWasNotChosen) {
  fake_.Submit({{Input(1, 0, a_, 0, five_, false)}});
  SequenceInput fed = Input(1, 0, a_, 5, one_);
  fed.feed_previous = true;
  EXPECT_DEATH(fake_.Submit({{fed}}), "the step before did not choose");
}

TEST_F(FakeExecutorDeathTest, LimitsOfAStep) {
  EXPECT_DEATH(fake_.Submit({}), "an empty step");
  EXPECT_DEATH(fake_.Submit({{Input(1, 0, a_, 0, one_), Input(1, 1, b_, 0, one_)}}),
               "twice|taken by");
  std::vector<int32_t> pages(9);
  for (int32_t i = 0; i < 9; ++i) pages[i] = i;
  EXPECT_DEATH(fake_.Submit({{Input(1, 0, pages, 0, std::vector<int32_t>(33, 1))}}),
               "33 tokens in a step");
  EXPECT_DEATH(fake_.Wait(), "no step in flight");
}

}  // namespace
}  // namespace weir::testing
