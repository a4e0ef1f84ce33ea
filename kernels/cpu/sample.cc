// From logits to a token: a few vector passes over the vocabulary, then work on few candidates.
#include "kernels/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/sample_kernel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cuda/ops.h"
#include "kernels/draw_noise.h"

namespace weir::kernels {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kLog2E = 1.44269504088896341f;
// How many of the largest logits are looked at first when only top-p limits the choice.
constexpr int64_t kFirstLook = 64;

const ScanKernel& FindKernel() {
#if defined(__x86_64__)
  if (CurrentSimdLevel() >= SimdLevel::kAvx512) return kScanAvx512;
  if (CurrentSimdLevel() >= SimdLevel::kAvx2) return kScanAvx2;
#endif
  return kScanPlain;
}

bool InRange(int32_t id, int64_t vocab) { return id >= 0 && id < vocab; }

// Penalties, bias and forbidden tokens: few ids are touched.
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
      const auto count = static_cast<float>(next - i);
      logits[sorted[i]] -= row.presence_penalty + row.frequency_penalty * count;
    }
  }
  for (const auto& [id, bias] : row.logit_bias) {
    if (InRange(id, vocab)) logits[id] += bias;
  }
  for (int32_t id : row.forbidden) {
    if (InRange(id, vocab)) logits[id] = kNever;
  }
}

// A race of exponentials: Enter every runner, in ascending order of indices for the fewest calls of
// the generator; the winner is the one drawn.
class Race {
 public:
  Race(const SampleRow& row, uint64_t (*stream)(int64_t)) : row_(row), stream_of_(stream) {}

  void Enter(int64_t index, double weight) {
    if (!(weight > 0)) return;
    const uint64_t stream = stream_of_(index);
    if (!started_ || stream != stream_) {
      words_ = Philox(row_.seed, row_.draw, stream);
      stream_ = stream;
      started_ = true;
    }
    const uint32_t bits = words_[index % 4];
    if (winner_ >= 0 && LeastExponential(bits) >= best_ * weight) return;
    const double time =
        Exponential<double>(
            bits, [](double x) { return std::log1p(-x); }, [](double x) { return std::log(x); }) /
        weight;
    if (winner_ >= 0 && time >= best_) return;
    best_ = time;
    winner_ = index;
  }
  int64_t winner() const { return winner_; }

 private:
  const SampleRow& row_;
  uint64_t (*stream_of_)(int64_t);
  uint64_t stream_ = 0;
  std::array<uint32_t, 4> words_{};
  bool started_ = false;
  double best_ = 0;
  int64_t winner_ = -1;
};

// One row of logits after Adjust, and what the passes found out about it.
class Row {
 public:
  Row(float* logits, int64_t vocab, absl::Span<const uint32_t> mask)
      : kernel_(FindKernel()), logits_(logits), vocab_(vocab) {
    // About a thousand blocks, so that their maxima bound the largest few hundred logits. Whole
    // ones make up a block of draws.
    block_ = 16;
    while (block_ < kDrawBlock && block_ * 1024 < vocab) block_ *= 2;
    blocks_ = (vocab + block_ - 1) / block_;
    static thread_local Scratch scratch;
    float* memory = scratch.Of<float>(3 * blocks_ + kDrawBlock);
    block_max_ = memory;
    block_sum_ = memory + blocks_;
    sorted_max_ = memory + 2 * blocks_;
    p_ = memory + 3 * blocks_;
    kernel_.prepare(logits, vocab, mask.empty() ? nullptr : mask.data(),
                    static_cast<int64_t>(mask.size()), block_, block_max_);
    max_ = *std::max_element(block_max_, block_max_ + blocks_);
  }

  bool nothing_left() const { return max_ == kNever; }
  float max() const { return max_; }

  // Larger first, equal ones by id.
  bool Before(int32_t a, int32_t b) const {
    return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
  }

  int32_t Best() const {
    int64_t block = 0;
    while (block_max_[block] != max_) ++block;
    int64_t id = block * block_;
    while (logits_[id] != max_) ++id;
    return static_cast<int32_t>(id);
  }

  // Sum of e^((x - max) / temperature), leaving the sums of the blocks behind.
  double Total(float temperature) {
    scale_ = Scale(temperature);
    kernel_.exponentials(logits_, vocab_, max_, scale_, block_, nullptr, block_sum_);
    double total = 0;
    for (int64_t b = 0; b < blocks_; ++b) total += block_sum_[b];
    return total;
  }

  double Weight(int32_t id, float temperature) const {
    const double x = (double{logits_[id]} - max_) * Scale(temperature);
    return std::exp2(x);
  }

