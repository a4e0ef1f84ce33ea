// One step on a GPU, from plan to enqueued work. Internal to the GPU executor; the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "core/buffer.h"
#include "core/cuda/runtime.h"
#include "core/status.h"
#include "kernels/device_sampler.h"
#include "model/batch.h"
#include "model/block_table.h"
#include "model/decoder.h"
#include "model/gpu_executor.h"
#include "model/step_results.h"
#include "scheduler/executor.h"

namespace weir::model {

class GpuStep {
 public:
  static absl::StatusOr<std::unique_ptr<GpuStep>> Make(const Decoder* decoder,
                                                       const GpuExecutorOptions& options,
                                                       Stream stream);

  const scheduler::ExecutorLimits& limits() const { return options_.limits; }
  StateMemory& state() { return state_; }
  int64_t sampler_bytes() const { return sampler_->device_bytes(); }

  // Runs every kernel that serving will run once, on padding, and captures the decode graphs.
  void WarmUp();

  // Enqueues everything up to the copy of results to the host-side block `copy`; fills in the parts
  // of `result` that had to be waited for (prompt log probabilities, all logits). The plan's spans
  // must live until the results have been read. False: all but the choice of tokens, as sequences
  // of the step are constrained; then Choose comes before the next Enqueue.
  bool Enqueue(absl::Span<const scheduler::SequenceInput> sequences, int copy,
               scheduler::StepResult* result);
  // Waits for the masks of constrained sequences, with the forward pass under way, and enqueues the
  // rest of that step.
  void Choose(absl::Span<const scheduler::SequenceInput> sequences, int copy,
              scheduler::StepResult* result);
  // After the stream has passed what Enqueue left there: the sampled tokens of that step.
  void ReadSampled(absl::Span<const scheduler::SequenceInput> sequences, int copy,
                   scheduler::StepResult* result);

 private:
  struct DecodeGraph {
    int sequences = 0;
    cuda::Graph graph;
  };

  GpuStep(const Decoder* decoder, const GpuExecutorOptions& options, Stream stream);
  absl::Status Allocate();

  // Packs the plan into batch_; returns its sizes. Padding fills up to `pad_to` sequences.
  struct Packed {
    int tokens = 0, sequences = 0, singles = 0;
  };
  Packed Pack(absl::Span<const scheduler::SequenceInput> sequences);
  void PackSequence(const scheduler::SequenceInput& sequence, size_t index, int at,
                    int first_token);
  void Pad(int sequences, int pad_to);
  int32_t SampledRow(scheduler::SequenceId sequence, size_t hint) const;
  // Fills batch_.rows with the rows the head will see, returns their number.
  int ChooseRows(absl::Span<const scheduler::SequenceInput> sequences, bool* plain);
  StepContext Context(const BatchView& batch);
  const DecodeGraph* GraphFor(absl::Span<const scheduler::SequenceInput> sequences) const;

  // What the sampler is launched on; of the step enqueued last.
  struct Choice {
    TensorView logits, fed_tokens, tokens;
  };

  // The forward pass of `rows` decoding sequences, from ids to sampled tokens: what a graph holds.
  void EnqueueDecode(int rows);
  // All but the choice; fills choice_.
  void EnqueueMixed(absl::Span<const scheduler::SequenceInput> sequences, const Packed& packed,
                    int copy, scheduler::StepResult* result);
  void Fetch(int copy);
  // Fills sample_rows_, append_fed_ and who is sampled.
  void BuildRows(absl::Span<const scheduler::SequenceInput> sequences, int copy);
  // Whether one description holds what all rows of the step look at (penalties, biases, masks).
  bool HistoriesFit(absl::Span<const scheduler::SequenceInput> sequences) const;
  // Else: as many rows at a time as fit, each group waited for. Nothing is left to read afterwards.
  void SampleInGroups(absl::Span<const scheduler::SequenceInput> sequences, int copy,
                      scheduler::StepResult* result);
  // Results of the sequences `rows` of the plan from the sampler's host-side block.
  void ReadRows(absl::Span<const scheduler::SequenceInput> sequences, absl::Span<const size_t> rows,
                int copy, scheduler::StepResult* result);
  // Logits of at most max_step_sequences wanted rows, in logits_.
  TensorView RowLogits(const StepContext& step, absl::Span<const WantedRow> rows, int kept);
  void AllLogits(const StepContext& step, absl::Span<const scheduler::SequenceInput> sequences,
                 int kept, scheduler::StepResult* result);
  void PromptLogprobs(const StepContext& step, absl::Span<const scheduler::SequenceInput> sequences,
                      int kept, scheduler::StepResult* result);

  const Decoder* decoder_;
  const GpuExecutorOptions options_;
  const Stream stream_;
  Buffer slots_, pages_, hidden_states_, logits_, op_scratch_, tokens_, fed_;
  StateMemory state_;
  Scratch scratch_;
  BatchStorage batch_, routed_, head_rows_;
  BlockTable table_;
  std::unique_ptr<kernels::DeviceSampler> sampler_;
  const int64_t history_capacity_;
  std::vector<DecodeGraph> graphs_;

  std::vector<int32_t> first_token_, first_kept_;  // of each sequence of the plan
  // Which sequence each row of the last step's sampled tokens belongs to, and of each step in
  // flight.
  std::vector<scheduler::SequenceId> sampled_by_;
  std::vector<size_t> sampled_[kGpuStepsInFlight];  // indices into the plan
  std::vector<kernels::SampleRow> sample_rows_;
  SampleRoom sample_room_;
  std::vector<uint8_t> append_fed_;
  Choice choice_;
};

}  // namespace weir::model
