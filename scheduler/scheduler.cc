#include "scheduler/scheduler.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/sequence_cache.h"
#include "core/check.h"
#include "core/error_details.h"
#include "scheduler/engine_loop.h"
#include "scheduler/mailbox.h"
#include "scheduler/scheduler_metrics.h"
#include "scheduler/token_sink.h"

namespace weir::scheduler {
namespace {

absl::Status CheckFields(const Request& request, const SchedulerOptions& options,
                         const ExecutorLimits& limits) {
  if (request.prompt.empty())
    return InvalidField("input", "the prompt is empty; send at least one token");
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    const int32_t id = request.prompt[i];
    if (id >= 0 && id < limits.vocab_size) continue;
    return InvalidField("input", absl::StrCat("token ", i, " of the prompt is ", id,
                                              "; ids go from 0 to ", limits.vocab_size - 1));
  }
  if (request.num_choices < 1 || request.num_choices > options.max_choices) {
    return InvalidField("n", absl::StrCat("is ", request.num_choices, "; at least 1 and at most ",
                                          options.max_choices));
  }
  if (request.max_tokens < 1) {
    return InvalidField("stopping.max_tokens",
                        absl::StrCat("is ", request.max_tokens, "; at least 1"));
  }
  if (request.sink == nullptr) return absl::InternalError("a request without a sink");
  return absl::OkStatus();
}

// What can never fit is refused with the numbers; the rest fits as soon as the others have ended.
absl::Status CheckFits(const Request& request, const SchedulerOptions& options,
                       const ExecutorLimits& limits, const cache::SequenceCache& empty) {
  const int64_t prompt = std::ssize(request.prompt);
  if (prompt >= limits.max_position) {
    return InvalidField(
        "input", absl::StrCat("the prompt has ", prompt, " tokens; the model holds ",
                              limits.max_position, " in all, at least one of them for the answer"));
  }
  if (prompt > options.max_queued_tokens) {
    return InvalidField("input",
                        absl::StrCat("the prompt has ", prompt, " tokens; the queue holds ",
                                     options.max_queued_tokens, " in all"));
  }
  const cache::MemoryNeed need = empty.NeedOf(ShapeOf(request));
  const cache::MemoryNeed total = empty.Total();
  if (need.slots > total.slots) {
    return InvalidField("n", absl::StrCat(need.slots, " choices need ", need.slots,
                                          " state slots; the server has ", total.slots));
  }
  if (need.pages > total.pages) {
    return InvalidField("stopping.max_tokens",
                        absl::StrCat("a prompt of ", prompt, " tokens and ", request.num_choices,
                                     " answer(s) of up to ", request.max_tokens, " need ",
                                     need.pages, " KV pages of ", limits.layout.page_tokens,
                                     " tokens; the server has ", total.pages, "; ask for less"));
  }
  return absl::OkStatus();
}

}  // namespace

class Scheduler::Impl {
 public:
  Impl(const SchedulerOptions& options, Executor* executor, const Clock* clock,
       metrics::Registry* registry)
      : options_(options),
        limits_(executor->limits()),
        clock_(clock),
        empty_(limits_.layout, limits_.cache),
        metrics_(registry, options, limits_),
        mailbox_(options),
        loop_(options, executor, clock, &mailbox_, &metrics_) {}

  absl::Status Submit(Request request) {
    Refusal refusal = Refusal::kInvalid;
    absl::Status status = CheckFields(request, options_, limits_);
    if (status.ok()) {
      request.max_tokens = static_cast<int32_t>(std::min<int64_t>(
          request.max_tokens,
          std::max<int64_t>(limits_.max_position - std::ssize(request.prompt), 0)));
      status = CheckFits(request, options_, limits_, empty_);
    }
    if (status.ok()) status = mailbox_.Submit(std::move(request), clock_->NowUs(), &refusal);
    if (!status.ok()) metrics_.OnRefused(refusal);
    return status;
  }

  void Start() {
    WEIR_CHECK(!thread_.joinable() && !stopped_) << "started twice or after Stop";
    thread_ = std::thread([this] { Run(); });
  }

  void Stop() {
    if (stopped_) return;
    stopped_ = true;
    mailbox_.Stop();
    if (thread_.joinable()) {
      WEIR_CHECK(thread_.get_id() != std::this_thread::get_id()) << "Stop on the engine thread";
      thread_.join();
    } else {
      loop_.EndEverything(FinishReason::kDrained);
    }
  }

  bool RunOnce() {
    WEIR_CHECK(!thread_.joinable()) << "RunOnce while the engine thread runs";
    return loop_.Turn();
  }

  Mailbox& mailbox() { return mailbox_; }
  const EngineLoop& loop() const { return loop_; }

 private:
  void Run() {
    while (!mailbox_.stopping()) {
      // Whoever has a deadline runs or waits, and then there are turns: an idle engine needs no
      // alarm.
      if (!loop_.Turn()) mailbox_.Wait();
    }
    loop_.EndEverything(FinishReason::kDrained);
  }

  const SchedulerOptions options_;
  const ExecutorLimits limits_;
  const Clock* const clock_;
  const cache::SequenceCache empty_;  // never reserves: answers what a request would need
  SchedulerMetrics metrics_;
  Mailbox mailbox_;
  EngineLoop loop_;
  std::thread thread_;
  bool stopped_ = false;
};

Scheduler::Scheduler(const SchedulerOptions& options, Executor* executor, const Clock* clock,
                     metrics::Registry* registry)
    : impl_(std::make_unique<Impl>(options, executor, clock, registry)) {}

Scheduler::~Scheduler() { Stop(); }

void Scheduler::Start() { impl_->Start(); }
absl::Status Scheduler::Submit(Request request) { return impl_->Submit(std::move(request)); }
void Scheduler::Cancel(RequestId id, FinishReason reason) { impl_->mailbox().Cancel(id, reason); }
void Scheduler::StopChoice(RequestId id, int32_t choice) {
  impl_->mailbox().StopChoice(id, choice);
}
void Scheduler::Drain(int64_t deadline_us) { impl_->mailbox().Drain(deadline_us); }
void Scheduler::WaitIdle() { impl_->mailbox().WaitIdle(); }
void Scheduler::Stop() { impl_->Stop(); }
SchedulerStats Scheduler::stats() const { return impl_->mailbox().stats(); }
bool Scheduler::RunOnce() { return impl_->RunOnce(); }
void Scheduler::CheckIntegrity() const { impl_->loop().CheckIntegrity(); }

}  // namespace weir::scheduler
