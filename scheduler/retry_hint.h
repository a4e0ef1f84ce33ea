// RetryHint: when a client that was refused should come back, from how fast the queue has been
// moving.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace weir::scheduler {

// Not synchronized. Remembers when the last requests left the queue; the hint is the time in which
// half of the queue will have left at that pace, within [50 ms, 60 s]. Half: those refused do not
// all come back to the same moment at which a single place has become free. 1 s while nothing has
// left yet.
class RetryHint {
 public:
  void LeftQueue(int64_t now_us);
  int64_t AfterMs(int32_t queued_requests, int64_t now_us) const;

 private:
  std::array<int64_t, 32> left_us_{};  // a ring
  size_t count_ = 0;                   // ever
};

}  // namespace weir::scheduler
