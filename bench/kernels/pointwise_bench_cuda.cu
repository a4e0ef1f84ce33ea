// What stands between the matrix products on the GPU: norms, gates, gathers, and the sampler at a
// vocabulary of 248,320. Median of replays of a captured graph of 20 calls; GB/s counts each
// operand once, beside a plain copy in the same run. One JSON line a shape.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda/runtime.h"
#include "kernels/copy.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_sampler.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"

namespace weir::kernels {
namespace {

constexpr int kCalls = 20;
constexpr int kReplays = 15;

// Normal numbers (Irwin and Hall's twelve uniform ones) with this deviation.
template <typename T>
__global__ void FillKernel(T* x, int64_t n, uint32_t seed, float deviation) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u;
    float sum = -6.0f;
    for (int k = 0; k < 12; ++k) {
      h ^= h >> 16, h *= 2246822519u, h ^= h >> 13, h += 0x9E3779B9u;
      sum += static_cast<float>(h >> 8) * 0x1p-24f;
    }
    gpu::Store(x + i, sum * deviation);
  }
}

class Bench {
 public:
  Bench() : stream_(cuda::OwnedStream::Make()) {}
  Stream stream() const { return stream_.get(); }

  void* Bytes(int64_t n) {
    buffers_.push_back(cuda::AllocateDevice(static_cast<size_t>(n), "bench").value());
    return buffers_.back().data();
  }
  template <typename T>
  T* Random(int64_t n, float deviation = 1.0f) {
    T* at = static_cast<T*>(Bytes(n * static_cast<int64_t>(sizeof(T))));
    FillKernel<T><<<1024, 256, 0, static_cast<cudaStream_t>(stream().native)>>>(
        at, n, static_cast<uint32_t>(buffers_.size()), deviation);
    return at;
  }
  TensorView F32(int64_t rows, int64_t n) { return TensorView(Random<float>(rows * n), {rows, n}); }
  TensorView Bf16(int64_t rows, int64_t n) {
    return TensorView(Random<gpu::bf16>(rows * n), DType::kBF16, {rows, n});
  }
  void Clear() {
    cuda::Synchronize(stream());
    buffers_.clear();
  }

  // Microseconds of one call.
  double Time(const std::function<void()>& call) const {
    const cuda::Graph graph = cuda::Graph::Capture(stream(), [&] {
      for (int i = 0; i < kCalls; ++i) call();
    });
    const cuda::Event begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
    std::vector<float> times;
    for (int i = 0; i < kReplays + 3; ++i) {
      begin.Record(stream());
      graph.Launch(stream());
      end.Record(stream());
      end.Synchronize();
      if (i >= 3) times.push_back(cuda::Event::Milliseconds(begin, end));
    }
    std::sort(times.begin(), times.end());
    return double{times[times.size() / 2]} * 1000 / kCalls;
  }
  void Report(const std::string& op, int64_t rows, int64_t n, double bytes,
              const std::function<void()>& call) const {
    const double us = Time(call);
    std::printf("{\"op\": \"%s\", \"rows\": %ld, \"n\": %ld, \"us\": %.2f, \"gbs\": %.0f}\n",
                op.c_str(), rows, n, us, bytes / us * 1e-3);
  }

 private:
  cuda::OwnedStream stream_;
  std::vector<Buffer> buffers_;
};

