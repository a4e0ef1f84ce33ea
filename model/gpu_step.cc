#include "model/gpu_step.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "kernels/sample.h"
#include "kernels/step_inputs.h"

namespace weir::model {

using scheduler::SequenceInput;
using scheduler::StepResult;

namespace {

size_t ToSize(int64_t n) { return static_cast<size_t>(n); }

int64_t Columns(const scheduler::ExecutorLimits& limits) {
  return std::min<int64_t>(limits.layout.PagesFor(limits.max_position), limits.cache.pages);
}

int64_t ScratchFloats(const GpuExecutorOptions& options) {
  const scheduler::ExecutorLimits& limits = options.limits;
  const int64_t layers = limits.max_step_tokens * (options.scratch_floats_per_token +
                                                   Decoder::OwnScratchFloats(options.hidden)) +
                         Decoder::JoinScratchFloats(options.hidden);
  const int64_t head = 2 * int64_t{limits.max_step_sequences} * options.hidden;
  return std::max(layers, head) + 64 * Scratch::kAlignFloats;
}

int64_t MaskWords(int32_t vocab) { return (int64_t{vocab} + 31) / 32; }

// Words that penalties, biases, forbidden tokens and the mask of one row take in a description.
int64_t HistoryWords(const SequenceInput& sequence, int32_t vocab) {
  if (!sequence.sample) return 0;
  const scheduler::SamplingParams& params = *sequence.sampling;
  auto words = static_cast<int64_t>(sequence.forbidden.size() + 2 * params.logit_bias.size());
  if (params.needs_history()) {
    words += static_cast<int64_t>(sequence.prompt.size() + sequence.generated.size());
  }
  if (sequence.mask != nullptr) words += MaskWords(vocab);
  return words;
}

// Of all rows of a step together; more than any one row can take.
int64_t HistoryCapacity(const scheduler::ExecutorLimits& limits) {
  constexpr int64_t kTypicalTokens = 8192;
  const int64_t rows = limits.max_step_sequences;
  const int64_t mask = MaskWords(limits.vocab_size);
  return std::max<int64_t>(
      limits.max_position + mask + 4096,
      rows * std::max(mask, std::min<int64_t>(limits.max_position, kTypicalTokens)));
}

StepLimits LimitsOf(const GpuExecutorOptions& options) {
  return {options.limits.max_step_tokens, options.limits.max_step_sequences,
          options.limits.max_position, options.activations};
}

}  // namespace

GpuMemory PlanGpuMemory(const Decoder& decoder, const GpuExecutorOptions& options, Stream stream) {
  const scheduler::ExecutorLimits& limits = options.limits;
  GpuMemory memory;
  memory.slots = limits.cache.slots * limits.layout.slot_bytes;
  memory.pages = limits.cache.pages * limits.layout.page_bytes;
  memory.activations =
      4 * (ScratchFloats(options) + int64_t{limits.max_step_tokens} * options.hidden);
  memory.op_scratch = decoder.OpScratchBytes(LimitsOf(options), stream);
  memory.logits = 4 * int64_t{limits.max_step_sequences} * limits.vocab_size;
  memory.batch = 4 * int64_t{limits.max_step_sequences} * Columns(limits) +
                 int64_t{limits.max_step_tokens} * 24;
  return memory;
}

GpuStep::GpuStep(const Decoder* decoder, const GpuExecutorOptions& options, Stream stream)
    : decoder_(decoder),
      options_(options),
      stream_(stream),
      history_capacity_(HistoryCapacity(options.limits)),
      first_token_(ToSize(options.limits.max_step_sequences)),
      first_kept_(ToSize(options.limits.max_step_sequences)) {}

absl::StatusOr<std::unique_ptr<GpuStep>> GpuStep::Make(const Decoder* decoder,
                                                       const GpuExecutorOptions& options,
                                                       Stream stream) {
  std::unique_ptr<GpuStep> step(new GpuStep(decoder, options, stream));
  RETURN_IF_ERROR(step->Allocate());
  return step;
}

absl::Status GpuStep::Allocate() {
  const scheduler::ExecutorLimits& limits = options_.limits;
  const cache::StateLayout& layout = limits.layout;
  const GpuMemory memory = PlanGpuMemory(*decoder_, options_, stream_);
  const auto allocate = [](int64_t bytes, const char* what) {
    return cuda::AllocateDevice(ToSize(bytes), what);
  };
  ASSIGN_OR_RETURN(slots_, allocate(memory.slots, "state slots"));
  ASSIGN_OR_RETURN(pages_, allocate(memory.pages, "KV pages"));
  ASSIGN_OR_RETURN(op_scratch_, allocate(memory.op_scratch, "kernels' scratch"));
  ASSIGN_OR_RETURN(logits_, allocate(memory.logits, "logits"));
  ASSIGN_OR_RETURN(hidden_states_, allocate(4 * int64_t{limits.max_step_tokens} * options_.hidden,
                                            "hidden states"));
  ASSIGN_OR_RETURN(tokens_, allocate(4 * int64_t{limits.max_step_sequences}, "sampled tokens"));
  ASSIGN_OR_RETURN(fed_, allocate(4 * int64_t{limits.max_step_sequences}, "fed tokens"));
  ASSIGN_OR_RETURN(scratch_,
                   Scratch::Allocate(ScratchFloats(options_), options_.activations, stream_));
  // Routed layers cut the batch on the host and need its block tables there.
  const bool routed = decoder_->has_routed_layers();
  const int64_t columns = Columns(limits);
  ASSIGN_OR_RETURN(batch_, BatchStorage::Make(limits.max_step_tokens, limits.max_step_sequences,
                                              routed ? columns : 0, kGpuStepsInFlight, stream_));
  ASSIGN_OR_RETURN(head_rows_, BatchStorage::Make(limits.max_step_sequences, 1, 0, 1, stream_));
  if (routed) {
    ASSIGN_OR_RETURN(routed_, BatchStorage::Make(limits.max_step_tokens, limits.max_step_sequences,
                                                 columns, 1, stream_));
  } else {
    ASSIGN_OR_RETURN(
        table_, BlockTable::Make(limits.max_step_sequences, columns, kGpuStepsInFlight, stream_));
  }
  kernels::DeviceSampler::Limits sampling;
  sampling.max_rows = limits.max_step_sequences;
  sampling.vocab = limits.vocab_size;
  sampling.max_top = options_.max_top_logprobs;
  sampling.steps_in_flight = kGpuStepsInFlight;
  ASSIGN_OR_RETURN(sampler_, kernels::DeviceSampler::Make(sampling, history_capacity_, stream_));
  state_.slots = slots_.data();
  state_.slot_bytes = layout.slot_bytes;
  state_.pages = pages_.data();
  state_.page_bytes = layout.page_bytes;
  state_.page_tokens = layout.page_tokens;
  state_.types = options_.types;
  return absl::OkStatus();
}

StepContext GpuStep::Context(const BatchView& batch) {
  return {batch, state_, scratch_, routed_, stream_, op_scratch_.data()};
}

int32_t GpuStep::SampledRow(scheduler::SequenceId sequence, size_t hint) const {
  if (hint < sampled_by_.size() && sampled_by_[hint] == sequence) {
    return static_cast<int32_t>(hint);
  }
  const auto it = std::find(sampled_by_.begin(), sampled_by_.end(), sequence);
  WEIR_CHECK(it != sampled_by_.end())
      << "sequence " << sequence << " feeds on a step that did not sample it";
  return static_cast<int32_t>(it - sampled_by_.begin());
}

void GpuStep::PackSequence(const SequenceInput& sequence, size_t index, int at, int first_token) {
  const auto count = static_cast<int>(sequence.tokens.size());
  first_token_[index] = first_token;
  batch_.offsets[at] = first_token;
  batch_.offsets[at + 1] = first_token + count;
  batch_.slots[at] = sequence.slot;
  batch_.fresh[at] = sequence.position == 0 ? 1 : 0;
  batch_.cached[at] = sequence.position;
  for (int i = 0; i < count; ++i) {
    const int t = first_token + i;
    batch_.sources[t] = sequence.feed_previous ? SampledRow(sequence.sequence, index) : -1;
    batch_.ids[t] = sequence.tokens[ToSize(i)];
    batch_.positions[t] = sequence.position + i;
    WEIR_CHECK(sequence.feed_previous ||
               (batch_.ids[t] >= 0 && batch_.ids[t] < options_.limits.vocab_size))
        << "token " << batch_.ids[t];
  }
  const auto pages = ToSize(options_.limits.layout.PagesFor(sequence.position + count));
  if (pages == 0) return;
  WEIR_CHECK(sequence.pages.size() >= pages) << sequence.pages.size() << " pages, need " << pages;
  if (batch_.columns > 0) {
    std::copy_n(sequence.pages.begin(), pages, batch_.block_table + at * batch_.columns);
  } else {
    table_.Set(at, sequence.pages.first(pages), stream_);
  }
}

GpuStep::Packed GpuStep::Pack(absl::Span<const SequenceInput> sequences) {
  const scheduler::ExecutorLimits& limits = options_.limits;
  Packed packed;
  for (const bool single : {true, false}) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      const SequenceInput& sequence = sequences[i];
      WEIR_CHECK(!sequence.tokens.empty() && sequence.slot >= 0 &&
                 sequence.slot < limits.cache.slots && sequence.position >= 0)
          << sequence.tokens.size() << " tokens, slot " << sequence.slot << ", position "
          << sequence.position;
      if ((sequence.tokens.size() == 1) != single) continue;
      const auto run = static_cast<int>(sequence.tokens.size());
      WEIR_CHECK(packed.sequences < limits.max_step_sequences &&
                 packed.tokens + run <= limits.max_step_tokens &&
                 sequence.position + run <= limits.max_position)
          << "a step beyond the limits";
      PackSequence(sequence, i, packed.sequences, packed.tokens);
      packed.tokens += run;
      ++packed.sequences;
      if (single) ++packed.singles;
    }
  }
  return packed;
}

