#include "server/response_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error_details.h"
#include "text/tokenizer.h"

namespace weir::server {
namespace {

using scheduler::FinishReason;

// Entries of one prompt_logprobs event: a long prompt's would pass the size that clients accept.
constexpr size_t kLogprobsPerEvent = 2048;
// When a client may try again that was too slow, or whose work a shutdown ended.
constexpr int64_t kRetryMs = 1000;

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
    case FinishReason::kSlowReader:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kDrained:
      return v1::FINISH_REASON_DRAINED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

absl::Status ToStatus(FinishReason reason, int32_t max_waiting_tokens) {
  switch (reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kCancelled:
      return absl::CancelledError("the client cancelled the call");
    case FinishReason::kDeadline:
      return absl::DeadlineExceededError(
          "the call's deadline passed before the answer was complete; what there was has been "
          "sent");
    case FinishReason::kSlowReader:
      return Exhausted(
          "stream_buffer",
          absl::StrCat("the client reads too slowly: ", max_waiting_tokens,
                       " tokens were waiting for it; read faster, or ask for fewer tokens"),
          kRetryMs);
    case FinishReason::kDrained:
      return Unavailable(
          "the server shut down before the answer was complete; what there was has "
          "been sent; try another server",
          kRetryMs);
    case FinishReason::kError:
      return absl::InternalError(
          "the model gave no usable logits (all NaN or forbidden), so no token could be chosen");
  }
  return absl::InternalError("unknown finish reason");
}

}  // namespace

std::string TokenPiece(const text::Tokenizer& tokenizer, int32_t id) {
  const std::vector<text::AddedToken>& added = tokenizer.added_tokens();
  const auto at = std::lower_bound(
      added.begin(), added.end(), id,
      [](const text::AddedToken& token, int32_t wanted) { return token.id < wanted; });
  return at != added.end() && at->id == id ? at->content : tokenizer.TokenBytes(id);
}

struct ResponseStream::Choice {
  std::optional<text::Detokenizer> detokenizer;
  std::optional<text::StopMatcher> matcher;
  int32_t tokens = 0;
  std::string stop_string;             // that ended it
  std::optional<AnswerStream> answer;  // takes the text apart
  bool finished = false;
};

ResponseStream::ResponseStream(const StreamConfig& config, int32_t prompt_tokens,
                               std::shared_ptr<const text::Tokenizer> tokenizer,
                               int32_t max_waiting_tokens, Host* host)
    : config_(config),
      prompt_tokens_(prompt_tokens),
      tokenizer_(std::move(tokenizer)),
      max_waiting_tokens_(max_waiting_tokens),
      host_(host),
      choices_(static_cast<size_t>(config.num_choices)) {
  const bool needs_text = config_.text || !config_.stop_strings.empty();
  if (!needs_text) return;
  WEIR_CHECK(tokenizer_ != nullptr);
  std::vector<int32_t> kept;
  if (config_.answer) kept = KeptTokens(*config_.answer, *tokenizer_);
  for (Choice& choice : choices_) {
    choice.detokenizer.emplace(tokenizer_, config_.skip_special_tokens, kept);
    if (config_.answer) {
      choice.answer.emplace(*config_.answer, static_cast<int32_t>(&choice - choices_.data()));
    }
    if (!config_.stop_strings.empty()) {
      choice.matcher.emplace(config_.stop_strings, config_.include_stop);
    }
  }
}

ResponseStream::~ResponseStream() = default;

void ResponseStream::AddLogprob(const scheduler::TokenLogprob& from, v1::Logprobs* to) const {
  to->add_token_ids(from.token);
  to->add_logprobs(from.logprob);
  to->set_top_n(static_cast<int32_t>(from.top.size()));
  if (config_.pieces) to->add_pieces(TokenPiece(*tokenizer_, from.token));
  for (const auto& [token, logprob] : from.top) {
    to->add_top_token_ids(token);
    to->add_top_logprobs(logprob);
    if (config_.pieces) to->add_top_pieces(TokenPiece(*tokenizer_, token));
  }
}

bool ResponseStream::Append(Item item, bool bounded) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bounded) {
      if (waiting_tokens_ >= max_waiting_tokens_) return false;
      ++waiting_tokens_;
    }
    incoming_.push_back(std::move(item));
    if (scheduled_) return true;
    scheduled_ = true;
  }
  host_->ScheduleProcess();
  return true;
}

bool ResponseStream::OnPromptLogprobs(std::vector<scheduler::TokenLogprob> logprobs) {
  return Append(std::move(logprobs), /*bounded=*/false);
}

bool ResponseStream::OnToken(const scheduler::TokenEvent& event) {
  return Append(event, /*bounded=*/true);
}

