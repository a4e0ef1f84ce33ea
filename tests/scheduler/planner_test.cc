#include "scheduler/planner.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace weir::scheduler {

bool operator==(const Work& a, const Work& b) { return a.index == b.index && a.tokens == b.tokens; }
void PrintTo(const Work& work, std::ostream* out) { *out << work.index << ":" << work.tokens; }

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

RunningView Decoding(int64_t last_step = 0) {
  RunningView view;
  view.ready = true;
  view.last_step = last_step;
  return view;
}

RunningView Prefilling(int32_t left, int32_t position = 0, int32_t priority = 0) {
  RunningView view;
  view.ready = true;
  view.prefill_left = left;
  view.position = position;
  view.priority = priority;
  return view;
}

StepBudget Budget(int32_t tokens, int32_t sequences = 1000) {
  return {tokens, sequences, tokens, tokens};
}

TEST(PlanStepTest, NothingReadyNothingPlanned) {
  EXPECT_THAT(PlanStep({}, Budget(8)).work, IsEmpty());
  RunningView waiting = Decoding();
  waiting.ready = false;
  EXPECT_THAT(PlanStep({waiting}, Budget(8)).work, IsEmpty());
}

TEST(PlanStepTest, DecodesFirstThenPromptsWithinTheBudget) {
  const StepDecision step = PlanStep({Prefilling(100), Decoding(), Decoding()}, Budget(10));
  EXPECT_THAT(step.work, ElementsAre(Work{1, 1}, Work{2, 1}, Work{0, 8}));
  EXPECT_EQ(step.decodes, 2);
  EXPECT_EQ(step.prefill_tokens, 8);
}

TEST(PlanStepTest, PromptsShareAStepInOrder) {
  const StepDecision step = PlanStep({Prefilling(5), Prefilling(6), Prefilling(9)}, Budget(14));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 5}, Work{1, 6}, Work{2, 3}));
  EXPECT_FALSE(step.prefill_was_cut);  // no decode suffers from it
}

TEST(PlanStepTest, ShortPromptsGetHalfBesideALongOne) {
  StepDecision step = PlanStep({Prefilling(90), Prefilling(7), Prefilling(3)}, Budget(20));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 10}, Work{1, 7}, Work{2, 3}));
  // What they leave goes to the one in front.
  step = PlanStep({Prefilling(90), Prefilling(2)}, Budget(20));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 18}, Work{1, 2}));
  // What the one in front leaves goes to them.
  step = PlanStep({Prefilling(13), Prefilling(12)}, Budget(20));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 10}, Work{1, 10}));
  step = PlanStep({Prefilling(8), Prefilling(3), Prefilling(7), Prefilling(50)}, Budget(30));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 8}, Work{1, 3}, Work{2, 7}, Work{3, 12}));
  // No room is left over while somebody could use it.
  step = PlanStep({Prefilling(8), Prefilling(5), Prefilling(6), Prefilling(7)}, Budget(30));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 8}, Work{1, 5}, Work{2, 6}, Work{3, 7}));
}

TEST(PlanStepTest, TheOneInFrontAlwaysMoves) {
  std::vector<RunningView> running = {Prefilling(90)};
  for (int i = 0; i < 30; ++i) running.push_back(Prefilling(1));
  for (const int32_t tokens : {1, 2, 3, 20}) {
    for (const int32_t sequences : {1, 2, 5, 100}) {
      int32_t front = 0;
      for (const Work& work : PlanStep(running, Budget(tokens, sequences)).work) {
        if (work.index == 0) front = work.tokens;
      }
      EXPECT_GE(front, (tokens + 1) / 2) << tokens << " tokens, " << sequences << " sequences";
    }
  }
}

TEST(PlanStepTest, ALowerPriorityGetsOnlyWhatIsLeft) {
  StepDecision step = PlanStep({Prefilling(2), Prefilling(90, 0, 1)}, Budget(20));
  EXPECT_THAT(step.work, ElementsAre(Work{1, 20}));
  step = PlanStep({Prefilling(2), Prefilling(19, 0, 1)}, Budget(20));
  EXPECT_THAT(step.work, ElementsAre(Work{1, 19}, Work{0, 1}));
}

TEST(PlanStepTest, HigherPriorityPromptsGoFirst) {
  const StepDecision step =
      PlanStep({Prefilling(5), Prefilling(5, 0, 2), Prefilling(5, 0, 1)}, Budget(8));
  EXPECT_THAT(step.work, ElementsAre(Work{1, 5}, Work{2, 3}));
}