  // Draws among all, after Total.
  int32_t DrawAny(const SampleRow& want) {
    const int64_t per_draw_block = kDrawBlock / block_;
    Race blocks(want, BlockNoiseStream);
    for (int64_t b = 0; b * per_draw_block < blocks_; ++b) {
      const int64_t end = std::min((b + 1) * per_draw_block, blocks_);
      double mass = 0;
      for (int64_t i = b * per_draw_block; i < end; ++i) mass += block_sum_[i];
      blocks.Enter(b, mass);
    }
    const int64_t begin = blocks.winner() * kDrawBlock;
    const int64_t count = std::min<int64_t>(kDrawBlock, vocab_ - begin);
    float sum;
    kernel_.exponentials(logits_ + begin, count, max_, scale_, kDrawBlock, p_, &sum);
    Race ids(want, IdNoiseStream);
    for (int64_t i = 0; i < count; ++i) ids.Enter(begin + i, p_[i]);
    return static_cast<int32_t>(ids.winner());
  }

  // Draws among `ids`.
  int32_t DrawFrom(const SampleRow& want, const std::vector<int32_t>& ids) const {
    static thread_local std::vector<double> mass;
    mass.assign(vocab_ / kDrawBlock + 1, 0.0);
    for (int32_t id : ids) mass[id / kDrawBlock] += Weight(id, want.temperature);
    Race blocks(want, BlockNoiseStream);
    for (size_t b = 0; b < mass.size(); ++b) blocks.Enter(static_cast<int64_t>(b), mass[b]);
    Race race(want, IdNoiseStream);
    for (int32_t id : ids) {
      if (id / kDrawBlock == blocks.winner()) race.Enter(id, Weight(id, want.temperature));
    }
    return static_cast<int32_t>(race.winner());
  }

  // The `count` largest (fewer when fewer may be drawn), in order.
  std::vector<int32_t>& Largest(int64_t count) {
    std::vector<int32_t>& ids = AtLeast(count >= blocks_ ? kLowest : BlockBound(count));
    auto before = [this](int32_t a, int32_t b) { return Before(a, b); };
    if (static_cast<int64_t>(ids.size()) > count) {
      std::nth_element(ids.begin(), ids.begin() + count, ids.end(), before);
      ids.resize(count);
    }
    std::sort(ids.begin(), ids.end(), before);
    return ids;
  }

  // All with logits of at least `threshold` (above -infinity), by id.
  std::vector<int32_t>& AtLeast(float threshold) {
    static thread_local std::vector<int32_t> ids;
    ids.clear();
    int64_t count = 0;
    for (int64_t b = 0; b < blocks_; ++b) {
      if (block_max_[b] < threshold) continue;
      const int64_t begin = b * block_;
      ids.resize(count + block_);
      count += kernel_.collect(logits_ + begin, std::min(block_, vocab_ - begin), threshold,
                               static_cast<int32_t>(begin), ids.data() + count);
    }
    ids.resize(count);
    return ids;
  }

  float logit(int32_t id) const { return logits_[id]; }
  int64_t blocks() const { return blocks_; }

 private:
  // 2^(x * scale) = e^(x / temperature); finite, so that 0 * scale is 0.
  static float Scale(float temperature) { return std::min(kLog2E / temperature, 1e30f); }

  // `count` blocks have a maximum of at least this, so `count` logits are at least this.
  float BlockBound(int64_t count) {
    std::copy_n(block_max_, blocks_, sorted_max_);
    std::nth_element(sorted_max_, sorted_max_ + count - 1, sorted_max_ + blocks_,
                     std::greater<float>());
    return std::max(sorted_max_[count - 1], kLowest);
  }

  const ScanKernel& kernel_;
  float* logits_;
  int64_t vocab_, block_ = 0, blocks_ = 0;
  float *block_max_ = nullptr, *block_sum_ = nullptr, *sorted_max_ = nullptr, *p_ = nullptr;
  float max_ = kNever, scale_ = 0;
};

// The ids in order of probability whose mass first reaches `mass`, from ids in any order. Only the
// part that is kept is brought to the front: halves are weighed instead of everything being sorted.
void KeepMass(const Row& row, float temperature, double mass, std::vector<int32_t>& ids) {
  auto before = [&](int32_t a, int32_t b) { return row.Before(a, b); };
  size_t begin = 0, end = ids.size();  // the cut lies in (begin, end]
  while (end - begin > 64) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(ids.begin() + begin, ids.begin() + middle, ids.begin() + end, before);
    double upper = 0;
    for (size_t i = begin; i < middle; ++i) upper += row.Weight(ids[i], temperature);
    if (upper < mass) {
      mass -= upper;
      begin = middle;
    } else {
      end = middle;
    }
  }
  std::sort(ids.begin() + begin, ids.begin() + end, before);
  size_t keep = begin;
  double sum = 0;
  while (keep < end && (keep == 0 || sum < mass)) sum += row.Weight(ids[keep++], temperature);
  ids.resize(keep);
}

