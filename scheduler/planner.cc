#include "scheduler/planner.h"

#include <algorithm>

namespace weir::scheduler {
namespace {

// Kernels run prompts in blocks; a long piece ends where a block does, so that no block is run in
// part.
constexpr int32_t kBlockTokens = 64;
// Shorter pieces take what they are given: rounding would cost them too much of it.
constexpr int32_t kAlignFromTokens = 256;

int32_t PieceOf(const RunningView& view, int32_t limit) {
  if (view.prefill_left <= limit) return view.prefill_left;
  if (limit < kAlignFromTokens) return limit;
  return limit - (view.position + limit) % kBlockTokens;
}

// What decodes leave to prompts at the least.
int32_t KeptForPrefill(int32_t budget, bool prefill_waits) {
  if (!prefill_waits || budget < 2) return 0;
  return std::max(budget / 8, 1);
}

}  // namespace

std::vector<int32_t> PlanAdmission(absl::Span<const WaitingView> waiting, cache::MemoryNeed free) {
  std::vector<int32_t> admitted;
  int32_t may_pass = static_cast<int32_t>(waiting.size());
  for (int32_t place = 0; place < static_cast<int32_t>(waiting.size()) && may_pass > 0; ++place) {
    const WaitingView& view = waiting[place];
    if (!cache::Fits(view.need, free)) {
      may_pass = std::min(may_pass, view.passes_left);
      continue;
    }
    admitted.push_back(place);
    free.slots -= view.need.slots;
    free.pages -= view.need.pages;
    --may_pass;
  }
  return admitted;
}

StepDecision PlanStep(absl::Span<const RunningView> running, const StepBudget& budget) {
  std::vector<int32_t> decodes;
  std::vector<int32_t> prefills;
  for (int32_t i = 0; i < static_cast<int32_t>(running.size()); ++i) {
    if (!running[i].ready) continue;
    (running[i].prefill_left > 0 ? prefills : decodes).push_back(i);
  }
  StepDecision decision;
  const int32_t room = std::min(budget.tokens, budget.sequences);
  const int32_t fit = room - KeptForPrefill(room, !prefills.empty());
  if (static_cast<int32_t>(decodes.size()) > fit) {
    std::stable_sort(decodes.begin(), decodes.end(), [&](int32_t a, int32_t b) {
      return running[a].last_step < running[b].last_step;
    });
    decodes.resize(fit);
  }
  for (const int32_t index : decodes) decision.work.push_back({index, 1});
  decision.decodes = static_cast<int32_t>(decodes.size());

  std::stable_sort(prefills.begin(), prefills.end(),
                   [&](int32_t a, int32_t b) { return running[a].priority > running[b].priority; });
  int32_t tokens = budget.tokens - decision.decodes;
  const bool mixed = decision.decodes > 0 && budget.mixed_prefill < tokens;
  if (mixed) tokens = std::max(budget.mixed_prefill, 1);
  int32_t sequences = budget.sequences - decision.decodes;
  for (const int32_t index : prefills) {
    if (sequences == 0 || tokens == 0) {
      decision.prefill_was_cut |= mixed && tokens == 0;
      break;
    }
    const int32_t piece = PieceOf(running[index], std::min(tokens, budget.chunk_tokens));
    decision.prefill_was_cut |=
        mixed && piece < running[index].prefill_left && piece < budget.chunk_tokens;
    decision.work.push_back({index, piece});
    decision.prefill_tokens += piece;
    tokens -= piece;
    --sequences;
  }
  return decision;
}

}  // namespace weir::scheduler