void Pointwise(Bench& bench) {
  const Stream stream = bench.stream();
  {
    void* pool = bench.Bytes(int64_t{2} << 28);
    const BlockCopy copy[] = {{0, 1}};
    bench.Report("copy", 1, 1 << 28, 2.0 * (1 << 28),
                 [&] { CopyBlocks(pool, 1 << 28, copy, stream); });
    bench.Report("copy", 1, 16, 32, [&] { CopyBlocks(pool, 16, copy, stream); });
    bench.Clear();
  }
  for (auto [rows, n] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1024}, {1, 4096}, {64, 4096}, {256, 4096}, {4096, 1024}, {4096, 4096}, {64, 8192}}) {
    const double size = static_cast<double>(rows * n);
    AddRmsNormArgs add;
    add.h = bench.F32(rows, n);
    add.delta = bench.Bf16(rows, n);
    add.weight = bench.F32(1, n).Reshape({n});
    add.scale = 1e-6f;  // h stays what it is
    add.out = bench.Bf16(rows, n);
    bench.Report("add_rms_norm", rows, n, 12 * size, [&] { AddRmsNorm(add, stream); });
    GatedRmsNormArgs gated;
    gated.x = bench.Bf16(rows, n);
    gated.gate = bench.Bf16(rows, n);
    gated.weight = bench.F32(1, 128).Reshape({128});
    gated.group = 128;
    gated.out = bench.Bf16(rows, n);
    bench.Report("gated_rms_norm_128", rows, n, 6 * size, [&] { GatedRmsNorm(gated, stream); });
    L2NormArgs l2{gated.x, 128, 1e-6f, 1.0f, gated.out};
    bench.Report("l2_norm_128", rows, n, 4 * size, [&] { L2Norm(l2, stream); });
    bench.Clear();
  }
  for (int64_t rows : {1, 64, 4096}) {
    const int64_t n = 12288;
    const TensorView both = bench.Bf16(rows, 2 * n), out = bench.Bf16(rows, n);
    bench.Report("gate_multiply", rows, n, 6.0 * static_cast<double>(rows * n), [&] {
      GateMultiply(both.Columns(0, n), both.Columns(n, n), Activation::kSilu, out, stream);
    });
    bench.Clear();
  }
  {
    const int64_t rows = 256, n = 4096;
    const TensorView h = bench.F32(4096, n), out = bench.F32(rows, n);
    std::vector<int32_t> picked(rows);
    for (int64_t i = 0; i < rows; ++i) picked[i] = static_cast<int32_t>(i * 16);
    auto* ids = static_cast<int32_t*>(bench.Bytes(rows * 4));
    cuda::Copy(ids, picked.data(), rows * 4, stream);
    const TensorView which(ids, {rows});
    bench.Report("gather_rows", rows, n, 8.0 * static_cast<double>(rows * n),
                 [&] { GatherRows(h, which, out, stream); });
    bench.Report("embedding", rows, n, 6.0 * static_cast<double>(rows * n), [&] {
      EmbeddingLookup(TensorView(h.raw(), DType::kBF16, {8192, n}), which, 1.0f, out, stream);
    });
    bench.Clear();
  }
}

void Sampling(Bench& bench) {
  constexpr int64_t kVocab = 248320;
  struct Kind {
    const char* name;
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    int logprobs, history;
  };
  const Kind kinds[] = {{"greedy", 0, 0, 1, 0, -1, 0},
                        {"temperature", 1, 0, 1, 0, -1, 0},
                        {"top_k_20_top_p", 0.7f, 20, 0.8f, 0, -1, 0},
                        {"top_p_narrow", 0.3f, 0, 0.9f, 0, -1, 0},
                        {"top_p_wide", 1, 0, 0.95f, 0, -1, 0},
                        {"min_p", 1, 0, 1, 0.05f, -1, 0},
                        {"top_k_5000", 1, 5000, 1, 0, -1, 0},
                        {"greedy_penalties", 0, 0, 1, 0, -1, 2000},
                        {"greedy_top_20_logprobs", 0, 0, 1, 0, 20, 0}};
  const Stream stream = bench.stream();
  for (int64_t rows : {1, 64, 256}) {
    DeviceSampler::Limits limits;
    limits.max_rows = static_cast<int>(rows);
    limits.vocab = kVocab;
    const auto sampler = DeviceSampler::Make(limits, rows * 2000, stream).value();
    const TensorView logits(bench.Random<float>(rows * kVocab, 2.5f), {rows, kVocab});
    const TensorView tokens(static_cast<int32_t*>(bench.Bytes(rows * 4)), {rows});
    std::vector<int32_t> history(2000);
    for (size_t i = 0; i < history.size(); ++i) history[i] = static_cast<int32_t>(i * 117);
    for (const Kind& kind : kinds) {
      std::vector<SampleRow> described(rows);
      for (int64_t r = 0; r < rows; ++r) {
        SampleRow& row = described[r];
        row.temperature = kind.temperature;
        row.top_k = kind.top_k;
        row.top_p = kind.top_p;
        row.min_p = kind.min_p;
        row.num_top_logprobs = kind.logprobs;
        row.seed = static_cast<uint64_t>(r);
        if (kind.history > 0) row.presence_penalty = 1e-6f, row.generated = history;
      }
      sampler->Describe(0, described, {}, stream);
      bench.Report(std::string("sample_") + kind.name, rows, kVocab,
                   4.0 * static_cast<double>(rows * kVocab),
                   [&] { sampler->Launch(logits, {}, tokens, stream); });
    }
    bench.Clear();
  }
}

int Main() {
  const auto device = cuda::Open();
  if (!device.ok()) {
    std::fprintf(stderr, "%s\n", std::string(device.status().message()).c_str());
    return 1;
  }
  std::printf("{\"device\": \"%s\"}\n", device->name.c_str());
  Bench bench;
  Pointwise(bench);
  Sampling(bench);
  return 0;
}

}  // namespace
}  // namespace weir::kernels

int main() { return weir::kernels::Main(); }
