// FakeExecutor: an Executor without a model, for tests of whatever stands above it. Its tokens are
// hashes of everything that a sequence's memory holds, so any mix-up of slots, pages, forks,
// positions, fed tokens or order shows as a wrong token. It aborts on any plan that breaks the
// contract of scheduler/executor.h as far as it can be seen from this side.
//
// Steps run when they are waited for, not when they are submitted, and read the plan's spans only
// then: memory that is freed or changed too early is noticed.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/types/span.h"
#include "core/clock.h"
#include "scheduler/executor.h"
#include "scheduler/request.h"
#include "scheduler/token_sink.h"

namespace weir::testing {

// Small limits that suit most tests: 8 slots, 64 pages of 4 tokens, 32 tokens a step.
scheduler::ExecutorLimits SmallLimits();

struct FakeOptions {
  scheduler::ExecutorLimits limits = SmallLimits();
  // A step takes step_us + tokens * token_us: on `clock` when there is one, else as real sleep.
  VirtualClock* clock = nullptr;
  int64_t step_us = 0;
  int64_t token_us = 0;
};

// A request whose logit_bias has an entry for this id gets "every logit NaN" at the draw that the
// bias gives.
inline constexpr int32_t kNanAtDraw = -7;

class FakeExecutor final : public scheduler::Executor {
 public:
  explicit FakeExecutor(const FakeOptions& options);

  const scheduler::ExecutorLimits& limits() const override { return options_.limits; }
  void Submit(const scheduler::StepPlan& plan) override;
  scheduler::StepResult Wait() override;
  void Copy(absl::Span<const std::pair<int32_t, int32_t>> slots,
            absl::Span<const std::pair<int32_t, int32_t>> pages) override;
  void CopyOut(int32_t slot, absl::Span<const int32_t> pages, std::byte* to) override;
  void CopyIn(int32_t slot, absl::Span<const int32_t> pages, const std::byte* from) override;

  // Changes how long later steps take.
  void SetTimes(int64_t step_us, int64_t token_us);

  struct Seen {
    int64_t steps = 0;
    int64_t tokens = 0;
    int64_t copied_slots = 0;
    int64_t copied_pages = 0;
    int64_t fed = 0;             // inputs with feed_previous
    int32_t most_sequences = 0;  // in a step
    int32_t most_in_flight = 0;
  };
  const Seen& seen() const { return seen_; }
  // What the last submitted step held: {tokens, sampled} of each sequence.
  const std::vector<std::pair<int32_t, bool>>& last_step() const { return last_step_; }

 private:
  struct Slot {
    uint64_t hash = 0;
    int32_t position = 0;
  };
  struct Planned {  // what a slot will be once all that was submitted has run
    scheduler::SequenceId owner = 0;
    int32_t position = 0;
  };
  struct Step {
    scheduler::StepPlan plan;
    // Copies of what the spans pointed to, compared when the step runs.
    std::vector<std::vector<int32_t>> tokens, pages, generated;
  };
  struct Copies {
    std::vector<std::pair<int32_t, int32_t>> slots, pages;
  };

  void CheckInput(const scheduler::SequenceInput& input) const;
  void CheckMemory(const scheduler::SequenceInput& input) const;
  void RunUntilStep();
  void RunCopies(const Copies& copies);
  scheduler::StepResult RunStep(const Step& step);
  scheduler::SequenceOutput RunSequence(const scheduler::SequenceInput& input);
  uint64_t KeyAt(const scheduler::SequenceInput& input, const Slot& slot) const;

  FakeOptions options_;
  std::vector<Slot> slots_;
  std::vector<std::vector<uint64_t>> pages_;     // [pages][page_tokens]
  std::vector<Planned> planned_;                 // [slots]
  std::deque<std::variant<Step, Copies>> work_;  // submitted, not yet run; oldest first
  int32_t in_flight_ = 0;
  std::unordered_map<scheduler::SequenceId, bool> previous_step_;  // submitted last -> sampled
  std::unordered_map<scheduler::SequenceId, int32_t> sampled_;     // by the step that ran last
  Seen seen_;
  std::vector<std::pair<int32_t, bool>> last_step_;
};

// What a request gets when it runs alone and nothing ends it early.
struct ExpectedChoice {
  std::vector<int32_t> tokens;
  scheduler::FinishReason reason = scheduler::FinishReason::kStop;
  int32_t stop_id = -1;
};
ExpectedChoice Expected(const scheduler::Request& request, int32_t choice,
                        const scheduler::ExecutorLimits& limits);
// Log probabilities of prompt[1..] as the fake gives them.
std::vector<scheduler::TokenLogprob> ExpectedPromptLogprobs(
    const scheduler::Request& request, const scheduler::ExecutorLimits& limits);

}  // namespace weir::testing
