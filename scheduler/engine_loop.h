// EngineLoop: drain, plan, submit, wait, commit, retire. Owns everything that scheduling changes:
// the queue, what runs, the cache, the steps in flight.
//
// One thread at a time: the engine's, or a simulation's. The mailbox is the only way in.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/sequence_cache.h"
#include "core/clock.h"
#include "scheduler/admission_queue.h"
#include "scheduler/commit.h"
#include "scheduler/executor.h"
#include "scheduler/mailbox.h"
#include "scheduler/mask_pool.h"
#include "scheduler/prefill_controller.h"
#include "scheduler/running.h"
#include "scheduler/scheduler.h"
#include "scheduler/scheduler_metrics.h"

namespace weir::scheduler {

class EngineLoop {
 public:
  // All outlive it.
  EngineLoop(const SchedulerOptions& options, Executor* executor, const Clock* clock,
             Mailbox* mailbox, SchedulerMetrics* metrics);

  // One turn. False: there was nothing to do, and there will be nothing before new mail or
  // WakeAtUs().
  bool Turn();
  // The clock time at which something ends if nothing comes before; 0: none.
  int64_t WakeAtUs() const;
  // Ends everything with `reason`, waits for the steps in flight, frees all memory.
  void EndEverything(FinishReason reason);
  void CheckIntegrity() const;

 private:
  // drain
  bool Drain();
  void Arrive(Arrival arrival);
  void End(RequestId id, FinishReason reason);
  bool EndOverdue();
  // plan and submit
  bool Admit();
  void Start(Waiting waiting);
  StepDecision Plan();
  RunningView ViewOf(const RunningRequest& request, const Sequence& sequence) const;
  void Submit(const StepDecision& decision);
  void AddToStep(RunningRequest& request, Sequence& sequence, int32_t tokens, StepInFlight* step);
  void SampleInto(const RunningRequest& request, Sequence& sequence, SequenceInput* input);
  void ForkAfterPrefix(RunningRequest& request);
  // wait and commit
  void WaitAndCommit();
  // retire
  bool Retire();
  void Publish();

  const StepBudget budget_;
  Executor* const executor_;
  const Clock* const clock_;
  Mailbox* const mailbox_;
  SchedulerMetrics* const metrics_;
  Committer committer_;
  PrefillController controller_;

  MaskPool masks_;              // outlives the masks of running_
  cache::SequenceCache cache_;  // outlives the reservations of running_
  AdmissionQueue queue_;
  std::vector<std::unique_ptr<RunningRequest>> running_;  // in order of admission
  std::unordered_map<RequestId, RunningRequest*> by_id_;  // of running_
  std::set<std::pair<int64_t, RequestId>> deadlines_;     // of all that wait or run and have one
  std::deque<StepInFlight> in_flight_;                    // oldest first
  std::vector<std::pair<RunningRequest*, Sequence*>> candidates_;  // what Plan's indices mean
  Mail mail_;
  EngineNews news_;           // gathered until Publish
  bool drain_ended_ = false;  // the drain deadline has passed

  SequenceId next_sequence_ = 1;
  int64_t steps_ = 0;  // submitted
  int64_t committed_steps_ = 0;
  int64_t last_commit_us_ = 0;
  int64_t plan_us_ = 0;  // of the turn
};

}  // namespace weir::scheduler
