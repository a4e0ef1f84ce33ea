#include "scheduler/retry_hint.h"

#include <algorithm>

namespace weir::scheduler {

void RetryHint::LeftQueue(int64_t now_us) { left_us_[count_++ % left_us_.size()] = now_us; }

int64_t RetryHint::AfterMs(int32_t queued_requests, int64_t now_us) const {
  constexpr int64_t kUnknownMs = 1000;
  constexpr int64_t kLeastMs = 50;
  constexpr int64_t kMostMs = 60'000;
  if (count_ == 0) return kUnknownMs;
  const size_t known = std::min(count_, left_us_.size());
  const int64_t oldest_us = left_us_[(count_ - known) % left_us_.size()];
  // Up to now, not up to the last departure: a queue that stands still stretches the hint.
  const int64_t each_us = std::max<int64_t>(now_us - oldest_us, 0) / static_cast<int64_t>(known);
  const int64_t departures = std::max<int64_t>(queued_requests / 2, 1);
  return std::clamp(each_us * departures / 1000, kLeastMs, kMostMs);
}

}  // namespace weir::scheduler
