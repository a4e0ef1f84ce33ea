#include "model/step_runner.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

namespace weir::model {

using scheduler::SequenceInput;
using scheduler::StepResult;
using scheduler::TokenLogprob;

namespace {

int Columns(const scheduler::ExecutorLimits& limits) {
  return std::min(limits.layout.PagesFor(limits.max_position), limits.cache.pages);
}

bool WantsAllRows(const SequenceInput& sequence) {
  return sequence.all_logits || sequence.prompt_logprobs >= 0;
}

size_t ToSize(int64_t n) { return static_cast<size_t>(n); }

int64_t ScratchFloats(int hidden, const scheduler::ExecutorLimits& limits, int64_t per_token) {
  // Layers and the decoder, or the head's two buffers; a few alignments.
  const int64_t layers = limits.max_step_tokens * (per_token + Decoder::OwnScratchFloats(hidden));
  const int64_t head = 2 * int64_t{limits.max_step_sequences} * hidden;
  return std::max(layers, head) + 64 * Scratch::kAlignFloats;
}

}  // namespace

int64_t StepRunner::WorkspaceBytes(int hidden, const scheduler::ExecutorLimits& limits,
                                   int64_t scratch_floats_per_token) {
  const int64_t floats = ScratchFloats(hidden, limits, scratch_floats_per_token) +
                         int64_t{limits.max_step_tokens} * hidden +
                         int64_t{limits.max_step_sequences} * limits.vocab_size;
  return 4 * floats + 2 * int64_t{limits.max_step_sequences} * Columns(limits) * 4;
}

StepRunner::StepRunner(const Decoder* decoder, int hidden, const scheduler::ExecutorLimits& limits,
                       Stream stream)
    : decoder_(decoder),
      hidden_(hidden),
      limits_(limits),
      stream_(stream),
      first_token_(ToSize(limits.max_step_sequences)),
      kept_rows_(ToSize(limits.max_step_tokens)),
      first_kept_(ToSize(limits.max_step_sequences)),
      head_rows_(ToSize(limits.max_step_sequences)),
      histories_(ToSize(limits.max_step_sequences)) {
  previous_.reserve(ToSize(limits.max_step_sequences));
  sample_rows_.reserve(ToSize(limits.max_step_sequences));
  sample_results_.reserve(ToSize(limits.max_step_sequences));
}

absl::StatusOr<StepRunner> StepRunner::Make(const Decoder* decoder, int hidden,
                                            const scheduler::ExecutorLimits& limits,
                                            const StateTypes& types,
                                            int64_t scratch_floats_per_token, Stream stream) {
  StepRunner runner(decoder, hidden, limits, stream);
  const auto allocate = [](int64_t bytes, const char* what) {
    return Buffer::Allocate(ToSize(bytes), what);
  };
  const cache::StateLayout& layout = limits.layout;
  ASSIGN_OR_RETURN(runner.slots_, allocate(limits.cache.slots * layout.slot_bytes, "state slots"));
  ASSIGN_OR_RETURN(runner.pages_, allocate(limits.cache.pages * layout.page_bytes, "KV pages"));
  ASSIGN_OR_RETURN(runner.hidden_states_,
                   allocate(int64_t{limits.max_step_tokens} * hidden * 4, "hidden states"));
  ASSIGN_OR_RETURN(runner.logits_,
                   allocate(int64_t{limits.max_step_sequences} * limits.vocab_size * 4, "logits"));
  ASSIGN_OR_RETURN(runner.scratch_,
                   Scratch::Allocate(ScratchFloats(hidden, limits, scratch_floats_per_token),
                                     DType::kF32, stream));
  for (BatchStorage* storage : {&runner.batch_, &runner.routed_}) {
    ASSIGN_OR_RETURN(*storage, BatchStorage::Make(limits.max_step_tokens, limits.max_step_sequences,
                                                  Columns(limits), 1, stream));
  }
  StateMemory& state = runner.state_;
  state.slots = runner.slots_.data();
  state.slot_bytes = layout.slot_bytes;
  state.pages = runner.pages_.data();
  state.page_bytes = layout.page_bytes;
  state.page_tokens = layout.page_tokens;
  state.types = types;
  return runner;
}

int32_t StepRunner::PreviousToken(scheduler::SequenceId sequence) const {
  for (const auto& [id, token] : previous_) {
    // A step that could sample nothing gives -1; what follows it is discarded, but must run.
    if (id == sequence) return std::max(token, 0);
  }
  WEIR_CHECK(false) << "sequence " << sequence << " feeds on a step that did not sample it";
}

void StepRunner::PackSequence(const SequenceInput& sequence, size_t index, int at,
                              int first_token) {
  const int s = at;
  const auto count = static_cast<int>(sequence.tokens.size());
  first_token_[index] = first_token;
  batch_.offsets[s] = first_token;
  batch_.offsets[s + 1] = first_token + count;
  batch_.slots[s] = sequence.slot;
  batch_.fresh[s] = sequence.position == 0 ? 1 : 0;
  batch_.cached[s] = sequence.position;
  for (int i = 0; i < count; ++i) {
    const int t = first_token + i;
    batch_.ids[t] =
        sequence.feed_previous ? PreviousToken(sequence.sequence) : sequence.tokens[ToSize(i)];
    WEIR_CHECK(batch_.ids[t] >= 0 && batch_.ids[t] < limits_.vocab_size)
        << "token " << batch_.ids[t];
    batch_.positions[t] = sequence.position + i;
  }
  if (batch_.columns > 0) {
    const auto pages = ToSize(limits_.layout.PagesFor(sequence.position + count));
    WEIR_CHECK(sequence.pages.size() >= pages) << sequence.pages.size() << " pages, need " << pages;
    std::copy_n(sequence.pages.begin(), pages, batch_.block_table + at * batch_.columns);
  }
}

BatchView StepRunner::Pack(absl::Span<const SequenceInput> sequences) {
  int tokens = 0, count = 0, singles = 0;
  for (const bool single : {true, false}) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      const SequenceInput& sequence = sequences[i];
      WEIR_CHECK(!sequence.tokens.empty() && sequence.slot >= 0 &&
                 sequence.slot < limits_.cache.slots && sequence.position >= 0)
          << sequence.tokens.size() << " tokens, slot " << sequence.slot << ", position "
          << sequence.position;
      if ((sequence.tokens.size() == 1) != single) continue;
      const auto run = static_cast<int>(sequence.tokens.size());
      WEIR_CHECK(count < limits_.max_step_sequences && tokens + run <= limits_.max_step_tokens &&
                 sequence.position + run <= limits_.max_position)
          << "a step beyond the limits";
      PackSequence(sequence, i, count, tokens);
      tokens += run;
      ++count;
      if (single) ++singles;
    }
  }
  return batch_.View(tokens, count, singles);
}

