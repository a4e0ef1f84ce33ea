// MatMul at the sizes of Qwen3.5-0.8B, beside what the machine can do at best in the same run: read
// bandwidth for few rows, matrix rate for many.
//   matmul_bench --benchmark_filter=bf16
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/machine_rates.h"
#include "kernels/matmul.h"

namespace weir::kernels {
namespace {

Stream BenchStream() {
  static ThreadPool pool(UsableCores());
  return {Device::kCpu, &pool, nullptr};
}

void Report(benchmark::State& state, double weight_bytes, double flops, DType compute) {
  // Measured again beside each benchmark: a shared machine does not hold still.
  const double bandwidth = MeasureReadBandwidth(BenchStream());
  const double rate = MeasureMatrixRate(compute, BenchStream());
  const auto n = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(weight_bytes * n / 1e9, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(flops * n / 1e9, benchmark::Counter::kIsRate);
  state.counters["read_share"] =
      benchmark::Counter(weight_bytes * n / bandwidth, benchmark::Counter::kIsRate);
  state.counters["rate_share"] = benchmark::Counter(flops * n / rate, benchmark::Counter::kIsRate);
}

// Several copies of the weight, used in turn, so that no cache holds them: as in a model.
void BM_MatMul(benchmark::State& state, DType compute) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  const int64_t bytes = in * out * DTypeSize(compute);
  std::vector<PackedMatrix> weights;
  for (int64_t total = 0; total == 0 || total < int64_t{256} << 20; total += bytes) {
    weights.push_back(
        *PackedMatrix::Random(out, in, compute, weights.size(), 0.02f, BenchStream()));
  }
  std::vector<float> x(rows * in, 0.5f), y(rows * out);
  size_t next = 0;
  for (auto _ : state) {
    MatMul(TensorView(x.data(), {rows, in}), weights[next], TensorView(),
           TensorView(y.data(), {rows, out}), BenchStream());
    next = (next + 1) % weights.size();
  }
  Report(state, static_cast<double>(bytes), 2.0 * rows * in * out, compute);
}

void Sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "in", "out"})->Unit(benchmark::kMicrosecond)->UseRealTime();
  for (int64_t rows : {1, 2, 4, 8, 12, 16, 32, 64, 128, 512}) {
    b->Args({rows, 1024, 7168});
    b->Args({rows, 3584, 1024});
  }
  for (int64_t rows : {1, 4, 8, 16}) b->Args({rows, 1024, 248320});
}
BENCHMARK_CAPTURE(BM_MatMul, bf16, DType::kBF16)->Apply(Sizes);
BENCHMARK_CAPTURE(BM_MatMul, f32, DType::kF32)->Apply(Sizes);

void BM_Pack(benchmark::State& state, DType stored, DType compute) {
  const int64_t in = 1024, out = 65536;
  std::vector<float> memory(out * in * DTypeSize(stored) / 4, 0.0f);
  const TensorView weight(memory.data(), stored, {out, in});
  for (auto _ : state) {
    auto packed = PackedMatrix::Pack(weight, compute, BenchStream());
    WEIR_CHECK(packed.ok());
    benchmark::DoNotOptimize(packed->raw());
  }
  state.SetBytesProcessed(state.iterations() * weight.bytes());
}
BENCHMARK_CAPTURE(BM_Pack, bf16_to_bf16, DType::kBF16, DType::kBF16)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Pack, f32_to_bf16, DType::kF32, DType::kBF16)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Pack, f16_to_bf16, DType::kF16, DType::kBF16)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_Pack, bf16_to_f32, DType::kBF16, DType::kF32)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace weir::kernels

BENCHMARK_MAIN();
