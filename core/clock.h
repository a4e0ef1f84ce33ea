// Clock: the only source of time for code that a simulation must replay.
#pragma once

#include <chrono>
#include <cstdint>

namespace weir {

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic microseconds from an arbitrary origin. Any thread.
  virtual int64_t NowUs() const = 0;
};

class SteadyClock final : public Clock {
 public:
  int64_t NowUs() const override {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

// Moves only when told to. One thread.
class VirtualClock final : public Clock {
 public:
  int64_t NowUs() const override { return now_us_; }
  void AdvanceUs(int64_t us) { now_us_ += us; }

 private:
  int64_t now_us_ = 0;
};

}  // namespace weir
