#include "tests/support/recording_sink.h"

#include <string>
#include <utility>

namespace weir::testing {

using scheduler::ChoiceFinished;
using scheduler::RequestTimes;
using scheduler::TokenEvent;
using scheduler::TokenLogprob;

bool RecordingSink::OnPromptLogprobs(std::vector<TokenLogprob> logprobs) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (finished_) faults_.push_back("prompt logprobs after the end");
  if (!events_.empty()) faults_.push_back("prompt logprobs after a token");
  if (prompt_logprobs_calls_++ > 0) faults_.push_back("prompt logprobs twice");
  prompt_logprobs_ = std::move(logprobs);
  return true;
}

bool RecordingSink::OnToken(const TokenEvent& event) {
  std::function<void(const TokenEvent&)> on_token;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) faults_.push_back("a token after the end");
    if (choices_.contains(event.choice)) faults_.push_back("a token after its choice finished");
    if (static_cast<int64_t>(events_.size()) >= capacity_) return false;
    events_.push_back(event);
    on_token = on_token_;
  }
  if (on_token) on_token(event);
  return true;
}

void RecordingSink::OnChoiceFinished(const ChoiceFinished& finished) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (finished_) faults_.push_back("a choice finished after the end");
  if (!choices_.emplace(finished.choice, finished).second)
    faults_.push_back("a choice finished twice");
}

void RecordingSink::OnRequestFinished(const RequestTimes& times) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (finished_) faults_.push_back("finished twice");
  finished_ = true;
  times_ = times;
  done_.notify_all();
}

void RecordingSink::SetOnToken(std::function<void(const TokenEvent&)> on_token) {
  std::lock_guard<std::mutex> lock(mutex_);
  on_token_ = std::move(on_token);
}

void RecordingSink::WaitFinished() const {
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return finished_; });
}

bool RecordingSink::finished() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return finished_;
}

std::vector<std::string> RecordingSink::faults() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return faults_;
}

std::vector<int32_t> RecordingSink::tokens(int32_t choice) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int32_t> tokens;
  for (const TokenEvent& event : events_) {
    if (event.choice == choice) tokens.push_back(event.token.token);
  }
  return tokens;
}

std::vector<TokenEvent> RecordingSink::events() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return events_;
}

ChoiceFinished RecordingSink::choice(int32_t choice) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return choices_.at(choice);
}

bool RecordingSink::choice_finished(int32_t choice) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return choices_.contains(choice);
}

RequestTimes RecordingSink::times() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return times_;
}

int32_t RecordingSink::prompt_logprobs_calls() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return prompt_logprobs_calls_;
}

std::vector<TokenLogprob> RecordingSink::prompt_logprobs() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return prompt_logprobs_;
}

}  // namespace weir::testing
