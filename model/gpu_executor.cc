#include "model/gpu_executor.h"

#include <algorithm>
#include <deque>
#include <set>
#include <utility>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "kernels/copy.h"
#include "kernels/matmul.h"
#include "model/gpu_step.h"

namespace weir::model {

using scheduler::SequenceInput;
using scheduler::StepPlan;
using scheduler::StepResult;

namespace {

class GpuExecutor final : public scheduler::Executor {
 public:
  GpuExecutor(std::unique_ptr<GpuStep> step, Stream stream)
      : step_(std::move(step)), stream_(stream) {
    for (Flight& flight : flights_) {
      flight.begin = cuda::Event::Make(true);
      flight.end = cuda::Event::Make(true);
    }
  }
  ~GpuExecutor() override { cuda::Synchronize(stream_); }

  const scheduler::ExecutorLimits& limits() const override { return step_->limits(); }

  void Submit(const StepPlan& plan) override {
    WEIR_CHECK(!plan.sequences.empty()) << "an empty step";
    WEIR_CHECK(submitted_ - waited_ < kGpuStepsInFlight) << "too many steps in flight";
    ChooseLast();
    const int copy = static_cast<int>(submitted_++ % kGpuStepsInFlight);
    Flight& flight = flights_[copy];
    flight.sequences = plan.sequences;
    flight.result = {};
    flight.begin.Record(stream_);
    flight.waits = !step_->Enqueue(flight.sequences, copy, &flight.result);
    if (!flight.waits) flight.end.Record(stream_);
  }

  StepResult Wait() override {
    WEIR_CHECK(submitted_ > waited_) << "no step in flight";
    const int copy = static_cast<int>(waited_++ % kGpuStepsInFlight);
    Flight& flight = flights_[copy];
    if (flight.waits) ChooseLast();
    flight.end.Synchronize();
    step_->ReadSampled(flight.sequences, copy, &flight.result);
    flight.result.duration_us =
        static_cast<int64_t>(1000.0f * cuda::Event::Milliseconds(flight.begin, flight.end));
    return std::move(flight.result);
  }

  void Copy(absl::Span<const std::pair<int32_t, int32_t>> slots,
            absl::Span<const std::pair<int32_t, int32_t>> pages) override {
    const auto copies = [](absl::Span<const std::pair<int32_t, int32_t>> pairs) {
      std::vector<kernels::BlockCopy> out;
      for (const auto& [from, to] : pairs) out.push_back({from, to});
      return out;
    };
    const StateMemory& state = step_->state();
    kernels::CopyBlocks(state.slots, state.slot_bytes, copies(slots), stream_);
    if (!pages.empty()) {
      kernels::CopyBlocks(state.pages, state.page_bytes, copies(pages), stream_);
    }
  }

  void CopyOut(int32_t slot, absl::Span<const int32_t> pages, std::byte* to) override {
    const StateMemory& state = step_->state();
    Move(to, state.slots + slot * state.slot_bytes, state.slot_bytes);
    to += state.slot_bytes;
    for (const int32_t page : pages) {
      Move(to, state.pages + page * state.page_bytes, state.page_bytes);
      to += state.page_bytes;
    }
    cuda::Synchronize(stream_);
  }

  void CopyIn(int32_t slot, absl::Span<const int32_t> pages, const std::byte* from) override {
    const StateMemory& state = step_->state();
    Move(state.slots + slot * state.slot_bytes, from, state.slot_bytes);
    from += state.slot_bytes;
    for (const int32_t page : pages) {
      Move(state.pages + page * state.page_bytes, from, state.page_bytes);
      from += state.page_bytes;
    }
    cuda::Synchronize(stream_);
  }

 private:
  // A step that is enqueued and not waited for.
  struct Flight {
    std::vector<SequenceInput> sequences;
    StepResult result;
    cuda::Event begin, end;
    bool waits = false;  // for masks: the choice of its tokens is not enqueued yet
  };

  // Enqueues what the step submitted last still lacks. Its masks follow from the results of the
  // step before, which has been waited for: two steps are in flight at most.
  void ChooseLast() {
    if (submitted_ == 0) return;
    const int copy = static_cast<int>((submitted_ - 1) % kGpuStepsInFlight);
    Flight& flight = flights_[copy];
    if (!std::exchange(flight.waits, false)) return;
    step_->Choose(flight.sequences, copy, &flight.result);
    flight.end.Record(stream_);
  }

  void Move(void* to, const void* from, int64_t bytes) {
    cuda::Copy(to, from, static_cast<size_t>(bytes), stream_);
  }

  std::unique_ptr<GpuStep> step_;
  const Stream stream_;
  Flight flights_[kGpuStepsInFlight];
  int64_t submitted_ = 0, waited_ = 0;
};

// Matrices below this many weights are so quick that measuring them would only delay the start.
constexpr int64_t kTuneElements = int64_t{1} << 20;

void Tune(const Decoder& decoder, const GpuExecutorOptions& options, Stream stream) {
  const std::vector<int64_t> rows = TunedRows(options);
  std::vector<int64_t> head_rows;
  for (const int64_t count : rows) {
    if (count <= options.limits.max_step_sequences) head_rows.push_back(count);
  }
  const std::vector<const kernels::PackedMatrix*> all = decoder.Matrices();
  std::set<std::pair<int64_t, int64_t>> seen;
  for (const kernels::PackedMatrix* matrix : all) {
    if (matrix->out() * matrix->in() < kTuneElements) continue;
    if (!seen.emplace(matrix->out(), matrix->in()).second) continue;
    kernels::TuneMatMul(*matrix, matrix == all.back() ? head_rows : rows, stream);
  }
}

}  // namespace

std::vector<int> GraphSizes(int max_sequences) {
  std::vector<int> sizes;
  for (int size = 1; size < max_sequences; size += size < 4     ? (size == 1 ? 1 : 2)
                                                   : size < 8   ? 4
                                                   : size < 32  ? 8
                                                   : size < 128 ? 16
                                                                : 32) {
    sizes.push_back(size);
  }
  sizes.push_back(max_sequences);
  return sizes;
}

std::vector<int64_t> TunedRows(const GpuExecutorOptions& options) {
  std::vector<int64_t> rows;
  for (const int size : GraphSizes(options.limits.max_step_sequences)) {
    if (size > kernels::kStreamRows) rows.push_back(size);
  }
  for (int64_t count = 512; count <= options.limits.max_step_tokens; count *= 2) {
    rows.push_back(count);
  }
  return rows;
}

absl::StatusOr<std::unique_ptr<scheduler::Executor>> MakeGpuExecutor(
    const Decoder* decoder, const GpuExecutorOptions& options, Stream stream, GpuMemory* memory) {
  *memory = PlanGpuMemory(*decoder, options, stream);
  ASSIGN_OR_RETURN(std::unique_ptr<GpuStep> step, GpuStep::Make(decoder, options, stream));
  memory->sampler = step->sampler_bytes();
  ASSIGN_OR_RETURN(const cuda::DeviceInfo before, cuda::Open());
  Tune(*decoder, options, stream);
  step->WarmUp();
  ASSIGN_OR_RETURN(const cuda::DeviceInfo after, cuda::Open());
  memory->graphs = std::max<int64_t>(0, before.free_bytes - after.free_bytes);
  return std::make_unique<GpuExecutor>(std::move(step), stream);
}

}  // namespace weir::model
