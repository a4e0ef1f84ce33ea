// RecordingSink: a TokenSink that keeps what it is given and checks the order of its calls. Any
// thread may read; a capacity makes it a slow reader.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "scheduler/token_sink.h"

namespace weir::testing {

class RecordingSink final : public scheduler::TokenSink {
 public:
  // Takes `capacity` tokens in all, then says that it is full.
  explicit RecordingSink(int64_t capacity = INT64_MAX) : capacity_(capacity) {}

  bool OnPromptLogprobs(std::vector<scheduler::TokenLogprob> logprobs) override;
  bool OnToken(const scheduler::TokenEvent& event) override;
  void OnChoiceFinished(const scheduler::ChoiceFinished& finished) override;
  void OnRequestFinished(const scheduler::RequestTimes& times) override;

  // Called after each token that was taken, on the engine thread.
  void SetOnToken(std::function<void(const scheduler::TokenEvent&)> on_token);

  void WaitFinished() const;
  bool finished() const;
  // Sentences about calls out of order; empty: none.
  std::vector<std::string> faults() const;
  std::vector<int32_t> tokens(int32_t choice) const;
  std::vector<scheduler::TokenEvent> events() const;
  scheduler::ChoiceFinished choice(int32_t choice) const;  // REQUIRES: it has finished
  bool choice_finished(int32_t choice) const;
  scheduler::RequestTimes times() const;
  int32_t prompt_logprobs_calls() const;
  std::vector<scheduler::TokenLogprob> prompt_logprobs() const;

 private:
  const int64_t capacity_;
  mutable std::mutex mutex_;
  mutable std::condition_variable done_;
  std::function<void(const scheduler::TokenEvent&)> on_token_;
  std::vector<std::string> faults_;
  std::vector<scheduler::TokenEvent> events_;
  std::map<int32_t, scheduler::ChoiceFinished> choices_;
  std::vector<scheduler::TokenLogprob> prompt_logprobs_;
  int32_t prompt_logprobs_calls_ = 0;
  scheduler::RequestTimes times_;
  bool finished_ = false;
};

}  // namespace weir::testing