void GpuStep::Pad(int sequences, int pad_to) {
  batch_.offsets[0] = 0;
  for (int s = sequences; s < pad_to; ++s) {
    batch_.offsets[s + 1] = batch_.offsets[s] + 1;
    batch_.slots[s] = -1;
    batch_.fresh[s] = 1;
    batch_.cached[s] = 0;
    batch_.ids[s] = batch_.sources[s] = -1;
    batch_.positions[s] = 0;
  }
}

const GpuStep::DecodeGraph* GpuStep::GraphFor(absl::Span<const SequenceInput> sequences) const {
  const bool decode = std::all_of(sequences.begin(), sequences.end(), [](const SequenceInput& s) {
    return s.tokens.size() == 1 && s.sample && !WantsAllRows(s);
  });
  if (!decode || !HistoriesFit(sequences)) return nullptr;
  const auto it = std::find_if(graphs_.begin(), graphs_.end(), [&](const DecodeGraph& graph) {
    return ToSize(graph.sequences) >= sequences.size();
  });
  return it == graphs_.end() ? nullptr : &*it;
}

void GpuStep::EnqueueDecode(int rows) {
  const scheduler::ExecutorLimits& limits = options_.limits;
  BatchView batch = batch_.View(rows, rows, rows);
  batch.host_offsets = batch.host_cached = nullptr;
  batch.max_entries = limits.max_position;
  if (batch_.columns == 0) batch.block_table = table_.view(rows);
  const TensorView ids = batch_.Ids(rows);
  const TensorView tokens(tokens_.as<int32_t>(), {rows});
  kernels::FeedPrevious(ids, batch_.Sources(rows),
                        TensorView(tokens_.as<int32_t>(), {limits.max_step_sequences}), stream_);
  const TensorView h(hidden_states_.as<float>(), {rows, options_.hidden});
  const TensorView logits(logits_.as<float>(), {rows, limits.vocab_size});
  const StepContext step = Context(batch);
  decoder_->Forward(step, ids, {}, h);
  decoder_->Logits(step, h, {}, logits);
  sampler_->Launch(logits, ids, tokens, stream_);
}

