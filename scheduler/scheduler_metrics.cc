#include "scheduler/scheduler_metrics.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace weir::scheduler {
namespace {

constexpr const char* kReasonNames[] = {"stop",        "length",  "cancelled", "deadline",
                                        "slow_reader", "drained", "error"};
constexpr const char* kRefusalNames[] = {"invalid", "queue_requests", "queue_tokens", "draining"};
constexpr const char* kPhaseNames[] = {"plan", "execute", "commit"};
constexpr const char* kKindNames[] = {"prefill", "decode", "mixed"};

double Seconds(int64_t us) { return static_cast<double>(us) * 1e-6; }

template <typename Metric>
void Count(Metric* counter, double by = 1.0) {
  if (counter != nullptr) counter->Increment(by);
}
template <typename Metric>
void Observe(Metric* histogram, double value) {
  if (histogram != nullptr) histogram->Observe(value);
}
template <typename Metric>
void Set(Metric* gauge, double value) {
  if (gauge != nullptr) gauge->Set(value);
}

// 1, 2, 4, ... up to and including `most`.
std::vector<double> PowersOfTwo(int32_t most) {
  std::vector<double> bounds;
  for (int64_t bound = 1; bound < most; bound *= 2) bounds.push_back(static_cast<double>(bound));
  bounds.push_back(static_cast<double>(std::max(most, 1)));
  return bounds;
}

// 10 us ... 10 s: plans take microseconds, prefill steps of large models seconds.
std::vector<double> StepBuckets() {
  return {1e-5,   2.5e-5, 5e-5, 1e-4,   2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2,
          2.5e-2, 5e-2,   1e-1, 2.5e-1, 5e-1,   1.0,  2.5,  5.0,    10.0};
}

}  // namespace

StepKind KindOf(const StepInFlight& step) {
  if (step.prefill_tokens == 0) return StepKind::kDecode;
  return step.decodes == 0 ? StepKind::kPrefill : StepKind::kMixed;
}

SchedulerMetrics::SchedulerMetrics(metrics::Registry* registry, const SchedulerOptions& options,
                                   const ExecutorLimits& limits) {
  if (registry == nullptr) return;
  AddRequestMetrics(registry);
  AddStepMetrics(registry, limits);
  AddGauges(registry);
  ExportLimits(registry, options, limits);
}

void SchedulerMetrics::AddRequestMetrics(metrics::Registry* registry) {
  for (size_t i = 0; i < kReasons; ++i) {
    requests_[i] = registry->AddCounter("weir_requests_total",
                                        "Requests that were taken and have ended, by how.",
                                        {{"outcome", kReasonNames[i]}});
    const auto reason = static_cast<FinishReason>(i);
    if (reason == FinishReason::kStop || reason == FinishReason::kLength) continue;
    for (size_t ran = 0; ran < 2; ++ran) {
      cancelled_[i][ran] = registry->AddCounter(
          "weir_requests_cancelled_total",
          "Requests that ended before their answer did, by why and where they were.",
          {{"reason", kReasonNames[i]}, {"phase", ran == 0 ? "queue" : "running"}});
    }
  }
  for (size_t i = 0; i < kRefusals; ++i) {
    refused_[i] = registry->AddCounter("weir_requests_rejected_total",
                                       "Requests that the scheduler did not take, by why.",
                                       {{"reason", kRefusalNames[i]}});
  }
  queue_wait_ = registry->AddHistogram("weir_queue_wait_seconds",
                                       "From arrival to admission, of requests that were admitted.",
                                       metrics::LatencyBuckets());
  first_token_ = registry->AddHistogram("weir_time_to_first_token_seconds",
                                        "From arrival to the first token of any choice.",
                                        metrics::LatencyBuckets());
  inter_token_ = registry->AddHistogram(
      "weir_inter_token_seconds", "Between two tokens of one choice.", metrics::LatencyBuckets());
  end_to_end_ = registry->AddHistogram(
      "weir_request_seconds", "From arrival to the end of requests that ended by themselves.",
      metrics::LatencyBuckets());
}

void SchedulerMetrics::AddStepMetrics(metrics::Registry* registry, const ExecutorLimits& limits) {
  prefill_tokens_ =
      registry->AddCounter("weir_prefill_tokens_total", "Prompt tokens run through the model.");
  decode_tokens_ =
      registry->AddCounter("weir_decode_tokens_total", "Tokens generated and delivered.");
  dropped_tokens_ = registry->AddCounter(
      "weir_dropped_tokens_total",
      "Tokens computed for choices that had ended meanwhile, and not delivered.");
  for (size_t kind = 0; kind < kKinds; ++kind) {
    steps_[kind] = registry->AddCounter("weir_steps_total", "Steps of the model, by what they ran.",
                                        {{"kind", kKindNames[kind]}});
    for (size_t phase = 0; phase < kPhases; ++phase) {
      step_time_[phase][kind] = registry->AddHistogram(
          "weir_step_seconds", "Time of a step by phase and by what it ran.", StepBuckets(),
          {{"phase", kPhaseNames[phase]}, {"kind", kKindNames[kind]}});
    }
  }
  mask_time_ = registry->AddHistogram(
      "weir_mask_seconds", "Making the mask of one token of a constrained choice.", StepBuckets());
  mask_wait_ = registry->AddHistogram(
      "weir_mask_wait_seconds",
      "How long a step with constrained choices stood still for their masks.", StepBuckets());
  step_sequences_ = registry->AddHistogram("weir_step_sequences", "Sequences in a step.",
                                           PowersOfTwo(limits.max_step_sequences));
  step_tokens_ = registry->AddHistogram("weir_step_tokens", "Tokens in a step.",
                                        PowersOfTwo(limits.max_step_tokens));
}