TEST(PlanStepTest, NoPromptTakesMoreThanAChunk) {
  StepBudget budget = Budget(20);
  budget.chunk_tokens = 4;
  const StepDecision step = PlanStep({Prefilling(9), Prefilling(9)}, budget);
  EXPECT_THAT(step.work, ElementsAre(Work{0, 4}, Work{1, 4}));
}

TEST(PlanStepTest, BesideDecodesPromptsStayWithinTheMixedBudget) {
  StepBudget budget = Budget(100);
  budget.mixed_prefill = 6;
  StepDecision step = PlanStep({Prefilling(50), Decoding()}, budget);
  EXPECT_THAT(step.work, ElementsAre(Work{1, 1}, Work{0, 6}));
  EXPECT_TRUE(step.prefill_was_cut);
  // Alone they do not.
  step = PlanStep({Prefilling(50)}, budget);
  EXPECT_THAT(step.work, ElementsAre(Work{0, 50}));
  // A short prompt is not cut; one left out wholly is.
  step = PlanStep({Prefilling(5), Decoding()}, budget);
  EXPECT_FALSE(step.prefill_was_cut);
  step = PlanStep({Prefilling(6), Prefilling(1), Decoding()}, budget);
  EXPECT_TRUE(step.prefill_was_cut);
}

TEST(PlanStepTest, APromptCutByItsChunkIsNotCutByTheMixedBudget) {
  StepBudget budget = Budget(100);
  budget.mixed_prefill = 6;
  budget.chunk_tokens = 4;
  EXPECT_FALSE(PlanStep({Prefilling(50), Decoding()}, budget).prefill_was_cut);
}

TEST(PlanStepTest, AMixedBudgetOfNothingStillMovesPrompts) {
  StepBudget budget = Budget(100);
  budget.mixed_prefill = 0;
  EXPECT_THAT(PlanStep({Prefilling(50), Decoding()}, budget).work,
              ElementsAre(Work{1, 1}, Work{0, 1}));
}

TEST(PlanStepTest, WhenNotAllDecodesFitTheLeastRecentGoFirst) {
  const StepDecision step =
      PlanStep({Decoding(9), Decoding(7), Decoding(8), Decoding(7)}, Budget(3));
  EXPECT_THAT(step.work, ElementsAre(Work{1, 1}, Work{3, 1}, Work{2, 1}));
}

TEST(PlanStepTest, TheLimitOfSequencesHolds) {
  const StepDecision step = PlanStep({Prefilling(1), Prefilling(1), Prefilling(1)}, Budget(100, 2));
  EXPECT_THAT(step.work, ElementsAre(Work{0, 1}, Work{1, 1}));
}

TEST(PlanStepTest, DecodesThatFillTheStepLeaveAnEighthToPrompts) {
  std::vector<RunningView> running(16, Decoding());
  running.push_back(Prefilling(100));
  StepDecision step = PlanStep(running, Budget(16));
  EXPECT_EQ(step.decodes, 14);
  EXPECT_EQ(step.prefill_tokens, 2);
  // A step of one token cannot be shared: it decodes.
  step = PlanStep(running, Budget(1));
  EXPECT_EQ(step.decodes, 1);
  EXPECT_EQ(step.prefill_tokens, 0);
  // Nobody waits, nothing is kept.
  running.pop_back();
  EXPECT_EQ(PlanStep(running, Budget(16)).decodes, 16);
}

TEST(PlanStepTest, LongPiecesEndAtABlock) {
  EXPECT_THAT(PlanStep({Prefilling(5000)}, Budget(1000)).work, ElementsAre(Work{0, 960}));
  EXPECT_THAT(PlanStep({Prefilling(5000, 40)}, Budget(1000)).work, ElementsAre(Work{0, 984}));
  EXPECT_THAT(PlanStep({Prefilling(1000)}, Budget(1000)).work, ElementsAre(Work{0, 1000}));
  EXPECT_THAT(PlanStep({Prefilling(5000, 40)}, Budget(200)).work, ElementsAre(Work{0, 200}));
}

