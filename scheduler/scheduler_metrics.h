// The scheduler's numbers, resolved once at construction. docs/metrics.md lists them. With no
// registry every call does nothing. Any thread.
#pragma once

#include <array>
#include <cstdint>

#include "cache/layout.h"
#include "metrics/registry.h"
#include "scheduler/executor.h"
#include "scheduler/mailbox.h"
#include "scheduler/request.h"
#include "scheduler/running.h"
#include "scheduler/scheduler.h"
#include "scheduler/token_sink.h"

namespace weir::scheduler {

enum class StepPhase : unsigned char { kPlan, kExecute, kCommit };
enum class StepKind : unsigned char { kPrefill, kDecode, kMixed };

StepKind KindOf(const StepInFlight& step);

// What changes from turn to turn.
struct EngineGauges {
  SchedulerStats stats;
  int64_t queued_tokens = 0;
  int32_t running_requests = 0;
  int32_t prefill_budget_tokens = 0;
};

class SchedulerMetrics {
 public:
  // `registry` may be null; else it outlives this. The limits are exported once, here.
  SchedulerMetrics(metrics::Registry* registry, const SchedulerOptions& options,
                   const ExecutorLimits& limits);

  void OnRefused(Refusal refusal);
  void OnAdmitted(int64_t waited_us);
  void OnFirstToken(int64_t since_arrival_us);
  // since_last_us < 0: the first of its choice.
  void OnToken(int64_t since_last_us);
  void OnDroppedToken();
  void OnFinished(FinishReason outcome, const RequestTimes& times);
  void OnPhase(StepPhase phase, StepKind kind, int64_t took_us);
  void OnStep(const StepInFlight& step);
  // A mask of a constrained sequence was made; threads of the pool.
  void OnMask(int64_t took_us);
  // A step with constrained sequences stood still for their masks.
  void OnMaskWait(int64_t waited_us);
  void Publish(const EngineGauges& gauges);

 private:
  static constexpr size_t kReasons = 7;   // of FinishReason
  static constexpr size_t kRefusals = 4;  // of Refusal
  static constexpr size_t kPhases = 3;
  static constexpr size_t kKinds = 3;

  void AddRequestMetrics(metrics::Registry* registry);
  void AddStepMetrics(metrics::Registry* registry, const ExecutorLimits& limits);
  void AddGauges(metrics::Registry* registry);
  static void ExportLimits(metrics::Registry* registry, const SchedulerOptions& options,
                           const ExecutorLimits& limits);

  std::array<metrics::Counter*, kReasons> requests_{};
  // [reason][ran]: those that did not end by themselves.
  std::array<std::array<metrics::Counter*, 2>, kReasons> cancelled_{};
  std::array<metrics::Counter*, kRefusals> refused_{};
  metrics::Histogram* queue_wait_ = nullptr;
  metrics::Histogram* first_token_ = nullptr;
  metrics::Histogram* inter_token_ = nullptr;
  metrics::Histogram* end_to_end_ = nullptr;
  metrics::Counter* prefill_tokens_ = nullptr;
  metrics::Counter* decode_tokens_ = nullptr;
  metrics::Counter* dropped_tokens_ = nullptr;
  std::array<metrics::Counter*, kKinds> steps_{};
  std::array<std::array<metrics::Histogram*, kKinds>, kPhases> step_time_{};
  metrics::Histogram* mask_time_ = nullptr;
  metrics::Histogram* mask_wait_ = nullptr;
  metrics::Histogram* step_sequences_ = nullptr;
  metrics::Histogram* step_tokens_ = nullptr;
  metrics::Gauge* queued_requests_ = nullptr;
  metrics::Gauge* queued_tokens_ = nullptr;
  metrics::Gauge* running_requests_ = nullptr;
  metrics::Gauge* running_sequences_ = nullptr;
  metrics::Gauge* prefill_budget_ = nullptr;
  std::array<metrics::Gauge*, 2> slots_{};  // used, free
  std::array<metrics::Gauge*, 2> pages_{};
  metrics::Gauge* memory_used_ = nullptr;
};

}  // namespace weir::scheduler
