// Scheduler: admits requests, plans steps, runs them on an executor and delivers tokens.
//
// Threads: Submit, Cancel, StopChoice, Drain and stats may be called from any thread; they leave a
// message for the engine thread, which owns every mutable field of scheduling and cache. Lifetime:
// the executor, the clock and the metrics outlive the scheduler.
#pragma once

#include <cstdint>
#include <memory>

#include "core/clock.h"
#include "core/status.h"
#include "scheduler/executor.h"
#include "scheduler/request.h"

namespace weir::metrics {
class Registry;
}

namespace weir::scheduler {

struct SchedulerOptions {
  int32_t max_queued_requests = 1024;
  int64_t max_queued_tokens = 4 << 20;  // prompt tokens waiting, all requests together
  int32_t max_choices = 16;             // n of one request (also bounded by the slots)
  int32_t step_tokens = 0;              // token budget of a step; 0: the executor's limit
  int32_t prefill_chunk_tokens = 0;   // longest piece of one prompt in a step; 0: the step's budget
  int32_t mask_threads = 0;           // make masks of constrained sequences; 0: the engine's thread
  int64_t target_inter_token_us = 0;  // > 0: the prefill budget of mixed steps adapts to keep it
};

// A consistent picture for health, metrics and tests.
struct SchedulerStats {
  int32_t queued_requests = 0;
  int32_t running_sequences = 0;
  int32_t slots_used = 0, slots_total = 0;
  int32_t pages_used = 0, pages_total = 0;
  int64_t steps = 0;
  int64_t last_step_us = 0;  // clock time at which the last step was committed
  // Since when there has been something queued or running; 0: idle. Busy, with neither this nor
  // last_step_us recent, is a stuck engine.
  int64_t busy_since_us = 0;
};

class Scheduler {
 public:
  // Registers its metrics in `registry` (may be null: not exported).
  Scheduler(const SchedulerOptions& options, Executor* executor, const Clock* clock,
            metrics::Registry* registry);
  ~Scheduler();  // Stop()
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Starts the engine thread. Not used by simulations, which call RunOnce.
  void Start();

  // Takes a request. On error the sink gets no call. INVALID_ARGUMENT: can never fit, with the
  // numbers. RESOURCE_EXHAUSTED: the queue is full, with a retry hint. UNAVAILABLE: draining.
  absl::Status Submit(Request request);
  // Ends a request wherever it is; unknown or finished ids are ignored.
  void Cancel(RequestId id, FinishReason reason = FinishReason::kCancelled);
  // Ends one choice with kStop: the server saw a stop string.
  void StopChoice(RequestId id, int32_t choice);

  // Refuses new requests from now on; what runs or waits goes on until `deadline_us` (on the
  // clock), then ends with kDrained.
  void Drain(int64_t deadline_us);
  // Blocks until nothing is queued or running. REQUIRES: Start() was called.
  void WaitIdle();
  // Ends everything with kDrained, joins the engine thread.
  void Stop();

  SchedulerStats stats() const;

  // One turn of the engine loop on the calling thread: drain messages, plan, submit, wait, commit.
  // Returns false when there was nothing to do. REQUIRES: Start() was not called.
  bool RunOnce();
  // Aborts if slots, pages, queues and requests do not add up. Engine thread, or no engine thread.
  void CheckIntegrity() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir::scheduler