void GpuStep::BuildRows(absl::Span<const SequenceInput> sequences, int copy) {
  sample_rows_.clear();
  append_fed_.clear();
  sampled_[copy].clear();
  sampled_by_.clear();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceInput& sequence = sequences[i];
    if (!sequence.sample) continue;
    const bool history = sequence.sampling->needs_history();
    sample_rows_.push_back(SampleRowOf(sequence));
    append_fed_.push_back(history && sequence.feed_previous ? 1 : 0);
    sampled_[copy].push_back(i);
    sampled_by_.push_back(sequence.sequence);
  }
}

bool GpuStep::HistoriesFit(absl::Span<const SequenceInput> sequences) const {
  int64_t words = 0;
  const int32_t vocab = options_.limits.vocab_size;
  for (const SequenceInput& sequence : sequences) words += HistoryWords(sequence, vocab);
  return words <= history_capacity_;
}

void GpuStep::SampleInGroups(absl::Span<const SequenceInput> sequences, int copy,
                             StepResult* result) {
  const std::vector<size_t>& sampled = sampled_[copy];
  const auto rows = absl::MakeConstSpan(sample_rows_);
  const auto fed = absl::MakeConstSpan(append_fed_);
  for (size_t begin = 0; begin < rows.size();) {
    size_t count = 0;
    int64_t words = 0;
    while (begin + count < rows.size()) {
      words += HistoryWords(sequences[sampled[begin + count]], options_.limits.vocab_size);
      if (count > 0 && words > history_capacity_) break;
      ++count;
    }
    const auto at = static_cast<int64_t>(begin), n = static_cast<int64_t>(count);
    sampler_->Describe(copy, rows.subspan(begin, count), fed.subspan(begin, count), stream_);
    sampler_->Launch(choice_.logits.Rows(at, n), choice_.fed_tokens.Rows(at, n),
                     choice_.tokens.Rows(at, n), stream_);
    sampler_->Fetch(copy, static_cast<int>(count), true, stream_);
    cuda::Synchronize(stream_);
    ReadRows(sequences, absl::MakeConstSpan(sampled).subspan(begin, count), copy, result);
    begin += count;
  }
  sampled_[copy].clear();
  sample_rows_.clear();
}

