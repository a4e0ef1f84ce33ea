// Watchdog: tells when the engine has work and makes no step, so that health checks see what a live
// process hides.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace weir {
class Clock;
}
namespace weir::scheduler {
class Scheduler;
struct SchedulerStats;
}  // namespace weir::scheduler

namespace weir::server {

// The rule, without a thread.
class StallDetector {
 public:
  explicit StallDetector(int64_t stall_us) : stall_us_(stall_us) {}
  // Whether there has been work but no finished step for longer than `stall_us`. Called from time
  // to time with the present picture.
  bool Stalled(const scheduler::SchedulerStats& stats, int64_t now_us);

 private:
  const int64_t stall_us_;
  int64_t steps_ = -1;
  int64_t since_us_ = 0;  // when a step was last seen to finish, or nothing to do
};

class Watchdog {
 public:
  // Calls `on_change(stalled)` on a thread of its own, when that changes. The scheduler and the
  // clock outlive it.
  Watchdog(const scheduler::Scheduler* scheduler, const Clock* clock, int64_t stall_us,
           std::function<void(bool stalled)> on_change);
  ~Watchdog();  // no call after it
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void Loop(const scheduler::Scheduler* scheduler, const Clock* clock, int64_t stall_us);

  const std::function<void(bool)> on_change_;
  std::mutex mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weir::server
