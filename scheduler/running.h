// What the engine thread knows of a request that has been admitted. Plain data; every field belongs
// to the engine thread. Changed only where a step is built and submitted (engine_loop.cc) and where
// its result is committed or a choice ends (commit.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cache/sequence_cache.h"
#include "scheduler/executor.h"
#include "scheduler/mask_pool.h"
#include "scheduler/request.h"
#include "scheduler/token_sink.h"

namespace weir::scheduler {

// One choice of a request.
struct Sequence {
  SequenceId id = 0;
  int32_t choice = 0;
  SamplingParams sampling;  // of the request, with seed + choice
  cache::Reservation memory;
  std::shared_ptr<SequenceMask> mask;  // null: unconstrained
  // What its sink was given. Its capacity is max_tokens from the start: spans into it stay valid.
  std::vector<int32_t> generated;

  int32_t position = 0;   // tokens that the submitted steps run
  int32_t drawn = 0;      // tokens that the submitted steps choose; >= generated.size()
  int64_t last_step = 0;  // number of the last step that runs it; 0: none
  int32_t in_flight = 0;  // submitted steps that touch it and have not been waited for
  bool finished = false;  // its sink heard OnChoiceFinished
  int64_t last_token_us = 0;

  int32_t uncommitted() const { return drawn - static_cast<int32_t>(generated.size()); }
};

// Prompt tokens that are run once, in the memory of choice 0: the whole prompt for a single choice;
// all but the last for several, which then fork, and each runs the last one as its first decode.
inline int32_t PrefixTokens(const Request& request) {
  const int32_t prompt = static_cast<int32_t>(request.prompt.size());
  return request.num_choices == 1 ? prompt : prompt - 1;
}

// What the choices of a request will ever hold. max_tokens is already bounded by the model's
// longest sequence.
inline cache::FamilyShape ShapeOf(const Request& request) {
  return {request.num_choices, static_cast<int64_t>(request.prompt.size()) + request.max_tokens,
          PrefixTokens(request)};
}

struct RunningRequest {
  Request request;
  RequestTimes times;
  std::vector<Sequence> sequences;  // one per choice; fixed after admission

  int32_t prefix_tokens = 0;  // PrefixTokens(request)
  bool forked =
      false;  // the other choices stand at prefix_tokens; true from the start for one choice
  bool wants_prompt_logprobs = false;  // asked for and not yet delivered
  std::vector<TokenLogprob> prompt_logprobs;

  int32_t unfinished = 0;                      // choices
  bool ended = false;                          // its sink heard OnRequestFinished and is gone
  FinishReason outcome = FinishReason::kStop;  // of the metrics: the worst of its choices

  int32_t prompt_tokens() const { return static_cast<int32_t>(request.prompt.size()); }
};

// One sequence's part of a step in flight.
struct StepEntry {
  RunningRequest* request = nullptr;
  Sequence* sequence = nullptr;
  bool sampled = false;
};

struct StepInFlight {
  int64_t number = 0;
  StepPlan plan;                   // its spans point into prompts, generated ids and block tables
  std::vector<StepEntry> entries;  // as plan.sequences
  int32_t decodes = 0;
  int32_t prefill_tokens = 0;
  bool prefill_was_cut = false;
  int64_t submitted_us = 0;
};

}  // namespace weir::scheduler
