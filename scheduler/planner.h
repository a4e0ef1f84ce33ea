// The planner: what to admit and what the next step runs. Pure functions of plain values; they
// change nothing, see no clock, and are the whole of the scheduling policy (docs/scheduler.md).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "cache/sequence_cache.h"

namespace weir::scheduler {

struct WaitingView {
  cache::MemoryNeed need;
  int32_t passes_left = 0;  // how many later requests may still be admitted before it
};

// Which of `waiting` (in the queue's order) to admit now into `free` memory: ascending places. Each
// is admitted if it fits; one that does not fit lets at most passes_left later ones pass.
std::vector<int32_t> PlanAdmission(absl::Span<const WaitingView> waiting, cache::MemoryNeed free);

// One running sequence. Those that must not run now (ended, waiting for their fork, or with a
// choice in flight that cannot be fed) are `ready` = false.
struct RunningView {
  bool ready = false;
  int32_t prefill_left = 0;  // prompt tokens to run before it decodes; 0: it decodes, one token
  int32_t position = 0;      // tokens already run
  int32_t priority = 0;
  int64_t last_step = 0;  // number of the step that last ran it; 0: none yet
};

struct StepBudget {
  int32_t tokens = 0;         // of a step
  int32_t sequences = 0;      // of a step
  int32_t chunk_tokens = 0;   // of one prompt in a step
  int32_t mixed_prefill = 0;  // prefill tokens of a step that also decodes
};

struct Work {
  int32_t index = 0;   // into `running`
  int32_t tokens = 0;  // how many to run
};

struct StepDecision {
  std::vector<Work> work;        // decodes first, then prefills; empty: nothing can run
  int32_t decodes = 0;           // of work
  int32_t prefill_tokens = 0;    // of work
  bool prefill_was_cut = false;  // more prefill waits than mixed_prefill let in
};

// Decodes come first, least recently run first when not all of them fit. When decodes alone would
// fill the step, an eighth of it (at least one token of a budget of more than one) is kept for
// prompts that wait, so that neither starves the other.
//
// Then prompts in pieces, within what is left and, beside decodes, within mixed_prefill: the one in
// front (highest priority, then first in `running`) gets at least half of that, all of it when no
// shorter one of its priority waits; the other half is for those, shortest first; what remains goes
// to the rest in order. So a short prompt does not wait for a long one, nor a long one for many
// short.
StepDecision PlanStep(absl::Span<const RunningView> running, const StepBudget& budget);

}  // namespace weir::scheduler
