#include "server/watchdog.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/clock.h"
#include "scheduler/scheduler.h"

namespace weir::server {

bool StallDetector::Stalled(const scheduler::SchedulerStats& stats, int64_t now_us) {
  const bool idle = stats.running_sequences == 0 && stats.queued_requests == 0;
  if (idle || stats.steps != steps_) {
    steps_ = stats.steps;
    since_us_ = now_us;
    return false;
  }
  return now_us - since_us_ > stall_us_;
}

Watchdog::Watchdog(const scheduler::Scheduler* scheduler, const Clock* clock, int64_t stall_us,
                   std::function<void(bool stalled)> on_change)
    : on_change_(std::move(on_change)),
      thread_([this, scheduler, clock, stall_us] { Loop(scheduler, clock, stall_us); }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_one();
  thread_.join();
}

void Watchdog::Loop(const scheduler::Scheduler* scheduler, const Clock* clock, int64_t stall_us) {
  // What did not happen wakes nobody: this is the one place that looks at a clock.
  const auto period =
      std::chrono::microseconds(std::clamp<int64_t>(stall_us / 4, 5'000, 1'000'000));
  StallDetector detector(stall_us);
  bool stalled = false;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_changed_.wait_for(lock, period, [this] { return stop_; })) {
    if (detector.Stalled(scheduler->stats(), clock->NowUs()) != stalled) {
      stalled = !stalled;
      on_change_(stalled);
    }
  }
}

}  // namespace weir::server