bool GpuStep::Enqueue(absl::Span<const SequenceInput> sequences, int copy, StepResult* result) {
  cuda::Range range("step");
  batch_.Select(copy);
  table_.Begin(copy);
  const Packed packed = Pack(sequences);
  result->outputs.resize(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) result->outputs[i].sequence = sequences[i].sequence;
  BuildRows(sequences, copy);
  const bool waits = std::any_of(sequences.begin(), sequences.end(),
                                 [](const SequenceInput& s) { return s.mask != nullptr; });
  const DecodeGraph* graph = GraphFor(sequences);
  if (graph == nullptr) {
    EnqueueMixed(sequences, packed, copy, result);
    if (!waits) Choose(sequences, copy, result);
    return !waits;
  }
  Pad(packed.sequences, graph->sequences);
  batch_.Upload(graph->sequences, graph->sequences, stream_);
  table_.Upload(stream_);
  if (waits) {
    // The graph ends with the sampler, which has to come again once the masks are there.
    sampler_->DescribeNone(stream_);
  } else {
    sampler_->Describe(copy, sample_rows_, append_fed_, stream_);
  }
  graph->graph.Launch(stream_);
  const auto rows = static_cast<int64_t>(sample_rows_.size());
  choice_ = {TensorView(logits_.as<float>(), {rows, options_.limits.vocab_size}), batch_.Ids(rows),
             TensorView(tokens_.as<int32_t>(), {rows})};
  if (!waits) Fetch(copy);
  return !waits;
}

void GpuStep::Choose(absl::Span<const SequenceInput> sequences, int copy, StepResult* result) {
  if (sample_rows_.empty()) return;
  result->mask_wait_us = AwaitMasks(sequences, sampled_[copy], absl::MakeSpan(sample_rows_));
  if (!HistoriesFit(sequences)) return SampleInGroups(sequences, copy, result);
  sampler_->Describe(copy, sample_rows_, append_fed_, stream_);
  sampler_->Launch(choice_.logits, choice_.fed_tokens, choice_.tokens, stream_);
  Fetch(copy);
}

