// TokenSink: where a request's tokens go. Implemented in server/; called on the engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/executor.h"
#include "scheduler/request.h"

namespace weir::scheduler {

struct TokenEvent {
  int32_t choice = 0;
  TokenLogprob token;  // logprob fields set when the request asked for them
};

struct ChoiceFinished {
  int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  int32_t stop_id = -1;  // the id that stopped it (also delivered as its last TokenEvent), or -1
  int32_t generated_tokens = 0;
};

// Times of a request on the scheduler's clock, in microseconds; 0: did not happen.
struct RequestTimes {
  int64_t arrived_us = 0;
  int64_t started_us = 0;      // first step that ran any of it
  int64_t first_token_us = 0;
  int64_t finished_us = 0;
};

class TokenSink {
 public:
  virtual ~TokenSink() = default;

  // Each call returns at once; none blocks. Return false when the sink's bound is reached: the
  // request is then cancelled with kSlowReader.
  virtual bool OnPromptLogprobs(std::vector<TokenLogprob> logprobs) = 0;  // once, if asked for
  virtual bool OnToken(const TokenEvent& event) = 0;
  virtual void OnChoiceFinished(const ChoiceFinished& finished) = 0;  // once per choice
  // Last call for this request, exactly once, after every choice has finished.
  virtual void OnRequestFinished(const RequestTimes& times) = 0;
};

}  // namespace weir::scheduler
