#include "server/generate_call.h"

#include <grpcpp/alarm.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/access_keys.h"
#include "core/clock.h"
#include "core/error_details.h"
#include "core/log.h"
#include "core/philox.h"
#include "metrics/registry.h"
#include "scheduler/scheduler.h"
#include "server/caller.h"
#include "server/error_mapping.h"
#include "server/response_stream.h"
#include "server/served_model.h"
#include "server/server_metrics.h"
#include "server/service_context.h"
#include "server/span_exporter.h"
#include "server/wire.h"
#include "server/work_pool.h"
#include "text/grammar.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

using scheduler::FinishReason;

constexpr int64_t kRetryMs = 1000;
// A deadline as far away as this (30 years) is none.
constexpr int64_t kNoDeadlineSeconds = 1'000'000'000;

// States, each entered once: validating (Begin) -> encoding (text thread) -> submitted -> ended.
// Every path ends in exactly one Finish; OnDone lets go of the last reference that is ours.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public ResponseStream::Host,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(ServiceContext* context, grpc::CallbackServerContext* rpc)
      : context_(context), rpc_(rpc), id_(context->next_request_id.fetch_add(1)) {
    context_->open_streams.Add(1);
  }
  ~GenerateCall() override = default;

  void Begin(const grpc::ByteBuffer& bytes) {
    self_ = shared_from_this();
    const absl::Status status = Validate(bytes);
    if (!status.ok()) FinishEarly(status);
  }

  // gRPC's threads.
  void OnWriteDone(bool ok) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      writing_ = false;
      ++writes_;
      broken_ = broken_ || !ok;
    }
    if (!ok && stream_ != nullptr) {  // the connection is gone
      stream_->Discard();
      Cancel();
    }
    Write();
  }
  void OnCancel() override { Cancel(); }
  void OnDone() override {
    std::shared_ptr<GenerateCall> last;  // outlives the lock
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
      context_->metrics->CallEnded(Method::kGenerate, status_.code());
      if (stream_ != nullptr) use_.AddTokens(stream_->completion_tokens());
      ReportSpan();
      use_ = AccessKeys::Use();
      last = std::move(self_);
    }
    context_->open_streams.Add(-1);
  }

  // ResponseStream::Host
  void ScheduleProcess() override {
    context_->delivery_pool->Add([self = shared_from_this()] {
      self->stream_->Process();
      self->Write();
    });
  }
  void StopChoice(int32_t choice) override { context_->scheduler->StopChoice(id_, choice); }

 private:
  absl::Status Validate(const grpc::ByteBuffer& bytes) {
    if (context_->draining) {
      return Unavailable(
          "the server is shutting down and takes no new requests; try another server", kRetryMs);
    }
    received_us_ = context_->clock->NowUs();
    ASSIGN_OR_RETURN(use_, AdmitCaller(*context_, *rpc_));
    RETURN_IF_ERROR(SetDeadline());
    v1::GenerateRequest message;
    RETURN_IF_ERROR(ParseMessage(bytes, &message));
    const auto bits = Philox(context_->seed, id_);
    const uint64_t seed = uint64_t{bits[0]} << 32 | bits[1];
    ASSIGN_OR_RETURN(request_, ValidateGenerate(message, *context_->model, context_->limits, seed));
    request_.stream.received_us = received_us_;
    chat_ = request_.source.chat.has_value();
    if (request_.stream.answer) {
      request_.stream.answer->id_seed = uint64_t{bits[2]} << 32 | bits[3];
    }
    if (!request_.source.text && !request_.source.chat && !request_.constraint) {
      return Submit(std::move(request_.request.prompt));
    }
    const int64_t waits_since_us = context_->clock->NowUs();
    const bool taken = context_->text_pool->TryAdd(
        [self = shared_from_this(), waits_since_us] {
          const absl::Status status = self->EncodeAndSubmit(waits_since_us);
          if (!status.ok()) self->FinishEarly(status);
        },
        bytes.Length());
    if (!taken) {
      return Exhausted("text_queue",
                       absl::StrCat("too many prompts wait to be tokenized (",
                                    context_->text_pool->waiting(), "); try again later"),
                       kRetryMs);
    }
    return absl::OkStatus();
  }

  absl::Status SetDeadline() {
    const int64_t now_us = context_->clock->NowUs();
    // Not rpc_->deadline(): a time_point counts nanoseconds and overflows where a client says
    // "centuries" for "no matter when".
    const gpr_timespec deadline = rpc_->raw_deadline();
    const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    if (left.tv_sec < 0 || (left.tv_sec == 0 && left.tv_nsec == 0)) return TooLate();
    if (left.tv_sec < kNoDeadlineSeconds) {
      deadline_us_ = now_us + left.tv_sec * 1'000'000 + left.tv_nsec / 1000;
    }
    if (context_->max_deadline_us > 0) {
      const int64_t latest = now_us + context_->max_deadline_us;
      deadline_us_ = deadline_us_ == 0 ? latest : std::min(deadline_us_, latest);
    }
    return absl::OkStatus();
  }

  bool DeadlinePassed() const {
    return deadline_us_ != 0 && context_->clock->NowUs() >= deadline_us_;
  }
  static absl::Status TooLate() {
    return absl::DeadlineExceededError("the call's deadline passed before the prompt was queued");
  }

  // Text thread.
  absl::Status EncodeAndSubmit(int64_t waits_since_us) {
    const int64_t begin_us = context_->clock->NowUs();
    context_->metrics->text_wait_seconds->Observe(static_cast<double>(begin_us - waits_since_us) *
                                                  1e-6);
    if (cancelled_) return absl::CancelledError("the client cancelled the call");
    if (DeadlinePassed()) return TooLate();
    std::vector<int32_t> prompt = std::move(request_.request.prompt);
    text::ReasoningStart reasoning = text::ReasoningStart::kNone;
    if (request_.source.text || request_.source.chat) {
      std::string rendered;
      ASSIGN_OR_RETURN(prompt, EncodePrompt(request_.source, *context_->model, &rendered));
      reasoning = StartOfAnswer(request_.source, *context_->model, rendered);
      context_->metrics->text_seconds->Observe(
          static_cast<double>(context_->clock->NowUs() - begin_us) * 1e-6);
    }
    if (request_.stream.answer) {
      request_.stream.answer->in_reasoning = reasoning == text::ReasoningStart::kOpen;
    }
    if (request_.constraint) RETURN_IF_ERROR(CompileConstraint(reasoning));
    return Submit(std::move(prompt));
  }

  // Text thread.
  absl::Status CompileConstraint(text::ReasoningStart reasoning) {
    const int64_t begin_us = context_->clock->NowUs();
    // Whoever asks for a constraint waits for what it describes; a model that only may reason first
    // could spend all its tokens on that.
    if (reasoning == text::ReasoningStart::kMayOpen) {
      reasoning = text::ReasoningStart::kNone;
    }
    ConstraintSpec spec = *std::exchange(request_.constraint, std::nullopt);
    const std::string field = spec.field;
    ASSIGN_OR_RETURN(const text::GrammarSource source,
                     ToGrammarSource(std::move(spec), reasoning, *context_->model,
                                     context_->limits.max_constraint_bytes));
    const auto compiled = context_->grammars->Compile(source);
    const bool hit = compiled.ok() && compiled->cached;
    const ServerMetrics& metrics = *context_->metrics;
    (hit ? metrics.constraint_cache_hits : metrics.constraint_cache_misses)->Increment();
    if (!hit) {
      metrics.constraint_compile_seconds->Observe(
          static_cast<double>(context_->clock->NowUs() - begin_us) * 1e-6);
    }
    if (absl::IsInvalidArgument(compiled.status())) {
      return InvalidField(field, absl::StrCat("cannot be compiled: ", compiled.status().message()));
    }
    RETURN_IF_ERROR(compiled.status());
    auto constraint =
        std::make_shared<GrammarConstraint>(std::move(compiled->grammar), context_->model->eos_ids);
    request_.stream.constraint = constraint;
    request_.request.constraint = std::move(constraint);
    return absl::OkStatus();
  }

  absl::Status Submit(std::vector<int32_t> prompt) {
    RETURN_IF_ERROR(SetPrompt(std::move(prompt), *context_->model, context_->limits, &request_));
    request_.source = PromptSource();  // may be far longer than its tokens, and waits no longer
    scheduler::Request& request = request_.request;
    request.id = id_;
    request.deadline_us = deadline_us_;
    const int32_t prompt_tokens = static_cast<int32_t>(request.prompt.size());
    prompt_tokens_ = prompt_tokens;
    stream_ =
        std::make_unique<ResponseStream>(request_.stream, prompt_tokens, context_->model->tokenizer,
                                         context_->stream_buffer_tokens, this);
    v1::GenerateEvent event;
    v1::Accepted* accepted = event.mutable_accepted();
    accepted->set_request_id(absl::StrCat("r", id_));
    accepted->set_prompt_tokens(prompt_tokens);
    accepted->set_seed(request.sampling.seed);
    accepted->set_max_tokens(request.max_tokens);
    if (request_.stream.prompt_token_ids) {
      accepted->mutable_prompt_token_ids()->Assign(request.prompt.begin(), request.prompt.end());
      for (size_t i = 0; request_.stream.pieces && i < request.prompt.size(); ++i) {
        accepted->add_prompt_pieces(TokenPiece(*context_->model->tokenizer, request.prompt[i]));
      }
    }
    stream_->Add(std::move(event));
    // The scheduler's pointer keeps the whole call alive.
    request.sink = std::shared_ptr<scheduler::TokenSink>(shared_from_this(), stream_.get());
    LogDebug("request r", id_, ": ", prompt_tokens, " prompt tokens, up to ", request.max_tokens,
             " more, ", request.num_choices, " choices");
    // Before the call can end, on another thread, and its use with it.
    use_.AddTokens(prompt_tokens);
    const absl::Status taken = context_->scheduler->Submit(std::move(request));
    if (!taken.ok()) {
      use_.AddTokens(-prompt_tokens);
      return taken;
    }
    submitted_ = true;
    if (cancelled_) Cancel();  // it came while `submitted_` was not yet set
    Write();
    return absl::OkStatus();
  }

  void Cancel() {
    cancelled_ = true;
    if (!submitted_) return;  // whoever submits looks at cancelled_ afterwards
    context_->scheduler->Cancel(
        id_, DeadlinePassed() ? FinishReason::kDeadline : FinishReason::kCancelled);
  }

  // REQUIRES: nothing was submitted.
  void FinishEarly(const absl::Status& status) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      finishing_ = true;
      status_ = status;
    }
    LogDebug("request r", id_, " refused: ", status.ToString());
    Finish(ToGrpc(status));
  }

  // Starts the next write, or the end. Any thread.
  void Write() {
    std::optional<grpc::Status> last;
    bool has_event = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (finishing_ || stream_ == nullptr) return;
      std::optional<ResponseStream::End> end = stream_->ended();
      if (end && IsLost(end->status)) {
        stream_->Discard();
        end->more = false;
      }
      if (writing_) {
        if (end) WatchSlowReader();
        return;
      }
      v1::GenerateEvent event;
      has_event = stream_->Take(&event);
      if (has_event) {
        SerializeMessage(event, &bytes_);
        writing_ = true;
        end = stream_->ended();
      } else if (end && !end->more) {
        finishing_ = true;
        const bool lost = end->status.ok() && broken_;
        status_ = lost ? absl::CancelledError("the client went away") : end->status;
        last = ToGrpc(end->status);
      }
      if (end && !end->more) WatchSlowReader();
    }
    // The end goes out after the last event, not with it: gRPC's in-process channel, which the HTTP
    // door uses, loses a message that comes together with the status.
    if (has_event) {
      StartWrite(&bytes_);
    } else if (last) {
      Finish(*last);
    }
  }

  // REQUIRES: mutex_ held; from OnDone.
  void ReportSpan() {
    if (context_->spans == nullptr) return;
    const auto header = [this](const char* name) {
      const auto found = rpc_->client_metadata().find(name);
      return found == rpc_->client_metadata().end()
                 ? std::string()
                 : std::string(found->second.data(), found->second.size());
    };
    CallFacts facts;
    facts.traceparent = header("traceparent");
    facts.tracestate = header("tracestate");
    facts.request_id = absl::StrCat("r", id_);
    facts.chat = chat_;
    facts.received_us = received_us_;
    facts.finished_us = context_->clock->NowUs();
    facts.prompt_tokens = prompt_tokens_;
    facts.choices = request_.stream.num_choices;
    facts.status = status_;
    if (stream_ != nullptr) {
      facts.completion_tokens = stream_->completion_tokens();
      if (const std::optional<ResponseStream::End> end = stream_->ended()) {
        facts.started_us = end->times.started_us;
        facts.first_token_us = end->times.first_token_us;
      }
    }
    context_->spans->Add(std::move(facts));
  }

  // Nobody reads what is left.
  static bool IsLost(const absl::Status& status) {
    return absl::IsCancelled(status) || absl::IsResourceExhausted(status);
  }

  // Ends the call by force when its reader, with the engine's work done, takes nothing for too
  // long. REQUIRES: mutex_ held.
  void WatchSlowReader() {
    if (watching_) return;
    watching_ = true;
    alarm_ = std::make_unique<grpc::Alarm>();  // one that rings cannot be set again
    alarm_->Set(
        std::chrono::system_clock::now() + std::chrono::microseconds(context_->slow_reader_us),
        [weak = weak_from_this(), writes = writes_](bool rang) {
          const std::shared_ptr<GenerateCall> call = weak.lock();
          if (call == nullptr || !rang) return;
          std::lock_guard<std::mutex> lock(call->mutex_);
          if (call->done_) return;
          if (call->writes_ == writes) return call->rpc_->TryCancel();
          call->watching_ = false;
          call->WatchSlowReader();
        });
  }

  ServiceContext* const context_;
  grpc::CallbackServerContext* const rpc_;  // until OnDone
  const uint64_t id_;
  AccessKeys::Use use_;      // of the caller's key, until OnDone
  int64_t received_us_ = 0;  // on the clock
  int64_t deadline_us_ = 0;  // on the clock; 0: none
  bool chat_ = false;
  int32_t prompt_tokens_ = 0;
  ValidRequest request_;
  std::unique_ptr<ResponseStream> stream_;  // set before submission, then constant
  std::atomic<bool> submitted_{false};
  std::atomic<bool> cancelled_{false};

  std::mutex mutex_;  // guards what follows
  bool writing_ = false;
  bool finishing_ = false;  // Finish was or is about to be called
  bool watching_ = false;
  bool broken_ = false;  // a write failed
  bool done_ = false;
  absl::Status status_ = absl::UnknownError("the call ended by itself");  // as the client is told
  grpc::ByteBuffer bytes_;                                                // of the write in flight
  int64_t writes_ = 0;                                                    // that are done
  std::unique_ptr<grpc::Alarm> alarm_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerateCall(ServiceContext* context,
                                                              grpc::CallbackServerContext* rpc,
                                                              const grpc::ByteBuffer& request) {
  auto call = std::make_shared<GenerateCall>(context, rpc);
  GenerateCall* reactor = call.get();
  call->Begin(request);
  return reactor;
}

}  // namespace weir::server