void GpuStep::Fetch(int copy) {
  const bool logprobs = std::any_of(sample_rows_.begin(), sample_rows_.end(),
                                    [](const auto& row) { return row.num_top_logprobs >= 0; });
  sampler_->Fetch(copy, static_cast<int>(sample_rows_.size()), logprobs, stream_);
}

int GpuStep::ChooseRows(absl::Span<const SequenceInput> sequences, bool* plain) {
  int kept = 0;
  *plain = true;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto run = static_cast<int32_t>(sequences[i].tokens.size());
    first_kept_[i] = kept;
    int32_t row = first_token_[i] + run - (sequences[i].sample ? 1 : 0);
    if (WantsAllRows(sequences[i])) {
      row = first_token_[i];
      *plain = false;
    }
    for (; row < first_token_[i] + run; ++row) batch_.rows[kept++] = row;
  }
  return kept;
}

void GpuStep::EnqueueMixed(absl::Span<const SequenceInput> sequences, const Packed& packed,
                           int copy, StepResult* result) {
  bool plain = true;  // one row of logits per sampling sequence, in their order
  const int kept = ChooseRows(sequences, &plain);
  batch_.Upload(packed.tokens, packed.sequences, stream_);
  table_.Upload(stream_);
  BatchView batch = batch_.View(packed.tokens, packed.sequences, packed.singles);
  if (batch_.columns == 0) batch.block_table = table_.view(packed.sequences);
  const StepContext step = Context(batch);
  const TensorView ids = batch_.Ids(packed.tokens);
  kernels::FeedPrevious(ids, batch_.Sources(packed.tokens),
                        TensorView(tokens_.as<int32_t>(), {options_.limits.max_step_sequences}),
                        stream_);
  const TensorView h(hidden_states_.as<float>(), {kept, options_.hidden});
  decoder_->Forward(step, ids, batch_.Rows(0, kept), h);
  AllLogits(step, sequences, kept, result);
  PromptLogprobs(step, sequences, kept, result);
  const auto rows = static_cast<int64_t>(sample_rows_.size());
  if (rows == 0) return;
  std::vector<WantedRow> wanted;
  for (const size_t i : sampled_[copy]) {
    const auto last = static_cast<int32_t>(sequences[i].tokens.size()) - 1;
    wanted.push_back({first_kept_[i] + (WantsAllRows(sequences[i]) ? last : 0), i, -1});
  }
  TensorView logits(logits_.as<float>(), {rows, options_.limits.vocab_size});
  if (plain) {
    decoder_->Logits(step, h, {}, logits);
  } else {
    logits = RowLogits(step, wanted, kept);
  }
  // The token just fed stands where the sequence's only token does.
  for (int64_t r = 0; r < rows; ++r) {
    head_rows_.rows[r] = first_token_[sampled_[copy][ToSize(r)]];
  }
  const bool fed = std::find(append_fed_.begin(), append_fed_.end(), 1) != append_fed_.end();
  const TensorView fed_tokens(fed_.as<int32_t>(), {rows});
  if (fed) {
    head_rows_.Upload(rows, 1, stream_);
    kernels::GatherRows(TensorView(ids.raw(), DType::kF32, {ids.size(0), 1}),
                        head_rows_.Rows(0, rows), TensorView(fed_.data(), DType::kF32, {rows, 1}),
                        stream_);
  }
  choice_ = {logits, fed_tokens, TensorView(tokens_.as<int32_t>(), {rows})};
}

TensorView GpuStep::RowLogits(const StepContext& step, absl::Span<const WantedRow> rows, int kept) {
  const auto count = static_cast<int64_t>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) head_rows_.rows[i] = rows[i].row;
  head_rows_.Upload(count, 1, stream_);
  const TensorView h(hidden_states_.as<float>(), {kept, options_.hidden});
  const TensorView logits(logits_.as<float>(), {count, options_.limits.vocab_size});
  decoder_->Logits(step, h, head_rows_.Rows(0, count), logits);
  return logits;
}