void StepRunner::ChooseKeptRows(absl::Span<const SequenceInput> sequences) {
  kept_ = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto run = static_cast<int32_t>(sequences[i].tokens.size());
    first_kept_[i] = kept_;
    int32_t row = first_token_[i] + run - (sequences[i].sample ? 1 : 0);
    if (WantsAllRows(sequences[i])) row = first_token_[i];
    for (; row < first_token_[i] + run; ++row) kept_rows_[ToSize(kept_++)] = row;
  }
}

StepResult StepRunner::Run(absl::Span<const SequenceInput> sequences) {
  const auto begin = std::chrono::steady_clock::now();
  const BatchView batch = Pack(sequences);
  const StepContext step{batch, state_, scratch_, routed_, stream_};
  ChooseKeptRows(sequences);
  decoder_->Forward(step, batch_.Ids(batch.tokens), TensorView(kept_rows_.data(), {kept_}),
                    TensorView(hidden_states_.as<float>(), {kept_, hidden_}));

  StepResult result;
  result.outputs.resize(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) result.outputs[i].sequence = sequences[i].sequence;
  AllLogits(step, sequences, &result);
  PromptLogprobs(step, sequences, &result);
  SampleTokens(step, sequences, &result);
  result.duration_us = std::chrono::duration_cast<std::chrono::microseconds>(
                           std::chrono::steady_clock::now() - begin)
                           .count();
  return result;
}

TensorView StepRunner::ComputeLogits(const StepContext& step, absl::Span<const WantedRow> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) head_rows_[i] = rows[i].row;
  TensorView h(hidden_states_.as<float>(), {kept_, hidden_});
  TensorView logits(logits_.as<float>(), {count, limits_.vocab_size});
  decoder_->Logits(step, h, TensorView(head_rows_.data(), {count}), logits);
  return logits;
}