void ResponseStream::OnChoiceFinished(const scheduler::ChoiceFinished& finished) {
  Append(finished, /*bounded=*/false);
}

void ResponseStream::OnRequestFinished(const scheduler::RequestTimes& times) {
  Append(times, /*bounded=*/false);
}

void ResponseStream::Process() {
  std::vector<Item> items;
  while (true) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (incoming_.empty()) {
        scheduled_ = false;  // only now may another thread begin
        return;
      }
      items.swap(incoming_);
    }
    for (const Item& item : items) Handle(item);
    items.clear();
  }
}

void ResponseStream::Handle(const Item& item) {
  if (const auto* token = std::get_if<scheduler::TokenEvent>(&item)) {
    HandleToken(*token);
  } else if (const auto* finished = std::get_if<scheduler::ChoiceFinished>(&item)) {
    HandleChoiceFinished(*finished);
  } else if (const auto* prompt = std::get_if<std::vector<scheduler::TokenLogprob>>(&item)) {
    HandlePromptLogprobs(*prompt);
  } else {
    HandleRequestFinished(std::get<scheduler::RequestTimes>(item));
  }
}

void ResponseStream::HandleToken(const scheduler::TokenEvent& event) {
  Choice& choice = choices_[static_cast<size_t>(event.choice)];
  if (choice.finished) {  // the engine ran on past a stop string
    std::lock_guard<std::mutex> lock(mutex_);
    --waiting_tokens_;
    return;
  }
  const bool is_stop =
      std::binary_search(config_.stop_ids.begin(), config_.stop_ids.end(), event.token.token);
  std::string text = NewText(&choice, event.token.token, is_stop);
  ++choice.tokens;
  EmitDelta(event.choice, &event, PartsOf(&choice, std::move(text)));
  if (!choice.stop_string.empty()) {
    EmitFinished(event.choice, v1::FINISH_REASON_STOP, -1);
    host_->StopChoice(event.choice);
  }
}

std::string ResponseStream::NewText(Choice* choice, int32_t token, bool is_stop) {
  if (!choice->detokenizer) return "";
  // The text of a token that stops is the model's punctuation, not its answer.
  std::string text;
  if (!is_stop || config_.include_stop) text = choice->detokenizer->Push(token);
  if (choice->answer) choice->answer->OnToken(text.size());
  if (text.empty()) return text;
  if (!choice->matcher || choice->tokens < config_.min_tokens) return text;
  text::StopMatcher::Result result = choice->matcher->Push(text);
  if (result.stop_index >= 0) {
    choice->stop_string = config_.stop_strings[static_cast<size_t>(result.stop_index)];
  }
  return std::move(result.text);
}

std::string ResponseStream::RestOfText(Choice* choice) {
  if (!choice->detokenizer) return "";
  std::string text = choice->detokenizer->Flush();
  if (!choice->matcher) return text;
  text::StopMatcher::Result result = choice->matcher->Push(text);
  if (result.stop_index >= 0) {
    choice->stop_string = config_.stop_strings[static_cast<size_t>(result.stop_index)];
    return std::move(result.text);
  }
  return result.text + choice->matcher->Flush();
}

AnswerParts ResponseStream::PartsOf(Choice* choice, std::string text) {
  if (choice->answer) return choice->answer->Feed(text);
  AnswerParts parts;
  parts.text = std::move(text);
  return parts;
}

void ResponseStream::HandleChoiceFinished(const scheduler::ChoiceFinished& finished) {
  Choice& choice = choices_[static_cast<size_t>(finished.choice)];
  if (choice.finished) return;
  std::string rest = RestOfText(&choice);
  if (!rest.empty()) EmitDelta(finished.choice, nullptr, PartsOf(&choice, std::move(rest)));
  if (ToStatus(finished.reason, 0).ok()) {
    const bool by_string = !choice.stop_string.empty();
    EmitFinished(finished.choice, by_string ? v1::FINISH_REASON_STOP : ToProto(finished.reason),
                 by_string ? -1 : finished.stop_id);
  } else {
    worst_ = finished.reason;
    EmitFinished(finished.choice, ToProto(finished.reason), -1);
  }
}

void ResponseStream::HandlePromptLogprobs(const std::vector<scheduler::TokenLogprob>& logprobs) {
  for (size_t begin = 0; begin < logprobs.size(); begin += kLogprobsPerEvent) {
    v1::GenerateEvent event;
    const size_t end = std::min(logprobs.size(), begin + kLogprobsPerEvent);
    for (size_t i = begin; i < end; ++i) AddLogprob(logprobs[i], event.mutable_prompt_logprobs());
    Emit(std::move(event));
  }
}