// Candidates left by top-k, top-p and min-p. Empty spans of the vocabulary are never sorted.
std::vector<int32_t>& Candidates(Row& row, const SampleRow& want, int64_t vocab) {
  const float t = want.temperature;
  auto weigh = [&](const std::vector<int32_t>& ids) {
    double sum = 0;
    for (int32_t id : ids) sum += row.Weight(id, t);
    return sum;
  };
  const bool top_p = want.top_p < 1.0f;
  std::vector<int32_t>* ids = nullptr;
  if (want.top_k > 0 && want.top_k < vocab) {
    ids = &row.Largest(want.top_k);
    if (top_p) KeepMass(row, t, want.top_p * weigh(*ids), *ids);
  } else if (top_p) {
    const double mass = want.top_p * row.Total(t);
    // Most distributions are narrow: a few of the largest hold the mass.
    for (int64_t look = kFirstLook; look < row.blocks() / 2 && ids == nullptr; look *= 4) {
      std::vector<int32_t>& largest = row.Largest(look);
      if (weigh(largest) >= mass) ids = &largest;
    }
    // Wide ones: those within so many factors of e of the best, until they hold it.
    for (float nats = 4.0f; nats < 24.0f && ids == nullptr; nats += 2.0f) {
      std::vector<int32_t>& near = row.AtLeast(std::max(row.max() - nats * t, kLowest));
      if (weigh(near) >= mass) ids = &near;
    }
    if (ids == nullptr) ids = &row.AtLeast(kLowest);
    KeepMass(row, t, mass, *ids);
  } else {
    // min-p alone: a little below the threshold, then exactly. The weight of the best is 1.
    const double distance = std::log(double{want.min_p}) * t;
    const auto bound = static_cast<float>(row.max() + distance * 1.0001 - 1e-4);
    ids = &row.AtLeast(std::max(bound, kLowest));
  }
  if (want.min_p > 0.0f) {
    const int32_t best = row.Best();
    std::erase_if(*ids, [&](int32_t id) { return id != best && row.Weight(id, t) < want.min_p; });
  }
  return *ids;
}

int32_t Draw(Row& row, const SampleRow& want, int64_t vocab) {
  if (want.temperature <= 0.0f || want.top_k == 1) return row.Best();
  const bool truncated =
      (want.top_k > 0 && want.top_k < vocab) || want.top_p < 1.0f || want.min_p > 0.0f;
  if (truncated) return row.DrawFrom(want, Candidates(row, want, vocab));
  row.Total(want.temperature);
  return row.DrawAny(want);
}

void ReportLogProbs(Row& row, int32_t token, int64_t top, SampleResult& result) {
  const auto room = static_cast<int64_t>(result.top.size());
  if (row.nothing_left()) {
    result.logprob = kNever;
    result.top = result.top.subspan(0, 0);
    return;
  }
  const double total = row.max() + std::log(row.Total(1.0f));
  result.logprob = static_cast<float>(row.logit(token) - total);
  int64_t count = 0;
  if (std::min(top, room) > 0) {
    for (int32_t id : row.Largest(std::min(top, room))) {
      result.top[count++] = {id, static_cast<float>(row.logit(id) - total)};
    }
  }
  result.top = result.top.subspan(0, count);
}

}  // namespace

void Sample(TensorView logits, absl::Span<const SampleRow> rows, absl::Span<SampleResult> results,
            Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::Sample(logits, rows, results, stream);
  }
  const int64_t count = logits.size(0), vocab = logits.size(1);
  WEIR_CHECK(static_cast<int64_t>(rows.size()) == count && results.size() == rows.size())
      << rows.size() << " rows for " << logits.ToString();
  stream.pool->ParallelFor(count, [&](int64_t r) {
    float* x = logits.row<float>(r);
    Adjust(x, vocab, rows[r]);
    Row row(x, vocab, rows[r].allowed_mask);
    SampleResult& result = results[r];
    result.token = row.nothing_left() ? -1 : Draw(row, rows[r], vocab);
    if (result.token < 0 || rows[r].num_top_logprobs < 0) {
      result.top = result.top.subspan(0, 0);
    } else {
      ReportLogProbs(row, result.token, rows[r].num_top_logprobs, result);
    }
  });
}

void LogProbs(TensorView logits, absl::Span<const int32_t> targets,
              absl::Span<SampleResult> results, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::LogProbs(logits, targets, results, stream);
  }
  const int64_t count = logits.size(0), vocab = logits.size(1);
  WEIR_CHECK(static_cast<int64_t>(targets.size()) == count && results.size() == targets.size())
      << targets.size() << " targets for " << logits.ToString();
  stream.pool->ParallelFor(count, [&](int64_t r) {
    WEIR_CHECK(InRange(targets[r], vocab)) << "target " << targets[r] << " of " << vocab;
    Row row(logits.row<float>(r), vocab, {});
    results[r].token = targets[r];
    ReportLogProbs(row, targets[r], static_cast<int64_t>(results[r].top.size()), results[r]);
  });
}

}  // namespace weir::kernels
