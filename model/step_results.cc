#include "model/step_results.h"

#include <algorithm>
#include <chrono>

namespace weir::model {

using scheduler::SequenceInput;
using scheduler::StepResult;
using scheduler::TokenLogprob;

namespace {
// How many top entries a request for log probabilities asks for; -1 (none asked for): 0.
size_t Entries(int32_t logprobs) { return static_cast<size_t>(std::max(0, logprobs)); }
}  // namespace

bool WantsAllRows(const SequenceInput& sequence) {
  return sequence.all_logits || sequence.prompt_logprobs >= 0;
}

std::vector<WantedRow> AllRowsOf(const SequenceInput& sequence, size_t index, int32_t first_kept) {
  std::vector<WantedRow> rows;
  for (size_t t = 0; t < sequence.tokens.size(); ++t) {
    rows.push_back({first_kept + static_cast<int32_t>(t), index, -1});
  }
  return rows;
}

std::vector<WantedRow> PromptRows(absl::Span<const SequenceInput> sequences,
                                  absl::Span<const int32_t> first_kept) {
  std::vector<WantedRow> rows;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceInput& sequence = sequences[i];
    if (sequence.prompt_logprobs < 0) continue;
    for (size_t t = 0; t < sequence.tokens.size(); ++t) {
      const bool last = t + 1 == sequence.tokens.size();
      const int32_t target = last ? sequence.next_prompt_token : sequence.tokens[t + 1];
      if (target >= 0) rows.push_back({first_kept[i] + static_cast<int32_t>(t), i, target});
    }
  }
  return rows;
}

kernels::SampleRow SampleRowOf(const SequenceInput& sequence) {
  const scheduler::SamplingParams& params = *sequence.sampling;
  kernels::SampleRow row;
  row.temperature = params.temperature;
  row.top_k = params.top_k;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.seed = params.seed;
  row.draw = sequence.draw;
  row.logit_bias = params.logit_bias;
  row.forbidden = sequence.forbidden;
  row.num_top_logprobs = params.logprobs;
  if (params.needs_history()) {
    row.prompt = sequence.prompt;
    row.generated = sequence.generated;
  }
  return row;
}

int64_t AwaitMasks(absl::Span<const SequenceInput> sequences, absl::Span<const size_t> sampled,
                   absl::Span<kernels::SampleRow> rows) {
  const auto begin = std::chrono::steady_clock::now();
  bool any = false;
  for (size_t r = 0; r < rows.size(); ++r) {
    const SequenceInput& sequence = sequences[sampled[r]];
    if (sequence.mask == nullptr) continue;
    rows[r].allowed_mask = sequence.mask->Await(sequence.draw);
    any = true;
  }
  if (!any) return -1;
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() -
                                                               begin)
      .count();
}

void TakePromptLogprobs(absl::Span<const SequenceInput> sequences, absl::Span<const WantedRow> rows,
                        TensorView logits, Stream stream, StepResult* result) {
  std::vector<int32_t> targets;
  std::vector<TokenLogprob> found(rows.size());
  std::vector<kernels::SampleResult> results(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    targets.push_back(rows[i].target);
    found[i].top.resize(Entries(sequences[rows[i].sequence].prompt_logprobs));
    results[i].top = absl::MakeSpan(found[i].top);
  }
  kernels::LogProbs(logits, targets, absl::MakeSpan(results), stream);
  for (size_t i = 0; i < rows.size(); ++i) {
    found[i].token = rows[i].target;
    found[i].logprob = results[i].logprob;
    found[i].top.resize(results[i].top.size());
    result->outputs[rows[i].sequence].prompt_logprobs.push_back(std::move(found[i]));
  }
}

absl::Span<kernels::SampleResult> SampleRoom::Make(absl::Span<const SequenceInput> sequences,
                                                   absl::Span<const size_t> sampled) {
  size_t entries = 0;
  for (const size_t i : sampled) entries += Entries(sequences[i].sampling->logprobs);
  top_.resize(entries);
  results_.assign(sampled.size(), {});
  size_t at = 0;
  for (size_t r = 0; r < sampled.size(); ++r) {
    const size_t count = Entries(sequences[sampled[r]].sampling->logprobs);
    results_[r].top = absl::MakeSpan(top_).subspan(at, count);
    at += count;
  }
  return absl::MakeSpan(results_);
}

void SampleRoom::Take(absl::Span<const SequenceInput> sequences, absl::Span<const size_t> sampled,
                      StepResult* result) const {
  for (size_t r = 0; r < sampled.size(); ++r) {
    TokenLogprob& chosen = result->outputs[sampled[r]].chosen;
    chosen.token = results_[r].token;
    if (sequences[sampled[r]].sampling->logprobs < 0) continue;
    chosen.logprob = results_[r].logprob;
    chosen.top.assign(results_[r].top.begin(), results_[r].top.end());
  }
}

}  // namespace weir::model
