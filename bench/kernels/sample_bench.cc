// Sample over a vocabulary of 248,320 (Qwen3.5), one row and sixteen.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/sample.h"

namespace weir::kernels {
namespace {

Stream BenchStream() {
  static ThreadPool pool(UsableCores());
  return {Device::kCpu, &pool, nullptr};
}

void BM_Sample(benchmark::State& state, SampleRow row) {
  const int64_t rows = state.range(0), vocab = 248320;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  std::vector<float> logits(rows * vocab);
  for (float& x : logits) x = normal(rng);
  std::vector<std::pair<int32_t, float>> top(rows * 20);
  std::vector<SampleRow> wanted(rows, row);
  std::vector<SampleResult> results(rows);
  for (auto _ : state) {
    for (int64_t r = 0; r < rows; ++r) {
      ++wanted[r].draw;
      results[r].top = absl::MakeSpan(top).subspan(r * 20, 20);
    }
    Sample(TensorView(logits.data(), {rows, vocab}), wanted, absl::MakeSpan(results),
           BenchStream());
    benchmark::DoNotOptimize(results.data());
  }
}

SampleRow Row(float temperature, int32_t top_k, float top_p, float min_p, int32_t logprobs) {
  SampleRow row;
  row.temperature = temperature;
  row.top_k = top_k;
  row.top_p = top_p;
  row.min_p = min_p;
  row.num_top_logprobs = logprobs;
  return row;
}
#define WEIR_SAMPLE_BENCH(name, ...)              \
  BENCHMARK_CAPTURE(BM_Sample, name, __VA_ARGS__) \
      ->ArgName("rows")                           \
      ->Arg(1)                                    \
      ->Arg(16)                                   \
      ->Unit(benchmark::kMicrosecond)             \
      ->UseRealTime()
WEIR_SAMPLE_BENCH(greedy, Row(0, 0, 1, 0, -1));
WEIR_SAMPLE_BENCH(temperature, Row(1, 0, 1, 0, -1));
WEIR_SAMPLE_BENCH(top_k_20_top_p, Row(0.7f, 20, 0.8f, 0, -1));
WEIR_SAMPLE_BENCH(top_p_narrow, Row(0.3f, 0, 0.9f, 0, -1));
WEIR_SAMPLE_BENCH(top_p_wide, Row(1, 0, 0.9f, 0, -1));
WEIR_SAMPLE_BENCH(min_p, Row(1, 0, 1, 0.05f, -1));
WEIR_SAMPLE_BENCH(greedy_top_20_logprobs, Row(0, 0, 1, 0, 20));

}  // namespace
}  // namespace weir::kernels

BENCHMARK_MAIN();
