#include "scheduler/prefill_controller.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace weir::scheduler {
namespace {

// A machine on which a step with p prompt tokens takes base + each * p microseconds.
struct Machine {
  double base_us;
  double each_us;
  double StepUs(int32_t prefill) const { return base_us + each_us * prefill; }
};

// Steps in which more prompts wait than the budget lets in; returns the time of the last.
double Steps(PrefillController* controller, const Machine& machine, int steps) {
  double step_us = 0;
  for (int i = 0; i < steps; ++i) {
    const int32_t prefill = controller->budget_tokens();
    step_us = machine.StepUs(prefill);
    controller->OnMixedStep(prefill, /*was_cut=*/true, static_cast<int64_t>(step_us));
  }
  return step_us;
}

TEST(PrefillControllerTest, WithoutATargetTheBudgetIsWhole) {
  PrefillController controller(0, 512);
  EXPECT_EQ(controller.budget_tokens(), 512);
  controller.OnMixedStep(512, true, 1'000'000);
  EXPECT_EQ(controller.budget_tokens(), 512);
}

TEST(PrefillControllerTest, SettlesAtTheTargetOnAnyMachine) {
  for (const Machine machine :
       {Machine{1000, 10}, Machine{9000, 5}, Machine{100, 100}, Machine{5000, 50}}) {
    PrefillController controller(10'000, 4096);
    const double step_us = Steps(&controller, machine, 60);
    EXPECT_NEAR(step_us, 10'000, 300 + machine.each_us)
        << machine.base_us << " " << machine.each_us;
  }
}

TEST(PrefillControllerTest, ApproachesWithoutOvershoot) {
  PrefillController controller(10'000, 4096);
  const Machine machine{2000, 10};  // 800 tokens
  int32_t before = controller.budget_tokens();
  for (int i = 0; i < 40; ++i) {
    Steps(&controller, machine, 1);
    EXPECT_GE(controller.budget_tokens(), before);
    EXPECT_LE(controller.budget_tokens(), 801);
    before = controller.budget_tokens();
  }
  EXPECT_GE(before, 780);
}

TEST(PrefillControllerTest, FollowsAChangeOfLoad) {
  PrefillController controller(10'000, 4096);
  Steps(&controller, {2000, 10}, 60);
  EXPECT_NEAR(controller.budget_tokens(), 800, 20);
  Steps(&controller, {8000, 10}, 20);  // more sequences decode now
  EXPECT_NEAR(controller.budget_tokens(), 200, 10);
  Steps(&controller, {2000, 10}, 60);
  EXPECT_NEAR(controller.budget_tokens(), 800, 20);
}

TEST(PrefillControllerTest, DecodesAboveTheTargetLeaveTheLeast) {
  PrefillController controller(10'000, 4096);
  Steps(&controller, {20'000, 10}, 20);
  EXPECT_EQ(controller.budget_tokens(), PrefillController::kLeastTokens);
}

TEST(PrefillControllerTest, StaysWithinItsBounds) {
  PrefillController controller(1'000'000'000, 300);
  Steps(&controller, {10, 1}, 50);
  EXPECT_EQ(controller.budget_tokens(), 300);
  PrefillController tiny(10'000, 4);
  EXPECT_EQ(tiny.budget_tokens(), 4);
  Steps(&tiny, {20'000, 10}, 20);
  EXPECT_EQ(tiny.budget_tokens(), 4);
}

TEST(PrefillControllerTest, OneSlowStepCountsForAHalving) {
  PrefillController controller(10'000, 4096);
  Steps(&controller, {2000, 10}, 60);
  const int32_t before = controller.budget_tokens();
  controller.OnMixedStep(before, true, 10'000'000);
  EXPECT_EQ(controller.budget_tokens(), before / 2);
  controller.OnMixedStep(3, false, 10'000'000);  // also when the step held few prompt tokens
  EXPECT_GE(controller.budget_tokens(), before / 4);
}

TEST(PrefillControllerTest, FastStepsThatWereNotShortTeachNothing) {
  PrefillController controller(10'000, 4096);
  const int32_t before = controller.budget_tokens();
  for (int i = 0; i < 100; ++i) controller.OnMixedStep(3, /*was_cut=*/false, 100);
  EXPECT_EQ(controller.budget_tokens(), before);
}

TEST(PrefillControllerTest, NoiseDoesNotCarryItAway) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> noise(0.8, 1.2);
  PrefillController controller(10'000, 4096);
  const Machine machine{2000, 10};
  double sum = 0;
  for (int i = 0; i < 2000; ++i) {
    const int32_t prefill = controller.budget_tokens();
    const double step_us = machine.StepUs(prefill) * noise(random);
    controller.OnMixedStep(prefill, true, static_cast<int64_t>(step_us));
    if (i >= 100) sum += step_us / 1900;
  }
  EXPECT_NEAR(sum, 10'000, 1500);
}

}  // namespace
}  // namespace weir::scheduler
