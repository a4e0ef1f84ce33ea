// Mailbox: the one way from other threads to the engine thread. Many writers, one reader.
//
// Bounded: a request enters only within the queue's limits, and what can be said about a request is
// kept once per request that is alive, so the mailbox never holds more than the server has
// admitted. The engine sleeps on its condition variable; nothing polls.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/status.h"
#include "scheduler/request.h"
#include "scheduler/retry_hint.h"
#include "scheduler/scheduler.h"

namespace weir::scheduler {

// Why Submit refused; labels of a metric.
enum class Refusal : unsigned char { kInvalid, kQueueRequests, kQueueTokens, kDraining };

struct Arrival {
  Request request;
  int64_t arrived_us = 0;
};

// Everything said since the last Take.
struct Mail {
  std::vector<Arrival> arrivals;  // in order of arrival
  std::vector<std::pair<RequestId, FinishReason>> cancels;
  std::vector<std::pair<RequestId, int32_t>> stops;  // request, choice
  bool draining = false;
  int64_t drain_deadline_us = 0;  // valid when draining
  bool stop = false;

  bool empty() const { return arrivals.empty() && cancels.empty() && stops.empty(); }
};

// What the engine thread has to say since it last did.
struct EngineNews {
  SchedulerStats
      stats;  // all but queued_requests and busy_since_us, which the mailbox knows itself
  std::vector<int64_t> left_queue;  // prompt tokens of each request that did, admitted or ended
  std::vector<RequestId> gone;      // requests that have ended and hold no memory: ids to forget
  int64_t now_us = 0;
};

class Mailbox {
 public:
  // Limits: max_queued_requests and max_queued_tokens of `options`.
  explicit Mailbox(const SchedulerOptions& options) : options_(options) {}

  // Any thread. `refusal` is set when the status is an error.
  absl::Status Submit(Request request, int64_t now_us, Refusal* refusal);
  // Any thread. Ignored for requests that are not alive and choices that they do not have.
  void Cancel(RequestId id, FinishReason reason);
  void StopChoice(RequestId id, int32_t choice);
  void Drain(int64_t deadline_us);
  void Stop();
  void WaitIdle();
  SchedulerStats stats() const;

  // Engine thread. Moves what has come into `mail`.
  void Take(Mail* mail);
  // Engine thread. All at once, so that what others see is consistent.
  void Publish(const EngineNews& news);
  int64_t queued_tokens() const;
  bool stopping() const;
  // Engine thread. Blocks until there is something to Take.
  void Wait();

 private:
  const SchedulerOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;  // of the engine
  std::condition_variable idle_;  // of WaitIdle
  Mail mail_;
  std::map<RequestId, FinishReason> cancels_;
  std::set<std::pair<RequestId, int32_t>> stops_;
  bool changed_ = false;                          // something was said since the last Take
  std::unordered_map<RequestId, int32_t> alive_;  // choices of each
  int32_t queued_requests_ = 0;
  int64_t queued_tokens_ = 0;
  int64_t busy_since_us_ = 0;  // valid while something is alive
  RetryHint retry_hint_;
  SchedulerStats stats_;
};

}  // namespace weir::scheduler
