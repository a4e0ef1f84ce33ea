// Descriptions in, tokens and log probabilities out: the memory around the kernel of
// sample_rows.cu.
#include "kernels/cuda/device_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

int64_t Aligned(int64_t bytes) { return CeilDiv(bytes, 256) * 256; }

template <typename T>
T* At(std::byte* memory, int64_t offset) {
  return reinterpret_cast<T*>(memory + offset);
}

bool NeedsGenerated(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaSampler>> CudaSampler::Make(const Limits& limits,
                                                               int64_t history_capacity,
                                                               Stream stream) {
  WEIR_CHECK(limits.max_rows > 0 && limits.max_rows <= 65535 && limits.vocab > 0 &&
             limits.max_top >= 0 && limits.steps_in_flight > 0 && history_capacity >= 0)
      << "a sampler of " << limits.max_rows << " rows, vocabulary " << limits.vocab;
  if (limits.vocab > kMaxBlocks * kDrawBlock) {
    return absl::UnimplementedError(
        "a vocabulary of " + std::to_string(limits.vocab) + " tokens; on a GPU at most " +
        std::to_string(kMaxBlocks * kDrawBlock) + " can be sampled from");
  }
  std::unique_ptr<CudaSampler> sampler(new CudaSampler);
  sampler->limits_ = limits;
  sampler->history_capacity_ = history_capacity;
  sampler->Layout();
  const int64_t rows = limits.max_rows, most_parts = rows + 2 * cuda::Device().multiprocessors;
  const int64_t partials_at = sampler->step_bytes_;
  const int64_t arrived_at = partials_at + Aligned(most_parts * int64_t{sizeof(Best)});
  const int64_t max_at = arrived_at + Aligned(rows * 4);
  const int64_t block_bytes = rows * kMaxBlocks * 4, bytes = max_at + 3 * block_bytes;
  auto device = cuda::AllocateDevice(static_cast<size_t>(bytes), "the sampler");
  if (!device.ok()) return device.status();
  sampler->device_ = std::move(*device);
  std::byte* memory = sampler->device_.data();
  // No rows are described yet, none have arrived.
  cuda::Zero(memory, static_cast<size_t>(max_at), stream);
  for (int i = 0; i < limits.steps_in_flight; ++i) {
    auto pinned = cuda::AllocatePinned(static_cast<size_t>(sampler->step_bytes_),
                                       "a step's copies of the sampler");
    if (!pinned.ok()) return pinned.status();
    Step step;
    step.memory = std::move(*pinned);
    std::byte* host = step.memory.data();
    step.plan = At<SamplePlan>(host, 0);
    step.rows = At<RowPlan>(host, sampler->rows_at_);
    step.pool = At<int32_t>(host, sampler->pool_at_);
    step.tokens = At<int32_t>(host, sampler->tokens_at_);
    step.logprobs = At<float>(host, sampler->logprobs_at_);
    step.top_counts = At<int32_t>(host, sampler->counts_at_);
    step.top = At<TopEntry>(host, sampler->top_at_);
    sampler->steps_.push_back(std::move(step));
  }
  SampleJob& job = sampler->job_;
  job.plan = At<SamplePlan>(memory, 0);
  job.rows = At<RowPlan>(memory, sampler->rows_at_);
  job.pool = At<int32_t>(memory, sampler->pool_at_);
  job.result_tokens = At<int32_t>(memory, sampler->tokens_at_);
  job.logprobs = At<float>(memory, sampler->logprobs_at_);
  job.top_counts = At<int32_t>(memory, sampler->counts_at_);
  job.top = At<TopEntry>(memory, sampler->top_at_);
  job.partials = At<Best>(memory, partials_at);
  job.arrived = At<uint32_t>(memory, arrived_at);
  job.block_max = At<float>(memory, max_at);
  job.block_mass = At<float>(memory, max_at + block_bytes);
  job.block_mass_at_one = At<float>(memory, max_at + 2 * block_bytes);
  return sampler;
}

void CudaSampler::Layout() {
  const int64_t rows = limits_.max_rows;
  rows_at_ = Aligned(sizeof(SamplePlan));
  pool_at_ = rows_at_ + Aligned(rows * int64_t{sizeof(RowPlan)});
  tokens_at_ = pool_at_ + Aligned(history_capacity_ * 4);
  // Neighbours, so that one copy fetches all three.
  logprobs_at_ = tokens_at_ + rows * 4;
  counts_at_ = logprobs_at_ + rows * 4;
  top_at_ = Aligned(counts_at_ + rows * 4);
  step_bytes_ = top_at_ + Aligned(rows * limits_.max_top * int64_t{sizeof(TopEntry)});
}

int64_t CudaSampler::HistoryOf(const SampleRow& row) {
  int64_t words = static_cast<int64_t>(row.forbidden.size() + row.allowed_mask.size() +
                                       2 * row.logit_bias.size());
  if (row.repetition_penalty != 1.0f) words += static_cast<int64_t>(row.prompt.size());
  if (NeedsGenerated(row)) words += static_cast<int64_t>(row.generated.size());
  return words;
}

RowPlan CudaSampler::PlanOf(const SampleRow& row, bool append_fed, int32_t* pool,
                            int64_t* used) const {
  WEIR_CHECK(*used + HistoryOf(row) <= history_capacity_)
      << "histories of " << *used + HistoryOf(row) << " ids, room for " << history_capacity_;
  WEIR_CHECK(row.num_top_logprobs <= limits_.max_top)
      << row.num_top_logprobs << " top log probabilities, at most " << limits_.max_top;
  RowPlan plan{};
  plan.scale = 1.0f;
  plan.log2_min_p = -INFINITY;
  plan.top_p = 1.0f;
  plan.seed = row.seed;
  plan.draw = row.draw;
  plan.num_top = row.num_top_logprobs;
  if (row.num_top_logprobs >= 0) plan.flags |= kRowLogprob;
  if (row.temperature > 0.0f && row.top_k != 1) {
    plan.flags |= kRowDraws;
    plan.scale = std::min(kLog2E / row.temperature, 1e30f);
    if (row.top_k > 0 && row.top_k < limits_.vocab) plan.top_k = row.top_k;
    plan.top_p = row.top_p;
    if (row.min_p > 0.0f) plan.log2_min_p = std::min(std::log2(double{row.min_p}), 0.0);
    const bool by_mass = row.top_p < 1.0f;
    if (plan.top_k > 0 || by_mass || row.min_p > 0.0f) plan.flags |= kRowTruncates;
    if (plan.top_k == 0 && by_mass) plan.flags |= kRowMeasures;
  }
  const auto add = [&](const auto& words) {
    const auto begin = static_cast<int32_t>(*used);
    std::copy(words.begin(), words.end(), pool + *used);
    *used += static_cast<int64_t>(words.size());
    return begin;
  };
  plan.repetition = row.repetition_penalty;
  plan.presence = row.presence_penalty;
  plan.frequency = row.frequency_penalty;
  if (NeedsGenerated(row)) {
    plan.flags |= kRowCounts;
    plan.append_fed = append_fed;
    plan.ids_begin = static_cast<int32_t>(*used);
    if (row.repetition_penalty != 1.0f) add(row.prompt);
    plan.generated_begin = add(row.generated);
    plan.generated_end = static_cast<int32_t>(*used);
  }
  if (!row.logit_bias.empty()) {
    plan.flags |= kRowBias;
    plan.bias_begin = static_cast<int32_t>(*used);
    plan.bias_count = static_cast<int32_t>(row.logit_bias.size());
    for (const auto& [id, bias] : row.logit_bias) {
      pool[*used] = id;
      std::memcpy(pool + *used + plan.bias_count, &bias, sizeof(bias));
      ++*used;
    }
    *used += plan.bias_count;
  }
  if (!row.forbidden.empty()) {
    plan.flags |= kRowForbids;
    plan.forbidden_begin = add(row.forbidden);
    plan.forbidden_count = static_cast<int32_t>(row.forbidden.size());
  }
  if (!row.allowed_mask.empty()) {
    plan.flags |= kRowMask;
    plan.mask_begin = add(row.allowed_mask);
    plan.mask_words = static_cast<int32_t>(row.allowed_mask.size());
  }
  return plan;
}

void CudaSampler::Upload(const Step& step, int rows, int64_t pool_used, Stream stream) {
  step.plan->rows = rows;
  step.plan->top_pitch = 0;
  for (int i = 0; i < rows; ++i) {
    step.plan->top_pitch = std::max(step.plan->top_pitch, step.rows[i].num_top);
  }
  std::byte* device = device_.data();
  const auto described = static_cast<size_t>(rows_at_ + rows * int64_t{sizeof(RowPlan)});
  cuda::Copy(device, step.memory.data(), described, stream);
  if (pool_used > 0) {
    cuda::Copy(device + pool_at_, step.pool, static_cast<size_t>(pool_used * 4), stream);
  }
}

void CudaSampler::Describe(int step_index, absl::Span<const SampleRow> rows,
                           absl::Span<const uint8_t> append_fed, Stream stream) {
  Step& step = steps_[step_index];
  const auto count = static_cast<int>(rows.size());
  WEIR_CHECK(count <= limits_.max_rows && (append_fed.empty() || append_fed.size() == rows.size()))
      << count << " rows of at most " << limits_.max_rows << ", " << append_fed.size() << " flags";
  int64_t used = 0;
  for (int i = 0; i < count; ++i) {
    step.rows[i] = PlanOf(rows[i], !append_fed.empty() && append_fed[i] != 0, step.pool, &used);
  }
  Upload(step, count, used, stream);
}

void CudaSampler::DescribeNone(Stream stream) {
  cuda::Zero(device_.data(), sizeof(SamplePlan), stream);
}

void CudaSampler::DescribeTargets(int step_index, absl::Span<const int32_t> targets,
                                  absl::Span<const int> tops, Stream stream) {
  Step& step = steps_[step_index];
  const auto count = static_cast<int>(targets.size());
  WEIR_CHECK(count <= limits_.max_rows) << count << " rows of at most " << limits_.max_rows;
  for (int i = 0; i < count; ++i) {
    WEIR_CHECK(tops[i] <= limits_.max_top) << tops[i] << " top log probabilities";
    RowPlan plan{};
    plan.flags = kRowTarget | kRowLogprob;
    plan.scale = 1.0f;
    plan.log2_min_p = -INFINITY;
    plan.top_p = 1.0f;
    plan.repetition = 1.0f;
    plan.target = targets[i];
    plan.num_top = tops[i];
    step.rows[i] = plan;
  }
  Upload(step, count, 0, stream);
}

void CudaSampler::Launch(TensorView logits, TensorView fed_tokens, TensorView tokens,
                         Stream stream) {
  const int64_t rows = logits.size(0);
  WEIR_CHECK(rows <= limits_.max_rows && logits.size(1) <= limits_.vocab)
      << logits.ToString() << " for " << limits_.max_rows << " rows of " << limits_.vocab;
  if (rows == 0) return;
  SampleJob job = job_;
  job.logits = logits.data<float>();
  job.stride = logits.row_stride();
  job.vocab = static_cast<int32_t>(logits.size(1));
  job.fed = fed_tokens.defined() ? fed_tokens.data<int32_t>() : nullptr;
  job.tokens = tokens.defined() ? tokens.data<int32_t>() : nullptr;
  LaunchSample(job, rows, stream);
}

void CudaSampler::Fetch(int step_index, int rows, bool with_logprobs, Stream stream) {
  Step& step = steps_[step_index];
  step.has_logprobs = with_logprobs;
  if (rows == 0) return;
  const std::byte* device = device_.data();
  const int64_t end = with_logprobs ? counts_at_ + rows * 4 : tokens_at_ + rows * 4;
  cuda::Copy(step.tokens, device + tokens_at_, static_cast<size_t>(end - tokens_at_), stream);
  const int64_t top = std::min(rows, step.plan->rows) * int64_t{step.plan->top_pitch};
  if (with_logprobs && top > 0) {
    cuda::Copy(step.top, device + top_at_, static_cast<size_t>(top) * sizeof(TopEntry), stream);
  }
}

void CudaSampler::Read(int step_index, absl::Span<SampleResult> results) {
  const Step& step = steps_[step_index];
  for (size_t i = 0; i < results.size(); ++i) {
    SampleResult& result = results[i];
    result.token = step.tokens[i];
    int64_t count = 0;
    if (step.has_logprobs && step.rows[i].num_top >= 0 && result.token >= 0) {
      result.logprob = step.logprobs[i];
      count = std::min({int64_t{step.top_counts[i]}, int64_t{step.rows[i].num_top},
                        static_cast<int64_t>(result.top.size())});
    }
    for (int64_t k = 0; k < count; ++k) {
      const TopEntry& entry = step.top[static_cast<int64_t>(i) * step.plan->top_pitch + k];
      result.top[k] = {entry.id, entry.logprob};
    }
    result.top = result.top.subspan(0, count);
  }
}

}  // namespace weir::kernels::gpu
