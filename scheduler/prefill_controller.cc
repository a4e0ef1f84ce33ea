#include "scheduler/prefill_controller.h"

#include <algorithm>

namespace weir::scheduler {

PrefillController::PrefillController(int64_t target_us, int32_t most_tokens)
    : target_us_(target_us),
      most_(most_tokens),
      least_(std::min(kLeastTokens, most_tokens)),
      budget_(target_us > 0 ? std::min(kFirstTokens, most_tokens) : most_tokens) {}

void PrefillController::OnMixedStep(int32_t prefill_tokens, bool was_cut, int64_t step_us) {
  if (target_us_ <= 0 || prefill_tokens <= 0) return;
  constexpr double kMostGrowth = 1.25;
  constexpr double kMostShrink = 0.5;
  const double ratio =
      static_cast<double>(target_us_) / static_cast<double>(std::max<int64_t>(step_us, 1));
  if (ratio < 1.0) {
    budget_ = std::max(std::min(budget_, prefill_tokens * ratio), budget_ * kMostShrink);
  } else if (was_cut) {
    budget_ *= std::min(ratio, kMostGrowth);
  }
  budget_ = std::clamp(budget_, least_, most_);
}

}  // namespace weir::scheduler
