// The GPU executor: steps are enqueued on one stream and waited for later. Decode steps are graphs,
// one per number of sequences (padded up); sampled tokens stay on the device and feed the next
// step.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/status.h"
#include "core/stream.h"
#include "model/batch.h"
#include "model/decoder.h"
#include "scheduler/executor.h"

namespace weir::model {

// Steps whose host-side data must live at once.
constexpr int kGpuStepsInFlight = 2;

struct GpuExecutorOptions {
  int hidden = 0;
  scheduler::ExecutorLimits limits;
  StateTypes types;
  DType activations = DType::kF32;
  int64_t scratch_floats_per_token = 0;
  bool graphs = true;
  int max_top_logprobs = 20;
};

// Device memory of an executor by use.
struct GpuMemory {
  int64_t slots = 0, pages = 0, activations = 0, op_scratch = 0, logits = 0, batch = 0;
  int64_t sampler = 0;
  int64_t graphs = 0;  // taken by the driver for captured graphs and loaded kernels
  int64_t workspace() const { return activations + op_scratch + logits + batch + sampler; }
};

// What Make will allocate beside slots, pages, the sampler and graphs. `decoder` is loaded.
GpuMemory PlanGpuMemory(const Decoder& decoder, const GpuExecutorOptions& options, Stream stream);

// Sequences in a step for which graphs are captured, ascending; the last is `max_sequences`.
std::vector<int> GraphSizes(int max_sequences);
// Rows of matrix products worth measuring: graph sizes past the streaming kernels, and prefill.
std::vector<int64_t> TunedRows(const GpuExecutorOptions& options);

// Takes all memory, tunes matrix products, runs every kernel once and captures the graphs.
// `decoder` must outlive it. RESOURCE_EXHAUSTED. `memory` receives what was taken.
absl::StatusOr<std::unique_ptr<scheduler::Executor>> MakeGpuExecutor(
    const Decoder* decoder, const GpuExecutorOptions& options, Stream stream, GpuMemory* memory);

}  // namespace weir::model
