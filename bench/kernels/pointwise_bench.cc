// Speed of what stands between the matrix products of Qwen3.5-0.8B: short convolution, norms,
// gates. GB/s counts each operand once.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "core/buffer.h"
#include "core/thread_pool.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "kernels/short_conv.h"

namespace weir::kernels {
namespace {

ThreadPool& Pool() {
  static ThreadPool pool(UsableCores());
  return pool;
}
Stream CpuStream() { return {Device::kCpu, &Pool(), nullptr}; }

class Matrix {
 public:
  Matrix(int64_t rows, int64_t n) : rows_(rows), n_(n) {
    data_ = *Buffer::Allocate(rows * n * sizeof(float), "benchmark data");
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * n; ++i) data_.as<float>()[i] = normal(rng);
  }
  TensorView view() const { return TensorView(data_.as<float>(), {rows_, n_}); }
  TensorView row() const { return TensorView(data_.as<float>(), {rows_ * n_}); }

 private:
  Buffer data_;
  int64_t rows_, n_;
};

void Count(benchmark::State& state, int64_t elements, double operands) {
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * elements * operands * 4e-9,
                         benchmark::Counter::kIsRate);
}

void Conv(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 6144;
  Matrix x(rows, n), out(rows, n), weight(n, 4), window(3, n);
  std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows)}, slots = {0};
  std::vector<uint8_t> fresh = {0};
  ShortConvArgs a;
  a.x = x.view();
  a.out = out.view();
  a.weight = weight.view();
  a.offsets = TensorView(offsets.data(), {2});
  a.slots = TensorView(slots.data(), {1});
  a.fresh = TensorView(fresh.data(), {1});
  a.state = window.view().raw();
  a.slot_stride_bytes = 3 * n * 4;
  for (auto _ : state) ShortConv(a, CpuStream());
  Count(state, rows * n, 2);
}

void AddRms(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 1024;
  Matrix h(rows, n), delta(rows, n), out(rows, n), weight(1, n);
  AddRmsNormArgs a;
  a.h = h.view();
  a.delta = delta.view();
  a.scale = 1e-6f;
  a.weight = weight.row();
  a.out = out.view();
  for (auto _ : state) AddRmsNorm(a, CpuStream());
  Count(state, rows * n, 4);
}

void GatedRms(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 2048;
  Matrix x(rows, n), gate(rows, n), out(rows, n), weight(1, 128);
  GatedRmsNormArgs a;
  a.x = x.view();
  a.gate = gate.view();
  a.weight = weight.row();
  a.group = 128;
  a.out = out.view();
  for (auto _ : state) GatedRmsNorm(a, CpuStream());
  Count(state, rows * n, 3);
}

void L2(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 2048;
  Matrix x(rows, n);
  for (auto _ : state) L2Norm({x.view(), 128, 1e-6f, 1.0f, x.view()}, CpuStream());
  Count(state, rows * n, 2);
}

void Swiglu(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 3584;
  Matrix gate(rows, n), up(rows, n), out(rows, n);
  for (auto _ : state) {
    GateMultiply(gate.view(), up.view(), Activation::kSilu, out.view(), CpuStream());
  }
  Count(state, rows * n, 3);
}

void KdaDecay(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 2048;
  Matrix x(rows, n), out(rows, n), bias(1, n), exp_a(1, 16);
  LogDecayArgs a{};
  a.form = LogDecayArgs::Form::kSoftplus;
  a.x = x.view();
  a.bias = bias.row();
  a.exp_a = exp_a.row();
  a.out = out.view();
  for (auto _ : state) LogDecay(a, CpuStream());
  Count(state, rows * n, 2);
}

void Rows(benchmark::internal::Benchmark* b) {
  b->Arg(1)->Arg(16)->Arg(512)->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK(Conv)->Apply(Rows);
BENCHMARK(AddRms)->Apply(Rows);
BENCHMARK(GatedRms)->Apply(Rows);
BENCHMARK(L2)->Apply(Rows);
BENCHMARK(Swiglu)->Apply(Rows);
BENCHMARK(KdaDecay)->Apply(Rows);

}  // namespace
}  // namespace weir::kernels

BENCHMARK_MAIN();
