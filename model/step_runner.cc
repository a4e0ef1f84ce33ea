#include "model/step_runner.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

namespace weir::model {

using scheduler::SequenceInput;
using scheduler::StepResult;

namespace {

int Columns(const scheduler::ExecutorLimits& limits) {
  return std::min(limits.layout.PagesFor(limits.max_position), limits.cache.pages);
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
    const std::vector<WantedRow> rows = AllRowsOf(sequences[i], i, first_kept_[i]);
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
  const std::vector<WantedRow> rows = PromptRows(sequences, first_kept_);
  for (size_t at = 0; at < rows.size(); at += head_rows_.size()) {
    const auto block =
        absl::MakeConstSpan(rows).subspan(at, std::min(head_rows_.size(), rows.size() - at));
    TakePromptLogprobs(sequences, block, ComputeLogits(step, block), stream_, result);
  }
}

void StepRunner::SampleTokens(const StepContext& step, absl::Span<const SequenceInput> sequences,
                              StepResult* result) {
  std::vector<WantedRow> rows;
  std::vector<size_t> sampled;
  sample_rows_.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceInput& sequence = sequences[i];
    if (!sequence.sample) continue;
    kernels::SampleRow row = SampleRowOf(sequence);
    if (sequence.sampling->needs_history() && sequence.feed_previous) {
      std::vector<int32_t>& history = histories_[rows.size()];
      history.assign(sequence.generated.begin(), sequence.generated.end());
      history.push_back(batch_.ids[first_token_[i]]);
      row.generated = history;
    }
    const auto last = WantsAllRows(sequence) ? static_cast<int32_t>(sequence.tokens.size()) - 1 : 0;
    rows.push_back({first_kept_[i] + last, i, -1});
    sampled.push_back(i);
    sample_rows_.push_back(row);
  }
  previous_.clear();
  if (rows.empty()) return;

  const TensorView logits = ComputeLogits(step, rows);
  result->mask_wait_us = AwaitMasks(sequences, sampled, absl::MakeSpan(sample_rows_));
  kernels::Sample(logits, sample_rows_, sample_room_.Make(sequences, sampled), stream_);
  sample_room_.Take(sequences, sampled, result);
  for (const size_t i : sampled) {
    previous_.emplace_back(result->outputs[i].sequence, result->outputs[i].chosen.token);
  }
}

}  // namespace weir::model
