// Runs one step from plan to tokens, on the calling thread and its pool.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "core/buffer.h"
#include "core/status.h"
#include "core/stream.h"
#include "kernels/sample.h"
#include "model/batch.h"
#include "model/decoder.h"
#include "model/step_results.h"
#include "scheduler/executor.h"

namespace weir::model {

class StepRunner {
 public:
  // Takes all memory that a step needs. `decoder` and `stream.pool` must outlive it.
  static absl::StatusOr<StepRunner> Make(const Decoder* decoder, int hidden,
                                         const scheduler::ExecutorLimits& limits,
                                         const StateTypes& types, int64_t scratch_floats_per_token,
                                         Stream stream);
  // Bytes that Make takes beside slots and pages.
  static int64_t WorkspaceBytes(int hidden, const scheduler::ExecutorLimits& limits,
                                int64_t scratch_floats_per_token);

  const scheduler::ExecutorLimits& limits() const { return limits_; }
  StateMemory& state() { return state_; }

  scheduler::StepResult Run(absl::Span<const scheduler::SequenceInput> sequences);

 private:
  StepRunner(const Decoder* decoder, int hidden, const scheduler::ExecutorLimits& limits,
             Stream stream);
  BatchView Pack(absl::Span<const scheduler::SequenceInput> sequences);
  void PackSequence(const scheduler::SequenceInput& sequence, size_t index, int at,
                    int first_token);
  // Fills kept_rows_: all rows of sequences whose every logit is wanted, the last of those that
  // sample.
  void ChooseKeptRows(absl::Span<const scheduler::SequenceInput> sequences);
  int32_t PreviousToken(scheduler::SequenceId sequence) const;

  // Logits of `rows`, at most max_step_sequences of them, [rows, vocab].
  TensorView ComputeLogits(const StepContext& step, absl::Span<const WantedRow> rows);
  void SampleTokens(const StepContext& step, absl::Span<const scheduler::SequenceInput> sequences,
                    scheduler::StepResult* result);
  void PromptLogprobs(const StepContext& step, absl::Span<const scheduler::SequenceInput> sequences,
                      scheduler::StepResult* result);
  void AllLogits(const StepContext& step, absl::Span<const scheduler::SequenceInput> sequences,
                 scheduler::StepResult* result);

  const Decoder* decoder_;
  int hidden_;
  scheduler::ExecutorLimits limits_;
  Stream stream_;
  Buffer slots_, pages_, hidden_states_, logits_;
  StateMemory state_;
  Scratch scratch_;
  BatchStorage batch_, routed_;
  std::vector<int32_t> first_token_;  // of each sequence of the plan, in the batch
  // Rows of the batch whose hidden states are kept for the head, and where a sequence's begin.
  std::vector<int32_t> kept_rows_, first_kept_, head_rows_;
  int kept_ = 0;
  std::vector<std::pair<scheduler::SequenceId, int32_t>> previous_;  // sampled by the last step
  std::vector<kernels::SampleRow> sample_rows_;
  SampleRoom sample_room_;
  std::vector<std::vector<int32_t>> histories_;
};

}  // namespace weir::model