void SchedulerMetrics::AddGauges(metrics::Registry* registry) {
  queued_requests_ = registry->AddGauge("weir_queue_requests", "Requests that wait for memory.");
  queued_tokens_ =
      registry->AddGauge("weir_queue_tokens", "Prompt tokens of the requests that wait.");
  running_requests_ = registry->AddGauge("weir_running_requests", "Requests that hold memory.");
  running_sequences_ = registry->AddGauge("weir_running_sequences", "Choices being generated.");
  prefill_budget_ = registry->AddGauge("weir_prefill_budget_tokens",
                                       "Prompt tokens that may ride in a step that also decodes.");
  for (size_t i = 0; i < 2; ++i) {
    const metrics::Labels labels = {{"state", i == 0 ? "used" : "free"}};
    slots_[i] = registry->AddGauge("weir_slots", "Slots of recurrent state.", labels);
    pages_[i] = registry->AddGauge("weir_pages", "Pages of KV.", labels);
  }
  memory_used_ = registry->AddGauge(
      "weir_memory_used_ratio",
      "The larger of the used shares of slots and pages: either one blocks admission.");
}

void SchedulerMetrics::ExportLimits(metrics::Registry* registry, const SchedulerOptions& options,
                                    const ExecutorLimits& limits) {
  const std::pair<const char*, double> values[] = {
      {"queued_requests", options.max_queued_requests},
      {"queued_tokens", static_cast<double>(options.max_queued_tokens)},
      {"choices", options.max_choices},
      {"step_tokens", limits.max_step_tokens},
      {"step_sequences", limits.max_step_sequences},
      {"steps_in_flight", limits.max_in_flight},
      {"sequence_tokens", limits.max_position},
      {"slots", limits.cache.slots},
      {"pages", limits.cache.pages},
      {"page_tokens", limits.layout.page_tokens},
  };
  for (const auto& [name, value] : values) {
    registry->AddGauge("weir_limit", "A limit of the server, by name.", {{"limit", name}})
        ->Set(value);
  }
}

void SchedulerMetrics::OnRefused(Refusal refusal) { Count(refused_[static_cast<size_t>(refusal)]); }
void SchedulerMetrics::OnAdmitted(int64_t waited_us) { Observe(queue_wait_, Seconds(waited_us)); }
void SchedulerMetrics::OnFirstToken(int64_t since_arrival_us) {
  Observe(first_token_, Seconds(since_arrival_us));
}

void SchedulerMetrics::OnToken(int64_t since_last_us) {
  Count(decode_tokens_);
  if (since_last_us >= 0) Observe(inter_token_, Seconds(since_last_us));
}

void SchedulerMetrics::OnDroppedToken() { Count(dropped_tokens_); }

void SchedulerMetrics::OnFinished(FinishReason outcome, const RequestTimes& times) {
  const auto reason = static_cast<size_t>(outcome);
  Count(requests_[reason]);
  if (outcome == FinishReason::kStop || outcome == FinishReason::kLength) {
    Observe(end_to_end_, Seconds(times.finished_us - times.arrived_us));
  } else {
    Count(cancelled_[reason][times.started_us == 0 ? 0 : 1]);
  }
}

void SchedulerMetrics::OnPhase(StepPhase phase, StepKind kind, int64_t took_us) {
  Observe(step_time_[static_cast<size_t>(phase)][static_cast<size_t>(kind)], Seconds(took_us));
}

void SchedulerMetrics::OnMask(int64_t took_us) { Observe(mask_time_, Seconds(took_us)); }
void SchedulerMetrics::OnMaskWait(int64_t waited_us) { Observe(mask_wait_, Seconds(waited_us)); }

void SchedulerMetrics::OnStep(const StepInFlight& step) {
  Count(steps_[static_cast<size_t>(KindOf(step))]);
  Count(prefill_tokens_, step.prefill_tokens);
  Observe(step_sequences_, static_cast<double>(step.entries.size()));
  Observe(step_tokens_, step.decodes + step.prefill_tokens);
}

void SchedulerMetrics::Publish(const EngineGauges& gauges) {
  const SchedulerStats& stats = gauges.stats;
  Set(queued_requests_, stats.queued_requests);
  Set(queued_tokens_, static_cast<double>(gauges.queued_tokens));
  Set(running_requests_, gauges.running_requests);
  Set(running_sequences_, stats.running_sequences);
  Set(prefill_budget_, gauges.prefill_budget_tokens);
  Set(slots_[0], stats.slots_used);
  Set(slots_[1], stats.slots_total - stats.slots_used);
  Set(pages_[0], stats.pages_used);
  Set(pages_[1], stats.pages_total - stats.pages_used);
  const double slots = stats.slots_total == 0 ? 0.0 : 1.0 * stats.slots_used / stats.slots_total;
  const double pages = stats.pages_total == 0 ? 0.0 : 1.0 * stats.pages_used / stats.pages_total;
  Set(memory_used_, std::max(slots, pages));
}

}  // namespace weir::scheduler