void GpuStep::AllLogits(const StepContext& step, absl::Span<const SequenceInput> sequences,
                        int kept, StepResult* result) {
  const auto block = ToSize(options_.limits.max_step_sequences);
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (!sequences[i].all_logits) continue;
    const std::vector<WantedRow> rows = AllRowsOf(sequences[i], i, first_kept_[i]);
    std::vector<float>& out = result->outputs[i].logits;
    out.resize(rows.size() * ToSize(options_.limits.vocab_size));
    size_t written = 0;
    for (size_t at = 0; at < rows.size(); at += block) {
      const TensorView logits = RowLogits(
          step, absl::MakeConstSpan(rows).subspan(at, std::min(block, rows.size() - at)), kept);
      cuda::Copy(out.data() + written, logits.raw(), ToSize(logits.bytes()), stream_);
      cuda::Synchronize(stream_);
      written += ToSize(logits.num_elements());
    }
  }
}

void GpuStep::PromptLogprobs(const StepContext& step, absl::Span<const SequenceInput> sequences,
                             int kept, StepResult* result) {
  const std::vector<WantedRow> rows = PromptRows(sequences, first_kept_);
  const auto most = ToSize(options_.limits.max_step_sequences);
  for (size_t at = 0; at < rows.size(); at += most) {
    const auto block = absl::MakeConstSpan(rows).subspan(at, std::min(most, rows.size() - at));
    TakePromptLogprobs(sequences, block, RowLogits(step, block, kept), stream_, result);
  }
}

void GpuStep::ReadSampled(absl::Span<const SequenceInput> sequences, int copy, StepResult* result) {
  if (!sampled_[copy].empty()) ReadRows(sequences, sampled_[copy], copy, result);
}

void GpuStep::ReadRows(absl::Span<const SequenceInput> sequences, absl::Span<const size_t> rows,
                       int copy, StepResult* result) {
  sampler_->Read(copy, sample_room_.Make(sequences, rows));
  sample_room_.Take(sequences, rows, result);
}

void GpuStep::WarmUp() {
  const scheduler::ExecutorLimits& limits = options_.limits;
  batch_.Select(0);
  table_.Begin(0);
  sampler_->Describe(0, {}, {}, stream_);
  // A run of tokens that belongs to nobody: kernels load, and no state is touched.
  const int tokens = std::min(limits.max_step_tokens, 192);
  Pad(0, 1);
  batch_.offsets[1] = tokens;
  std::fill_n(batch_.ids, tokens, 0);
  std::fill_n(batch_.sources, tokens, -1);
  std::fill_n(batch_.positions, tokens, 0);
  batch_.rows[0] = tokens - 1;
  if (batch_.columns > 0) std::fill_n(batch_.block_table, batch_.columns, 0);
  batch_.Upload(tokens, 1, stream_);
  BatchView batch = batch_.View(tokens, 1, tokens == 1 ? 1 : 0);
  if (batch_.columns == 0) batch.block_table = table_.view(1);
  const TensorView h(hidden_states_.as<float>(), {1, options_.hidden});
  const StepContext step = Context(batch);
  decoder_->Forward(step, batch_.Ids(tokens), batch_.Rows(0, 1), h);
  decoder_->Logits(step, h, {}, TensorView(logits_.as<float>(), {1, limits.vocab_size}));
  cuda::Synchronize(stream_);
  if (!options_.graphs || decoder_->has_routed_layers()) return;
  for (const int size : GraphSizes(limits.max_step_sequences)) {
    if (size > limits.max_step_tokens) break;
    Pad(0, size);
    batch_.Upload(size, size, stream_);
    EnqueueDecode(size);
    cuda::Synchronize(stream_);
    graphs_.push_back({size, cuda::Graph::Capture(stream_, [&] { EnqueueDecode(size); })});
  }
  cuda::Synchronize(stream_);
}

}  // namespace weir::model