void ResponseStream::HandleRequestFinished(const scheduler::RequestTimes& times) {
  v1::GenerateEvent event;
  v1::Usage* usage = event.mutable_finished()->mutable_usage();
  usage->set_prompt_tokens(prompt_tokens_);
  int32_t completion = 0;
  for (const Choice& choice : choices_) completion += choice.tokens;
  usage->set_completion_tokens(completion);
  v1::Timings* timings = event.mutable_finished()->mutable_timings();
  const auto between = [](int64_t from, int64_t to) {
    return from != 0 && to != 0 ? std::max<int64_t>(0, to - from) : 0;
  };
  timings->set_queue_us(between(times.arrived_us, times.started_us));
  timings->set_prefill_us(between(times.started_us, times.first_token_us));
  timings->set_decode_us(between(times.first_token_us, times.finished_us));
  const int64_t received_us = config_.received_us != 0 ? config_.received_us : times.arrived_us;
  timings->set_total_us(between(received_us, times.finished_us));
  Emit(std::move(event));

  std::lock_guard<std::mutex> lock(mutex_);
  end_ = End{ToStatus(worst_, max_waiting_tokens_), times, false};
  if (worst_ != FinishReason::kError || config_.constraint == nullptr) return;
  const std::string why = config_.constraint->failure();
  if (why.empty()) return;
  end_->status =
      InvalidField("constraint", absl::StrCat("the answer could not be continued under it: ", why));
}

// The delta of `choice` that the writer has not taken, or a new one at the end.
v1::Delta* ResponseStream::DeltaFor(int32_t choice) {
  const auto open = open_delta_.find(choice);
  if (open != open_delta_.end() && open->second >= taken_) {
    return outgoing_[static_cast<size_t>(open->second - taken_)].event.mutable_delta();
  }
  open_delta_[choice] = taken_ + static_cast<int64_t>(outgoing_.size());
  v1::Delta* delta = outgoing_.emplace_back().event.mutable_delta();
  delta->set_choice(choice);
  return delta;
}

void ResponseStream::EmitDelta(int32_t choice, const scheduler::TokenEvent* event,
                               AnswerParts parts) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (event != nullptr) ++completion_tokens_;
  const bool carries = (event != nullptr && (config_.token_ids || config_.logprobs >= 0)) ||
                       (config_.text && !parts.empty());
  if (discard_ || !carries) {
    if (event != nullptr) --waiting_tokens_;
    return;
  }
  v1::Delta* delta = DeltaFor(choice);
  if (config_.text) std::move(parts).AppendTo(delta);
  if (event == nullptr) return;
  if (config_.token_ids) delta->add_token_ids(event->token.token);
  if (config_.logprobs >= 0) AddLogprob(event->token, delta->mutable_logprobs());
  outgoing_[static_cast<size_t>(open_delta_[choice] - taken_)].tokens += 1;
}

void ResponseStream::EmitFinished(int32_t choice, v1::FinishReason reason, int32_t stop_id) {
  Choice& state = choices_[static_cast<size_t>(choice)];
  state.finished = true;
  if (state.answer) EmitDelta(choice, nullptr, state.answer->Finish());
  v1::GenerateEvent event;
  v1::ChoiceFinished* finished = event.mutable_choice_finished();
  finished->set_choice(choice);
  finished->set_reason(reason);
  finished->set_completion_tokens(state.tokens);
  if (state.answer) {
    finished->set_tool_calls(state.answer->tool_calls());
    finished->set_reasoning_tokens(state.answer->reasoning_tokens());
  }
  if (reason == v1::FINISH_REASON_STOP) {
    if (stop_id >= 0) {
      finished->set_stop_token_id(stop_id);
    } else if (!state.stop_string.empty()) {
      finished->set_stop_string(state.stop_string);
    }
  }
  Emit(std::move(event));
}

void ResponseStream::Emit(v1::GenerateEvent event) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!discard_) outgoing_.push_back({std::move(event), 0});
}

void ResponseStream::Add(v1::GenerateEvent event) { Emit(std::move(event)); }

bool ResponseStream::Take(v1::GenerateEvent* event) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (outgoing_.empty()) return false;
  *event = std::move(outgoing_.front().event);
  waiting_tokens_ -= outgoing_.front().tokens;
  outgoing_.pop_front();
  ++taken_;
  return true;
}

void ResponseStream::Discard() {
  std::lock_guard<std::mutex> lock(mutex_);
  discard_ = true;
  for (const Outgoing& outgoing : outgoing_) waiting_tokens_ -= outgoing.tokens;
  taken_ += static_cast<int64_t>(outgoing_.size());
  outgoing_.clear();
}

std::optional<ResponseStream::End> ResponseStream::ended() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::optional<End> end = end_;
  if (end) end->more = !outgoing_.empty();
  return end;
}

int64_t ResponseStream::completion_tokens() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return completion_tokens_;
}

}  // namespace weir::server
