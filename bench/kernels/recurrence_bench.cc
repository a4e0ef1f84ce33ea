// Speed of the recurrence on a CPU: tokens/s, GFLOP/s, GB/s of state, and the machine's own f32
// multiply-add and copy rates from the same run.
//
// FLOP counts are those of the token-by-token form, 2 per multiply-add: 4 K V (additive) or 6 K V
// (delta) per token and head, whatever the chunk form spends on top.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "core/buffer.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/recurrence.h"

namespace weir::kernels {
namespace {

enum class Kind { kGdn, kGla, kKda, kMamba2 };

struct Shape {
  Decay decay;
  Update update;
  int heads, heads_qk, K, V;
};

Shape ShapeOf(Kind kind) {
  switch (kind) {
    case Kind::kGdn:
      return {Decay::kScalar, Update::kDelta, 16, 16, 128, 128};
    case Kind::kGla:
      return {Decay::kVector, Update::kAdditive, 16, 16, 128, 128};
    case Kind::kKda:
      return {Decay::kVector, Update::kDelta, 16, 16, 128, 128};
    case Kind::kMamba2:
      return {Decay::kScalar, Update::kAdditive, 32, 1, 128, 64};
  }
  return {};
}

// `sequences` runs of `length` tokens each, `layers` times over with states of their own, so that
// decoding does not find its state in a cache that a real model's other layers would have taken.
class Work {
 public:
  Work(Shape shape, int sequences, int length, int layers) : shape_(shape), layers_(layers) {
    tokens_ = int64_t{sequences} * length;
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    const auto fill = [&](Buffer& x, int64_t n, float scale) {
      x = *Buffer::Allocate(n * sizeof(float), "benchmark data");
      for (int64_t i = 0; i < n; ++i) x.as<float>()[i] = normal(rng) * scale;
    };
    fill(q_, tokens_ * shape.heads_qk * shape.K, 1.0f / std::sqrt(static_cast<float>(shape.K)));
    fill(k_, tokens_ * shape.heads_qk * shape.K, 1.0f / std::sqrt(static_cast<float>(shape.K)));
    fill(v_, tokens_ * shape.heads * shape.V, 1.0f);
    fill(g_, tokens_ * shape.heads * (shape.decay == Decay::kVector ? shape.K : 1), 0.1f);
    for (size_t i = 0; i < g_.size_bytes() / sizeof(float); ++i) {
      g_.as<float>()[i] = -std::abs(g_.as<float>()[i]);
    }
    fill(beta_, tokens_ * shape.heads, 0.1f);
    fill(out_, tokens_ * shape.heads * shape.V, 0.0f);
    state_floats_ = int64_t{shape.heads} * shape.K * shape.V;
    fill(state_, layers * sequences * state_floats_, 0.1f);
    for (int s = 0; s <= sequences; ++s) offsets_.push_back(s * length);
    for (int s = 0; s < sequences; ++s) slots_.push_back(s);
    fresh_.assign(sequences, 0);
  }

  RecurrenceArgs Args(int layer) {
    const int heads = shape_.heads, qk = shape_.heads_qk;
    RecurrenceArgs a;
    a.decay = shape_.decay;
    a.update = shape_.update;
    a.heads = heads;
    a.q = TensorView(q_.as<float>(), {tokens_, qk, shape_.K});
    a.k = TensorView(k_.as<float>(), {tokens_, qk, shape_.K});
    a.v = TensorView(v_.as<float>(), {tokens_, heads, shape_.V});
    if (shape_.decay == Decay::kScalar) a.g = TensorView(g_.as<float>(), {tokens_, heads});
    if (shape_.decay == Decay::kVector)
      a.g = TensorView(g_.as<float>(), {tokens_, heads, shape_.K});
    if (shape_.update == Update::kDelta) a.beta = TensorView(beta_.as<float>(), {tokens_, heads});
    a.out = TensorView(out_.as<float>(), {tokens_, heads, shape_.V});
    a.offsets = TensorView(offsets_.data(), {static_cast<int64_t>(offsets_.size())});
    a.slots = TensorView(slots_.data(), {static_cast<int64_t>(slots_.size())});
    a.fresh = TensorView(fresh_.data(), {static_cast<int64_t>(fresh_.size())});
    a.state = state_.as<float>() + layer * static_cast<int64_t>(slots_.size()) * state_floats_;
    a.slot_stride_bytes = state_floats_ * 4;
    return a;
  }

  void Count(benchmark::State& state) const {
    const double calls = static_cast<double>(state.iterations()) * layers_;
    const double per_entry = shape_.update == Update::kDelta ? 6.0 : 4.0;
    using benchmark::Counter;
    state.counters["tokens/s"] = Counter(calls * tokens_, Counter::kIsRate);
    state.counters["us/call"] = Counter(calls * 1e-6, Counter::kIsRate | Counter::kInvert);
    state.counters["GFLOP/s"] =
        Counter(calls * tokens_ * state_floats_ * per_entry * 1e-9, Counter::kIsRate);
    state.counters["state_GB/s"] =
        Counter(calls * slots_.size() * state_floats_ * 8e-9, Counter::kIsRate);
  }

