// Sample and LogProbs as calls that wait for their results: a device sampler of this file's own.
#include "kernels/sample.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "core/check.h"
#include "kernels/cuda/device_sampler.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kRowsAtOnce = 64;
constexpr int kMaxTop = kMaxCandidates / 2;

std::mutex shared_mutex;

// The sampler of the calls below, with room for `history` words. Lives as long as the process: the
// driver may be gone before statics are destroyed. REQUIRES: shared_mutex is held.
absl::StatusOr<CudaSampler*> SharedSampler(int64_t history, Stream stream) {
  static CudaSampler* shared = nullptr;
  if (shared == nullptr || shared->history_capacity() < history) {
    DeviceSampler::Limits limits;
    limits.max_rows = kRowsAtOnce;
    limits.vocab = kMaxBlocks * kDrawBlock;
    limits.max_top = kMaxTop;
    limits.steps_in_flight = 1;
    auto made = CudaSampler::Make(limits, history, stream);
    if (!made.ok()) return made.status();
    delete shared;
    shared = made->release();
  }
  return shared;
}
CudaSampler& SharedOrDie(int64_t history, Stream stream) {
  auto sampler = SharedSampler(history, stream);
  WEIR_CHECK(sampler.ok()) << sampler.status().message();
  return **sampler;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSampler>> MakeDeviceSampler(
    const DeviceSampler::Limits& limits, int64_t history_capacity, Stream stream) {
  {
    // LogProbs is called while serving, when nothing may be allocated any more.
    std::lock_guard<std::mutex> lock(shared_mutex);
    if (auto shared = SharedSampler(0, stream); !shared.ok()) return shared.status();
  }
  auto made = CudaSampler::Make(limits, history_capacity, stream);
  if (!made.ok()) return made.status();
  return std::unique_ptr<DeviceSampler>(std::move(*made));
}

void Sample(TensorView logits, absl::Span<const SampleRow> rows, absl::Span<SampleResult> results,
            Stream stream) {
  const int64_t count = logits.size(0);
  WEIR_CHECK(static_cast<int64_t>(rows.size()) == count && results.size() == rows.size())
      << rows.size() << " rows for " << logits.ToString();
  std::lock_guard<std::mutex> lock(shared_mutex);
  for (int64_t begin = 0; begin < count; begin += kRowsAtOnce) {
    const int64_t now = std::min<int64_t>(kRowsAtOnce, count - begin);
    const auto part = rows.subspan(begin, now);
    int64_t history = 0;
    bool logprobs = false;
    for (const SampleRow& row : part) {
      history += CudaSampler::HistoryOf(row);
      logprobs |= row.num_top_logprobs >= 0;
    }
    CudaSampler& sampler = SharedOrDie(history, stream);
    sampler.Describe(0, part, {}, stream);
    sampler.Launch(logits.Rows(begin, now), {}, {}, stream);
    sampler.Fetch(0, static_cast<int>(now), logprobs, stream);
    cuda::Synchronize(stream);
    sampler.Read(0, results.subspan(begin, now));
  }
}

void LogProbs(TensorView logits, absl::Span<const int32_t> targets,
              absl::Span<SampleResult> results, Stream stream) {
  const int64_t count = logits.size(0), vocab = logits.size(1);
  WEIR_CHECK(static_cast<int64_t>(targets.size()) == count && results.size() == targets.size())
      << targets.size() << " targets for " << logits.ToString();
  std::lock_guard<std::mutex> lock(shared_mutex);
  for (int64_t begin = 0; begin < count; begin += kRowsAtOnce) {
    const int64_t now = std::min<int64_t>(kRowsAtOnce, count - begin);
    std::vector<int> tops;
    for (int64_t i = begin; i < begin + now; ++i) {
      WEIR_CHECK(targets[i] >= 0 && targets[i] < vocab)
          << "target " << targets[i] << " of " << vocab;
      tops.push_back(static_cast<int>(results[i].top.size()));
    }
    CudaSampler& sampler = SharedOrDie(0, stream);
    sampler.DescribeTargets(0, targets.subspan(begin, now), tops, stream);
    sampler.Launch(logits.Rows(begin, now), {}, {}, stream);
    sampler.Fetch(0, static_cast<int>(now), true, stream);
    cuda::Synchronize(stream);
    sampler.Read(0, results.subspan(begin, now));
  }
}

}  // namespace weir::kernels::gpu
