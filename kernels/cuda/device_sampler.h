// The device sampler, and what Sample and LogProbs need beyond its interface.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda/sample_rows.h"
#include "kernels/device_sampler.h"

namespace weir::kernels::gpu {

class CudaSampler final : public DeviceSampler {
 public:
  static absl::StatusOr<std::unique_ptr<CudaSampler>> Make(const Limits& limits,
                                                           int64_t history_capacity, Stream stream);

  void Describe(int step, absl::Span<const SampleRow> rows, absl::Span<const uint8_t> append_fed,
                Stream stream) override;
  void DescribeNone(Stream stream) override;
  void Launch(TensorView logits, TensorView fed_tokens, TensorView tokens, Stream stream) override;
  void Fetch(int step, int rows, bool with_logprobs, Stream stream) override;
  void Read(int step, absl::Span<SampleResult> results) override;
  int64_t device_bytes() const override { return static_cast<int64_t>(device_.size_bytes()); }

  // As Describe, for LogProbs: row i reports on targets[i] and the `tops[i]` best.
  void DescribeTargets(int step, absl::Span<const int32_t> targets, absl::Span<const int> tops,
                       Stream stream);
  const Limits& limits() const { return limits_; }
  int64_t history_capacity() const { return history_capacity_; }
  // Words of the pool that a row's description takes.
  static int64_t HistoryOf(const SampleRow& row);

 private:
  // A step's memory on the host: as on the device, first what is uploaded, then the results.
  struct Step {
    Buffer memory;
    SamplePlan* plan = nullptr;
    RowPlan* rows = nullptr;
    int32_t* pool = nullptr;
    int32_t* tokens = nullptr;
    float* logprobs = nullptr;
    int32_t* top_counts = nullptr;
    TopEntry* top = nullptr;
    bool has_logprobs = false;
  };

  CudaSampler() = default;
  // Offsets of the parts of uploads and results, from the start of a step's memory.
  void Layout();
  RowPlan PlanOf(const SampleRow& row, bool append_fed, int32_t* pool, int64_t* used) const;
  void Upload(const Step& step, int rows, int64_t pool_used, Stream stream);

  Limits limits_;
  int64_t history_capacity_ = 0;
  int64_t rows_at_ = 0, pool_at_ = 0, tokens_at_ = 0, logprobs_at_ = 0, counts_at_ = 0, top_at_ = 0,
          step_bytes_ = 0;
  Buffer device_;
  std::vector<Step> steps_;
  SampleJob job_{};  // all but what Launch is given
};

}  // namespace weir::kernels::gpu