 private:
  Shape shape_;
  int64_t tokens_, layers_, state_floats_;
  Buffer q_, k_, v_, g_, beta_, out_, state_;
  std::vector<int32_t> offsets_, slots_;
  std::vector<uint8_t> fresh_;
};

int g_threads = 0;  // --threads=N; 0: the cores this process may use

ThreadPool& Pool() {
  static ThreadPool pool(g_threads > 0 ? g_threads : UsableCores());
  return pool;
}

void Chunk(benchmark::State& state, Kind kind) {
  SetMaxSimdLevel(static_cast<SimdLevel>(state.range(1)));
  Work work(ShapeOf(kind), 1, static_cast<int>(state.range(0)), 1);
  const Stream stream{Device::kCpu, &Pool(), nullptr};
  for (auto _ : state) RecurrenceChunk(work.Args(0), stream);
  work.Count(state);
  state.SetLabel(SimdLevelName(CurrentSimdLevel()));
}

void Step(benchmark::State& state, Kind kind) {
  SetMaxSimdLevel(static_cast<SimdLevel>(state.range(1)));
  constexpr int kLayers = 18;
  Work work(ShapeOf(kind), static_cast<int>(state.range(0)), 1, kLayers);
  const Stream stream{Device::kCpu, &Pool(), nullptr};
  for (auto _ : state) {
    for (int layer = 0; layer < kLayers; ++layer) RecurrenceStep(work.Args(layer), stream);
  }
  work.Count(state);
  state.SetLabel(SimdLevelName(CurrentSimdLevel()));
}

// What the compiler makes of independent chains of a * x + b held in registers: the ceiling.
#if defined(__x86_64__)
__attribute__((target("avx512f"), noinline)) float FmaLoop512(int64_t n) {
  typedef float V __attribute__((vector_size(64)));
  V acc[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) acc[i] = V{} + static_cast<float>(i);
  const V a = V{} + 0.9999f, b = V{} + 0.5f;
  for (int64_t it = 0; it < n; ++it) {
#pragma GCC unroll 24
    for (int i = 0; i < 24; ++i) {
      asm("vfmadd213ps %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
    }
  }
  float sum = 0;
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) sum += acc[i][0];
  return sum;
}

void FmaPeak(benchmark::State& state) {
  SetMaxSimdLevel(SimdLevel::kAvx512Bf16);
  if (CurrentSimdLevel() < SimdLevel::kAvx512) {
    state.SkipWithError("measured with AVX-512 only");
    return;
  }
  constexpr int64_t kLoops = 100000;
  for (auto _ : state) {
    Pool().ParallelFor(Pool().num_threads(),
                       [](int64_t) { benchmark::DoNotOptimize(FmaLoop512(kLoops)); });
  }
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * Pool().num_threads() * kLoops * 24 * 16 * 2 * 1e-9,
      benchmark::Counter::kIsRate);
}
BENCHMARK(FmaPeak)->UseRealTime()->Unit(benchmark::kMillisecond);
#endif

// Read and write of the same memory, as the step form does it, over 18 MB and over 288 MB.
void UpdateInPlace(benchmark::State& state) {
  std::vector<float> x(state.range(0) << 18, 1.0f);
  const int64_t n = static_cast<int64_t>(x.size());
  for (auto _ : state) {
    Pool().ParallelRanges(n, 1 << 16, [&](int64_t begin, int64_t end) {
      float* p = x.data();
      for (int64_t i = begin; i < end; ++i) p[i] = p[i] * 0.5f + 1.0f;
    });
  }
  state.counters["state_GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * n * 8e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(UpdateInPlace)->Arg(18)->Arg(288)->UseRealTime()->Unit(benchmark::kMicrosecond);

void AllLevels(benchmark::internal::Benchmark* b, std::initializer_list<int64_t> sizes) {
  for (int64_t size : sizes) {
    for (SimdLevel level : {SimdLevel::kAvx512, SimdLevel::kAvx2, SimdLevel::kBaseline}) {
      b->Args({size, static_cast<int64_t>(level)});
    }
  }
  b->UseRealTime()->Unit(benchmark::kMicrosecond);
}
void ChunkSizes(benchmark::internal::Benchmark* b) { AllLevels(b, {512, 64}); }
void StepSizes(benchmark::internal::Benchmark* b) { AllLevels(b, {1, 16}); }

BENCHMARK_CAPTURE(Chunk, gdn, Kind::kGdn)->Apply(ChunkSizes);
BENCHMARK_CAPTURE(Chunk, gla, Kind::kGla)->Apply(ChunkSizes);
BENCHMARK_CAPTURE(Chunk, kda, Kind::kKda)->Apply(ChunkSizes);
BENCHMARK_CAPTURE(Chunk, mamba2, Kind::kMamba2)->Apply(ChunkSizes);
BENCHMARK_CAPTURE(Step, gdn, Kind::kGdn)->Apply(StepSizes);
BENCHMARK_CAPTURE(Step, gla, Kind::kGla)->Apply(StepSizes);
BENCHMARK_CAPTURE(Step, kda, Kind::kKda)->Apply(StepSizes);
BENCHMARK_CAPTURE(Step, mamba2, Kind::kMamba2)->Apply(StepSizes);

}  // namespace

void SetBenchmarkThreads(int threads) { g_threads = threads; }

}  // namespace weir::kernels

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--threads=", 10) != 0) continue;
    weir::kernels::SetBenchmarkThreads(std::atoi(argv[i] + 10));
    std::copy(argv + i + 1, argv + argc, argv + i);
    --argc;
    break;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
