// From logits to a token.
#include "kernels/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/philox.h"
#include "core/thread_pool.h"

namespace weir::kernels {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

bool InRange(int32_t id, int64_t vocab) { return id >= 0 && id < vocab; }

// NaN becomes "never"; infinity becomes the largest number, so that differences are numbers.
void Sanitise(float* logits, int64_t vocab) {
  for (int64_t i = 0; i < vocab; ++i) {
    logits[i] =
        std::isnan(logits[i]) ? kNever : std::min(logits[i], std::numeric_limits<float>::max());
  }
}

// Penalties, bias, forbidden tokens; NaN becomes "never".
void Adjust(float* logits, int64_t vocab, const SampleRow& row) {
  if (row.repetition_penalty != 1.0f) {
    std::vector<int32_t> seen(row.prompt.begin(), row.prompt.end());
    seen.insert(seen.end(), row.generated.begin(), row.generated.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (int32_t id : seen) {
      if (!InRange(id, vocab)) continue;
      float& x = logits[id];
      x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    }
  }
  if (row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f) {
    std::vector<int32_t> sorted(row.generated.begin(), row.generated.end());
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0, next; i < sorted.size(); i = next) {
      for (next = i + 1; next < sorted.size() && sorted[next] == sorted[i];) ++next;
      if (!InRange(sorted[i], vocab)) continue;
      logits[sorted[i]] -=
          row.presence_penalty + row.frequency_penalty * static_cast<float>(next - i);
    }
  }
  for (const auto& [id, bias] : row.logit_bias) {
    if (InRange(id, vocab)) logits[id] += bias;
  }
  for (int32_t id : row.forbidden) {
    if (InRange(id, vocab)) logits[id] = kNever;
  }
  if (!row.allowed_mask.empty()) {
    for (int64_t i = 0; i < vocab; ++i) {
      const size_t word = static_cast<size_t>(i / 32);
      if (word >= row.allowed_mask.size() || !(row.allowed_mask[word] >> (i % 32) & 1u)) {
        logits[i] = kNever;
      }
    }
  }
  Sanitise(logits, vocab);
}

bool Before(const float* logits, int32_t a, int32_t b) {
  return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

float LogSumExp(const float* logits, int64_t vocab) {
  const float max = *std::max_element(logits, logits + vocab);
  if (max == kNever) return 0.0f;  // no distribution: every log probability is -infinity
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i] - max));
  return static_cast<float>(max + std::log(sum));
}

void ReportLogProbs(const float* logits, int64_t vocab, int32_t token, SampleResult& result,
                    int64_t top) {
  const float total = LogSumExp(logits, vocab);
  result.logprob = logits[token] - total;
  const int64_t count = std::min({top, vocab, static_cast<int64_t>(result.top.size())});
  std::vector<int32_t> ids(vocab);
  for (int64_t i = 0; i < vocab; ++i) ids[i] = static_cast<int32_t>(i);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](int32_t a, int32_t b) { return Before(logits, a, b); });
  for (int64_t i = 0; i < count; ++i) result.top[i] = {ids[i], logits[ids[i]] - total};
  result.top = result.top.subspan(0, count);
}

int32_t Draw(const float* logits, int64_t vocab, const SampleRow& row) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] != kNever) ids.push_back(static_cast<int32_t>(i));
  }
  if (ids.empty()) return -1;
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return Before(logits, a, b); });
  if (row.temperature <= 0.0f) return ids[0];
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < ids.size()) ids.resize(row.top_k);
  std::vector<double> p(ids.size());
  double sum = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    p[i] = std::exp(static_cast<double>(logits[ids[i]] - logits[ids[0]]) / row.temperature);
    sum += p[i];
  }
  size_t keep = ids.size();
  if (row.top_p < 1.0f) {
    double mass = 0;
    for (keep = 0; keep < ids.size() && (keep == 0 || mass < row.top_p * sum); ++keep)
      mass += p[keep];
  }
  while (keep > 1 && p[keep - 1] < row.min_p * p[0]) --keep;
  double kept = 0;
  for (size_t i = 0; i < keep; ++i) kept += p[i];
  double target = ToUniform(Philox(row.seed, row.draw)[0]) * kept;
  for (size_t i = 0; i < keep; ++i) {
    target -= p[i];
    if (target < 0) return ids[i];
  }
  return ids[keep - 1];
}

}  // namespace

void Sample(TensorView logits, absl::Span<const SampleRow> rows, absl::Span<SampleResult> results,
            Stream stream) {
  const int64_t count = logits.size(0), vocab = logits.size(1);
  WEIR_CHECK(static_cast<int64_t>(rows.size()) == count && results.size() == rows.size())
      << rows.size() << " rows for " << logits.ToString();
  stream.pool->ParallelRanges(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* x = logits.row<float>(r);
      Adjust(x, vocab, rows[r]);
      results[r].token = Draw(x, vocab, rows[r]);
      if (results[r].token < 0) {
        results[r].top = results[r].top.subspan(0, 0);
      } else if (rows[r].num_top_logprobs >= 0) {
        ReportLogProbs(x, vocab, results[r].token, results[r], rows[r].num_top_logprobs);
      }
    }
  });
}

void LogProbs(TensorView logits, absl::Span<const int32_t> targets,
              absl::Span<SampleResult> results, Stream stream) {
  const int64_t count = logits.size(0), vocab = logits.size(1);
  WEIR_CHECK(static_cast<int64_t>(targets.size()) == count && results.size() == targets.size())
      << targets.size() << " targets for " << logits.ToString();
  stream.pool->ParallelRanges(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      results[r].token = targets[r];
      Sanitise(logits.row<float>(r), vocab);
      ReportLogProbs(logits.row<float>(r), vocab, targets[r], results[r],
                     static_cast<int64_t>(results[r].top.size()));
    }
  });
}

}  // namespace weir::kernels
