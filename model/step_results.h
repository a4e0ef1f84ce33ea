// What the CPU's and the GPU's step share between a plan and its results: which rows of logits
// somebody asked for, what the sampler is told of a sequence, and where results go.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/sample.h"
#include "scheduler/executor.h"

namespace weir::model {

// A row of the hidden states that are kept for the head.
struct WantedRow {
  int32_t row = 0;      // among the kept
  size_t sequence = 0;  // of the plan
  int32_t target = -1;  // prompt log probability of this token
};

// Whether the head is to see all rows of the sequence, not only the one it samples from.
bool WantsAllRows(const scheduler::SequenceInput& sequence);

// All rows of sequence `index`, whose kept rows begin at `first_kept`.
std::vector<WantedRow> AllRowsOf(const scheduler::SequenceInput& sequence, size_t index,
                                 int32_t first_kept);
// The rows under which prompt log probabilities are asked for, with their targets. `first_kept`: of
// each sequence.
std::vector<WantedRow> PromptRows(absl::Span<const scheduler::SequenceInput> sequences,
                                  absl::Span<const int32_t> first_kept);

// What the sampler is told of a sequence that samples. Spans point into the input; a token just fed
// is not yet among `generated`.
kernels::SampleRow SampleRowOf(const scheduler::SequenceInput& sequence);

// Waits for the masks of constrained sequences: rows[r] gets that of sequence sampled[r].
// Microseconds waited; -1: there are none.
int64_t AwaitMasks(absl::Span<const scheduler::SequenceInput> sequences,
                   absl::Span<const size_t> sampled, absl::Span<kernels::SampleRow> rows);

// Log probabilities of the rows' targets under `logits` [rows, vocab], appended to the outputs.
void TakePromptLogprobs(absl::Span<const scheduler::SequenceInput> sequences,
                        absl::Span<const WantedRow> rows, TensorView logits, Stream stream,
                        scheduler::StepResult* result);

// Room for what the sampler says of the sequences `sampled` of a plan, one after another.
class SampleRoom {
 public:
  // Fresh results, with room for the top entries that each sequence asks for.
  absl::Span<kernels::SampleResult> Make(absl::Span<const scheduler::SequenceInput> sequences,
                                         absl::Span<const size_t> sampled);
  // Into the outputs of the same sequences.
  void Take(absl::Span<const scheduler::SequenceInput> sequences, absl::Span<const size_t> sampled,
            scheduler::StepResult* result) const;

 private:
  std::vector<kernels::SampleResult> results_;
  std::vector<std::pair<int32_t, float>> top_;
};

}  // namespace weir::model
