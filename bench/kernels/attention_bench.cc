// PagedAttention at the shape of Qwen3.5-0.8B (8 heads, 2 kv heads of 256) and of small models.
//   decode: one token per sequence over a long cache, beside the read bandwidth
//   prefill: a prompt from nothing, beside the f32 matrix rate
#include <benchmark/benchmark.h>

#include <vector>

#include "core/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/machine_rates.h"

namespace weir::kernels {
namespace {

Stream BenchStream() {
  static ThreadPool pool(UsableCores());
  return {Device::kCpu, &pool, nullptr};
}

struct Problem {
  Problem(int64_t sequences, int64_t run, int64_t cached_entries, int64_t heads, int64_t kv_heads,
          int64_t dim)
      : q(sequences * run * heads * dim, 0.1f),
        k(sequences * run * kv_heads * dim, 0.2f),
        out(q.size()) {
    const int64_t tokens = sequences * run;
    const int64_t pages = (cached_entries + run + kPageTokens - 1) / kPageTokens;
    const int64_t page_bytes = 2 * kPageTokens * kv_heads * dim * 2;
    memory.resize(sequences * pages * page_bytes / 2, 0x3e00);
    for (int64_t i = 0; i < sequences * pages; ++i) table.push_back(static_cast<int32_t>(i));
    offsets.push_back(0);
    for (int64_t s = 0; s < sequences; ++s) {
      offsets.push_back(static_cast<int32_t>((s + 1) * run));
      slots.push_back(static_cast<int32_t>(s));
      cached.push_back(static_cast<int32_t>(cached_entries));
    }
    args.q = TensorView(q.data(), {tokens, heads, dim});
    args.k = TensorView(k.data(), {tokens, kv_heads, dim});
    args.v = args.k;
    args.out = TensorView(out.data(), {tokens, heads, dim});
    args.scale = 0.06f;
    args.offsets = TensorView(offsets.data(), {sequences + 1});
    args.slots = TensorView(slots.data(), {sequences});
    args.cached = TensorView(cached.data(), {sequences});
    kv.base = memory.data();
    kv.page_stride_bytes = page_bytes;
    kv.page_tokens = kPageTokens;
    kv.block_table = TensorView(table.data(), {sequences, pages});
  }
  static constexpr int kPageTokens = 64;
  std::vector<float> q, k, out;
  std::vector<uint16_t> memory;
  std::vector<int32_t> table, offsets, slots, cached;
  AttentionArgs args;
  PagedKv kv;
};

void BM_Decode(benchmark::State& state) {
  const int64_t sequences = state.range(0), context = state.range(1), heads = state.range(2),
                kv_heads = state.range(3), dim = state.range(4);
  Problem p(sequences, 1, context, heads, kv_heads, dim);
  for (auto _ : state) PagedAttention(p.args, p.kv, BenchStream());
  const double bytes = 2.0 * 2 * sequences * (context + 1) * kv_heads * dim;
  const double bandwidth = MeasureReadBandwidth(BenchStream());
  const auto n = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(bytes * n / 1e9, benchmark::Counter::kIsRate);
  state.counters["read_share"] =
      benchmark::Counter(bytes * n / bandwidth, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Decode)
    ->ArgNames({"sequences", "context", "heads", "kv_heads", "dim"})
    ->Args({1, 512, 8, 2, 256})
    ->Args({1, 16384, 8, 2, 256})
    ->Args({16, 4096, 8, 2, 256})
    ->Args({1, 16384, 16, 16, 64})
    ->Args({16, 256, 4, 2, 80})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

void BM_Prefill(benchmark::State& state) {
  const int64_t run = state.range(0), context = state.range(1), heads = state.range(2),
                kv_heads = state.range(3), dim = state.range(4);
  Problem p(1, run, context, heads, kv_heads, dim);
  for (auto _ : state) PagedAttention(p.args, p.kv, BenchStream());
  const double seen = static_cast<double>(run) * context + 0.5 * run * (run + 1);
  const double flops = 4.0 * seen * heads * dim;
  const double rate = MeasureMatrixRate(DType::kF32, BenchStream());
  const auto n = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(flops * n / 1e9, benchmark::Counter::kIsRate);
  state.counters["rate_share"] = benchmark::Counter(flops * n / rate, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Prefill)
    ->ArgNames({"run", "context", "heads", "kv_heads", "dim"})
    ->Args({512, 0, 8, 2, 256})
    ->Args({512, 8192, 8, 2, 256})
    ->Args({512, 0, 4, 2, 80})
    ->Args({200, 0, 16, 16, 64})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace weir::kernels

BENCHMARK_MAIN();