void StepRunner::AllLogits(const StepContext& step, absl::Span<const SequenceInput> sequences,
                           StepResult* result) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (!sequences[i].all_logits) continue;
    std::vector<WantedRow> rows;
    for (size_t t = 0; t < sequences[i].tokens.size(); ++t) {
      rows.push_back({first_kept_[i] + static_cast<int32_t>(t), i, -1});
    }
    std::vector<float>& out = result->outputs[i].logits;
    out.resize(rows.size() * ToSize(limits_.vocab_size));
    size_t written = 0;
    for (size_t at = 0; at < rows.size(); at += head_rows_.size()) {
      const TensorView logits = ComputeLogits(
          step,
          absl::MakeConstSpan(rows).subspan(at, std::min(head_rows_.size(), rows.size() - at)));
      std::memcpy(out.data() + written, logits.raw(), ToSize(logits.bytes()));
      written += ToSize(logits.num_elements());
    }
  }
}

void StepRunner::PromptLogprobs(const StepContext& step, absl::Span<const SequenceInput> sequences,
                                StepResult* result) {
  std::vector<WantedRow> rows;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceInput& sequence = sequences[i];
    if (sequence.prompt_logprobs < 0) continue;
    for (size_t t = 0; t < sequence.tokens.size(); ++t) {
      const bool last = t + 1 == sequence.tokens.size();
      const int32_t target = last ? sequence.next_prompt_token : sequence.tokens[t + 1];
      if (target >= 0) rows.push_back({first_kept_[i] + static_cast<int32_t>(t), i, target});
    }
  }
  for (size_t at = 0; at < rows.size(); at += head_rows_.size()) {
    const auto block =
        absl::MakeConstSpan(rows).subspan(at, std::min(head_rows_.size(), rows.size() - at));
    const TensorView logits = ComputeLogits(step, block);
    std::vector<int32_t> targets;
    std::vector<TokenLogprob> found(block.size());
    sample_results_.assign(block.size(), {});
    for (size_t i = 0; i < block.size(); ++i) {
      targets.push_back(block[i].target);
      found[i].top.resize(ToSize(sequences[block[i].sequence].prompt_logprobs));
      sample_results_[i].top = absl::MakeSpan(found[i].top);
    }
    kernels::LogProbs(logits, targets, absl::MakeSpan(sample_results_), stream_);
    for (size_t i = 0; i < block.size(); ++i) {
      found[i].token = block[i].target;
      found[i].logprob = sample_results_[i].logprob;
      found[i].top.resize(sample_results_[i].top.size());
      result->outputs[block[i].sequence].prompt_logprobs.push_back(std::move(found[i]));
    }
  }
}

void StepRunner::SampleTokens(const StepContext& step, absl::Span<const SequenceInput> sequences,
                              StepResult* result) {
  std::vector<WantedRow> rows;
  sample_rows_.clear();
  size_t top_entries = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceInput& sequence = sequences[i];
    if (!sequence.sample) continue;
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
      if (sequence.feed_previous) {
        std::vector<int32_t>& history = histories_[rows.size()];
        history.assign(sequence.generated.begin(), sequence.generated.end());
        history.push_back(batch_.ids[first_token_[i]]);
        row.generated = history;
      }
    }
    top_entries += ToSize(std::max(0, params.logprobs));
    const auto last = WantsAllRows(sequence) ? static_cast<int32_t>(sequence.tokens.size()) - 1 : 0;
    rows.push_back({first_kept_[i] + last, i, -1});
    sample_rows_.push_back(row);
  }
  previous_.clear();
  if (rows.empty()) return;

  top_.resize(top_entries);
  sample_results_.assign(rows.size(), {});
  size_t top_at = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto entries = ToSize(std::max(0, sample_rows_[r].num_top_logprobs));
    sample_results_[r].top = absl::MakeSpan(top_).subspan(top_at, entries);
    top_at += entries;
  }
  const TensorView logits = ComputeLogits(step, rows);
  kernels::Sample(logits, sample_rows_, absl::MakeSpan(sample_results_), stream_);
  for (size_t r = 0; r < rows.size(); ++r) {
    scheduler::SequenceOutput& output = result->outputs[rows[r].sequence];
    output.chosen.token = sample_results_[r].token;
    if (sample_rows_[r].num_top_logprobs >= 0) {
      output.chosen.logprob = sample_results_[r].logprob;
      output.chosen.top.assign(sample_results_[r].top.begin(), sample_results_[r].top.end());
    }
    previous_.emplace_back(output.sequence, output.chosen.token);
  }
}

}  // namespace weir::model
