// PrefillController: how many prompt tokens may ride in a step that also decodes, so that the step,
// and with it the time between two tokens of those who decode, stays near a target.
//
// One number, steered by measurement. A step with p prompt tokens that took t is taken as t = a + b
// p (a: the decodes, b: a prompt token). After each mixed step
//   t > target:                       budget = p * target / t
//   t < target and the budget was short:  budget = budget * min(target / t, 1.25)
// A full budget p moves to p target / (a + b p): a fixed point at p = (target - a) / b, approached
// from both sides without overshoot, since the slope there, 1 - b p / target, lies in (0, 1). A
// measurement counts at most for a halving, so one slow step does not undo what many have shown.
// When the decodes alone exceed the target (a > target) the budget ends at its least, so that
// prompts still move.
#pragma once

#include <cstdint>

namespace weir::scheduler {

class PrefillController {
 public:
  static constexpr int32_t kLeastTokens = 16;
  static constexpr int32_t kFirstTokens = 128;

  // target_us 0: no target, the budget is always `most_tokens`. REQUIRES: most_tokens > 0.
  PrefillController(int64_t target_us, int32_t most_tokens);

  int32_t budget_tokens() const { return static_cast<int32_t>(budget_); }
  // A step with decodes and `prefill_tokens` > 0 prompt tokens took `step_us`; `was_cut`: more
  // prompt tokens waited than the budget let in.
  void OnMixedStep(int32_t prefill_tokens, bool was_cut, int64_t step_us);

 private:
  const int64_t target_us_;
  const double most_;
  const double least_;
  double budget_;
};

}  // namespace weir::scheduler
