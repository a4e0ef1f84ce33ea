// A request as the scheduler sees it: token ids and plain values. Made by the server from a
// validated call; the scheduler never sees text.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "scheduler/sampling_params.h"
#include "scheduler/token_constraint.h"

namespace weir::scheduler {

class TokenSink;

using RequestId = uint64_t;

enum class FinishReason : unsigned char {
  kStop,        // a stop id (eos included), or the server saw a stop string
  kLength,      // max_tokens, or the model's longest sequence
  kCancelled,   // by the client, or its stream went away
  kDeadline,    // the call's deadline passed, in the queue or while running
  kSlowReader,  // its sink was full
  kDrained,     // the server shut down before it could finish
  kError,       // no token could be chosen (every logit NaN, or none fits the constraint)
};

struct Request {
  RequestId id = 0;               // unique for the life of the process
  std::vector<int32_t> prompt;    // at least one id, all in range
  int32_t num_choices = 1;        // n: sequences that share the prompt
  SamplingParams sampling;        // choice i draws with seed + i
  int32_t max_tokens = 0;         // per choice; > 0
  int32_t min_tokens = 0;         // below it, stop ids cannot be chosen
  std::vector<int32_t> stop_ids;  // includes the model's eos unless ignored
  int32_t prompt_logprobs = -1;   // -1: none; n: of every prompt token but the first, n best
  // Null: the answer may be anything. Else it ends where the constraint is complete, even below
  // min_tokens; stop_ids hold the ids that end it.
  std::shared_ptr<const ConstraintSource> constraint;
  int32_t priority = 0;     // higher first; equal: first come, first served
  int64_t deadline_us = 0;  // on the scheduler's clock; 0: none
  std::shared_ptr<TokenSink> sink;
};

}  // namespace weir::scheduler
