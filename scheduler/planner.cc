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

// The prompt tokens of one step and who gets them.
class PrefillShare {
 public:
  // `prefills`: indices into `running`, by priority, then order.
  PrefillShare(absl::Span<const RunningView> running, absl::Span<const int32_t> prefills,
               int32_t tokens, int32_t sequences, int32_t chunk_tokens)
      : running_(running),
        prefills_(prefills),
        tokens_(tokens),
        sequences_(sequences),
        chunk_tokens_(chunk_tokens),
        given_(prefills.size(), 0) {}

  // REQUIRES: somebody waits.
  void Divide() {
    std::vector<size_t> shorter;
    for (size_t i = 1; i < prefills_.size(); ++i) {
      if (View(i).priority == View(0).priority && View(i).prefill_left < View(0).prefill_left) {
        shorter.push_back(i);
      }
    }
    std::stable_sort(shorter.begin(), shorter.end(), [this](size_t a, size_t b) {
      return View(a).prefill_left < View(b).prefill_left;
    });
    int32_t half = tokens_ / 2;
    for (const size_t i : shorter) {
      if (half == 0 || sequences_ == 1) break;
      half -= Give(i, half);
    }
    Give(0, tokens_);
    for (size_t i = 1; i < prefills_.size(); ++i) Give(i, tokens_);
  }

  // Appends the pieces; returns their tokens.
  int32_t AppendTo(std::vector<Work>* work) const {
    int32_t tokens = 0;
    for (size_t i = 0; i < prefills_.size(); ++i) {
      if (given_[i] == 0) continue;
      work->push_back({prefills_[i], PieceOf(View(i), given_[i])});
      tokens += work->back().tokens;
    }
    return tokens;
  }

 private:
  const RunningView& View(size_t i) const { return running_[prefills_[i]]; }

  // Up to `limit` tokens more for prefills_[i]; returns how many.
  int32_t Give(size_t i, int32_t limit) {
    const int32_t wanted = std::min(View(i).prefill_left, chunk_tokens_) - given_[i];
    const int32_t more = std::min({limit, tokens_, wanted});
    if (more <= 0 || (given_[i] == 0 && sequences_ == 0)) return 0;
    if (given_[i] == 0) --sequences_;
    given_[i] += more;
    tokens_ -= more;
    return more;
  }

  const absl::Span<const RunningView> running_;
  const absl::Span<const int32_t> prefills_;
  int32_t tokens_;
  int32_t sequences_;
  const int32_t chunk_tokens_;
  std::vector<int32_t> given_;  // as prefills_
};

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
  if (prefills.empty()) return decision;
  int32_t tokens = budget.tokens - decision.decodes;
  const bool mixed = decision.decodes > 0 && budget.mixed_prefill < tokens;
  if (mixed) tokens = std::max(budget.mixed_prefill, 1);
  PrefillShare share(running, prefills, tokens, budget.sequences - decision.decodes,
                     budget.chunk_tokens);
  share.Divide();
  decision.prefill_tokens = share.AppendTo(&decision.work);
  if (!mixed) return decision;
  int32_t wanted = 0;
  for (const int32_t index : prefills) {
    wanted += std::min(running[index].prefill_left, budget.chunk_tokens);
    decision.prefill_was_cut |= wanted > tokens;
    if (decision.prefill_was_cut) break;
  }
  return decision;
}

}  // namespace weir::scheduler