// The promises of the header, for any view.
TEST(PlanStepTest, RandomViewsKeepThePromises) {
  std::mt19937 random(3);
  for (int round = 0; round < 20'000; ++round) {
    std::vector<RunningView> running(random() % 12);
    int32_t ready_decodes = 0, ready_prefills = 0;
    for (RunningView& view : running) {
      view.ready = random() % 4 != 0;
      view.prefill_left = random() % 2 == 0 ? 0 : 1 + static_cast<int32_t>(random() % 600);
      view.position = static_cast<int32_t>(random() % 300);
      view.last_step = static_cast<int64_t>(random() % 5);
      view.priority = static_cast<int32_t>(random() % 3);
      if (view.ready) ++(view.prefill_left == 0 ? ready_decodes : ready_prefills);
    }
    StepBudget budget;
    budget.tokens = 1 + static_cast<int32_t>(random() % 700);
    budget.sequences = 1 + static_cast<int32_t>(random() % 12);
    budget.chunk_tokens = 1 + static_cast<int32_t>(random() % budget.tokens);
    budget.mixed_prefill = static_cast<int32_t>(random() % 700);
    const StepDecision step = PlanStep(running, budget);
    int32_t tokens = 0, decodes = 0, prefill = 0;
    std::vector<bool> seen(running.size(), false);
    for (const Work& work : step.work) {
      const RunningView& view = running.at(work.index);
      ASSERT_TRUE(view.ready);
      ASSERT_FALSE(seen[work.index]);
      seen[work.index] = true;
      tokens += work.tokens;
      if (view.prefill_left == 0) {
        ASSERT_EQ(work.tokens, 1);
        ++decodes;
      } else {
        ASSERT_GE(work.tokens, 1);
        ASSERT_LE(work.tokens, std::min(view.prefill_left, budget.chunk_tokens));
        prefill += work.tokens;
      }
    }
    ASSERT_LE(tokens, budget.tokens);
    ASSERT_LE(std::ssize(step.work), budget.sequences);
    ASSERT_EQ(decodes, step.decodes);
    ASSERT_EQ(prefill, step.prefill_tokens);
    if (decodes > 0) {
      ASSERT_LE(prefill, std::max(budget.mixed_prefill, 1));
    }
    if (ready_decodes + ready_prefills > 0) {
      ASSERT_FALSE(step.work.empty());
    }
    const int32_t room = std::min(budget.tokens, budget.sequences);
    if (ready_decodes > 0) {
      ASSERT_GE(decodes, std::min(ready_decodes, room - std::max(room / 8, 1)));
    }
    // Nobody goes without while there is room (long pieces are rounded to blocks).
    int32_t could_use = 0;
    for (size_t i = 0; i < running.size(); ++i) {
      if (!running[i].ready || running[i].prefill_left == 0) continue;
      could_use += std::min({running[i].prefill_left, budget.chunk_tokens, 255});
    }
    const bool small = budget.tokens < 256;
    if (small && std::ssize(step.work) < budget.sequences) {
      const int32_t left = budget.tokens - decodes;
      const int32_t limit = decodes > 0 ? std::min(left, std::max(budget.mixed_prefill, 1)) : left;
      ASSERT_EQ(prefill, std::min(could_use, limit));
    }
    if (ready_prefills > 0 && room > 1) {
      ASSERT_GT(prefill, 0);
    }
  }
}

WaitingView Needs(int32_t slots, int64_t pages, int32_t passes_left = 16) {
  return {{slots, pages}, passes_left};
}

TEST(PlanAdmissionTest, InOrderAsLongAsTheyFit) {
  EXPECT_THAT(PlanAdmission({Needs(1, 5), Needs(1, 5), Needs(1, 5)}, {8, 12}), ElementsAre(0, 1));
  EXPECT_THAT(PlanAdmission({Needs(2, 0), Needs(2, 0)}, {3, 0}), ElementsAre(0));
  EXPECT_THAT(PlanAdmission({}, {3, 0}), IsEmpty());
}

TEST(PlanAdmissionTest, SmallerOnesPassWithinTheBound) {
  EXPECT_THAT(PlanAdmission({Needs(1, 50, 2), Needs(1, 1), Needs(1, 1), Needs(1, 1)}, {8, 12}),
              ElementsAre(1, 2));
  EXPECT_THAT(PlanAdmission({Needs(1, 50, 0), Needs(1, 1)}, {8, 12}), IsEmpty());
}

TEST(PlanAdmissionTest, EachOneThatWaitsHasItsOwnBound) {
  EXPECT_THAT(
      PlanAdmission({Needs(1, 50, 3), Needs(1, 1), Needs(1, 50, 1), Needs(1, 1), Needs(1, 1)},
                    {8, 12}),
      ElementsAre(1, 3));
}

}  // namespace
}  // namespace weir::scheduler
