// Commit: the results of a step become tokens of their sequences, and choices and requests end. The
// only place that appends ids, applies stop rules and calls sinks.
//
// Engine thread.
#pragma once

#include <cstdint>

#include "core/clock.h"
#include "scheduler/executor.h"
#include "scheduler/running.h"
#include "scheduler/scheduler_metrics.h"

namespace weir::scheduler {

class Committer {
 public:
  // Both outlive it.
  Committer(const Clock* clock, SchedulerMetrics* metrics) : clock_(clock), metrics_(metrics) {}

  // Takes over the results of `step`, which is no longer in flight. Tokens of sequences that have
  // ended meanwhile are dropped.
  void CommitStep(const StepInFlight& step, StepResult result);

  // Ends one choice, or all that have not ended; the request ends with its last choice. Does
  // nothing to what has ended already. Frees no memory: see law 3.
  void FinishChoice(RunningRequest& request, Sequence& sequence, FinishReason reason,
                    int32_t stop_id = -1);
  void FinishAll(RunningRequest& request, FinishReason reason);

  // Ends a request that never ran.
  void FinishQueued(const Request& request, int64_t arrived_us, FinishReason reason);

 private:
  void TakePromptLogprobs(RunningRequest& request, SequenceOutput& output);
  void TakeToken(RunningRequest& request, Sequence& sequence, TokenLogprob chosen);
  void EndRequest(RunningRequest& request);

  const Clock* const clock_;
  SchedulerMetrics* const metrics_;
};

}  // namespace weir::scheduler
