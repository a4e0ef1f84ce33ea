// Executor: the seam between scheduling and the model. Implemented in model/ (and by a fake in
// tests/sim); the scheduler knows nothing else of the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "cache/layout.h"
#include "core/status.h"
#include "scheduler/sampling_params.h"

namespace weir::scheduler {

using SequenceId = uint64_t;

// What an executor was built with; constant for its life. Everything has a limit.
struct ExecutorLimits {
  int32_t vocab_size = 0;
  int32_t max_position = 0;        // longest sequence, prompt and answer together
  int32_t max_step_tokens = 0;     // tokens in one step, all sequences together
  int32_t max_step_sequences = 0;  // sequences in one step
  int32_t max_in_flight = 1;       // steps submitted and not yet waited for
  cache::StateLayout layout;
  cache::CacheSize cache;
};

// Which ids a constrained sequence may choose from: not yet known when its step is submitted, as it
// depends on the token before.
class PendingMask {
 public:
  virtual ~PendingMask() = default;
  // Blocks until the mask of token `draw` of the answer is made: bit id % 32 of entry id / 32 is
  // set where `id` may be chosen. None set: none may. Empty: the sequence has ended, and what is
  // chosen will be dropped. Valid until the step's result has been taken. Masks are made once the
  // step before has been waited for and its result taken: never call it inside Submit for the same
  // step.
  virtual absl::Span<const uint32_t> Await(uint64_t draw) = 0;
};

// One sequence's part of a step. The spans stay valid until Wait() has returned the step's result.
struct SequenceInput {
  SequenceId sequence = 0;
  int32_t slot = -1;                 // >= 0
  absl::Span<const int32_t> pages;   // block table; covers position + tokens.size() entries
  int32_t position = 0;              // tokens the state has seen; 0: the state starts from zero
  absl::Span<const int32_t> tokens;  // what to run now, at least one
  // tokens has one entry, to be replaced by the token that the same sequence sampled in the step
  // submitted just before this one (which may still be in flight). If nothing could be chosen
  // there, any token will do: the result is dropped.
  bool feed_previous = false;

  bool sample = false;  // choose a token from the logits of the last of `tokens`
  const SamplingParams* sampling = nullptr;  // set when `sample`
  uint64_t draw = 0;  // index of the token chosen here: counter of the generator
  // History for penalties, set when sampling->needs_history(). With feed_previous the executor adds
  // the fed token to `generated` itself.
  absl::Span<const int32_t> prompt;
  absl::Span<const int32_t> generated;
  absl::Span<const int32_t> forbidden;  // never chosen here (stop ids below min_tokens)
  // Set for constrained sequences that `sample`. To be awaited (for `draw`) just before choosing,
  // with the forward pass under way or done.
  PendingMask* mask = nullptr;

  // >= 0: log probabilities of tokens[1..] and of `next_prompt_token` under the rows before them,
  // with this many best entries each.
  int32_t prompt_logprobs = -1;
  int32_t next_prompt_token = -1;  // the prompt's token after `tokens`; -1: none
  bool all_logits = false;         // return the logits of every token (checks, not serving)
};

struct StepPlan {
  std::vector<SequenceInput> sequences;  // not empty; distinct sequences and slots
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0.0f;
  std::vector<std::pair<int32_t, float>> top;  // best first
};

struct SequenceOutput {
  SequenceId sequence = 0;
  TokenLogprob chosen;  // token -1: not sampled, or nothing could be sampled (every logit NaN)
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<float> logits;  // [tokens, vocab] when all_logits
};

struct StepResult {
  std::vector<SequenceOutput> outputs;  // one per SequenceInput, in order
  int64_t duration_us = 0;
  int64_t mask_wait_us = -1;  // stood still for masks; -1: there were none
};

// One thread (the engine's) calls everything. Calls take effect in call order.
class Executor {
 public:
  virtual ~Executor() = default;

  virtual const ExecutorLimits& limits() const = 0;

  // Starts a step. REQUIRES: fewer than max_in_flight steps in flight; the plan within the limits.
  virtual void Submit(const StepPlan& plan) = 0;
  // Blocks for the oldest step in flight. REQUIRES: one is in flight.
  virtual StepResult Wait() = 0;

  // Copies whole slots and whole pages after all steps submitted before: forks. {from, to}.
  virtual void Copy(absl::Span<const std::pair<int32_t, int32_t>> slots,
                    absl::Span<const std::pair<int32_t, int32_t>> pages) = 0;

  // One sequence's whole state to and from host memory of layout.slot_bytes + pages.size() *
  // layout.page_bytes bytes, slot first, then the pages in order. Waits for steps in flight.
  virtual void CopyOut(int32_t slot, absl::Span<const int32_t> pages, std::byte* to) = 0;
  virtual void CopyIn(int32_t slot, absl::Span<const int32_t> pages, const std::byte* from) = 0;
};

}  // namespace weir::scheduler
