// How many Generate calls are open, for metrics and for the end of a drain.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "metrics/registry.h"

namespace weir::server {

class OpenStreams {
 public:
  // `gauge` always shows the number. Before the first Add.
  void SetGauge(metrics::Gauge* gauge) { gauge_ = gauge; }

  // Any thread.
  void Add(int32_t by) {
    std::lock_guard<std::mutex> lock(mutex_);
    count_ += by;
    gauge_->Set(count_);
    if (count_ == 0) none_.notify_all();
  }
  int32_t count() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }
  // Blocks until there is none, or for `at_most`. True: there is none.
  bool WaitNone(std::chrono::microseconds at_most) const {
    std::unique_lock<std::mutex> lock(mutex_);
    return none_.wait_for(lock, at_most, [this] { return count_ == 0; });
  }

 private:
  metrics::Gauge* gauge_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::condition_variable none_;
  int32_t count_ = 0;
};

}  // namespace weir::server
