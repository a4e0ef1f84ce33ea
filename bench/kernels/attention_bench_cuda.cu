// Attention on the GPU at the shapes of Qwen3.5: 9B (16 heads, 4 kv heads of 256) and 0.8B (8, 2).
//   decode:  one token per sequence over a cache; GB/s of keys and values
//   prefill: a run from nothing or behind a cache; TFLOP/s of the causal products
// Norm, rotary and gate included. Captured graphs of many calls over layers that together exceed
// the L2 cache; the median of replays. One JSON line a shape.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/cuda/runtime.h"
#include "kernels/attention.h"
#include "kernels/cuda/launch.cuh"

namespace weir::kernels {
namespace {

constexpr int kPageTokens = 16;

__global__ void FillKernel(uint16_t* x, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    const float value = (static_cast<float>(h & 0xffff) / 32768.0f - 1.0f) * 1.7f;
    const __nv_bfloat16 b = __float2bfloat16_rn(value);
    x[i] = *reinterpret_cast<const uint16_t*>(&b);
  }
}

struct Shape {
  int heads, kv_heads, head_dim;
  std::vector<int> cached, runs;
  std::string name;
  int64_t bound = 0;  // of entries, as a captured graph knows it; 0: the longest sequence
};

class Device {
 public:
  void* Bytes(int64_t n) {
    buffers_.push_back(cuda::AllocateDevice(static_cast<size_t>(n), "bench").value());
    return buffers_.back().data();
  }
  void* Random(int64_t elements, Stream stream) {
    void* at = Bytes(elements * 2);
    FillKernel<<<1024, 256, 0, static_cast<cudaStream_t>(stream.native)>>>(
        static_cast<uint16_t*>(at), elements, static_cast<uint32_t>(buffers_.size()));
    return at;
  }
  template <typename T>
  TensorView Copy(const std::vector<T>& values, Stream stream) {
    void* at = Bytes(static_cast<int64_t>(values.size() * sizeof(T)) + 16);
    cuda::Copy(at, values.data(), values.size() * sizeof(T), stream);
    cuda::Synchronize(stream);
    return TensorView(static_cast<T*>(at), {static_cast<int64_t>(values.size())});
  }

 private:
  std::vector<Buffer> buffers_;
};

void Measure(const Shape& s, Stream stream) {
  Device device;
  const auto sequences = static_cast<int64_t>(s.runs.size());
  std::vector<int32_t> offsets = {0}, slots, positions, cached(s.cached.begin(), s.cached.end());
  int64_t columns = 0, entries = 0, max_entries = 0;
  double flops = 0;
  bool decode = true;
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t run = s.runs[i], before = s.cached[i];
    decode &= run == 1;
    offsets.push_back(offsets.back() + s.runs[i]);
    slots.push_back(static_cast<int32_t>(i));
    for (int t = 0; t < run; ++t) positions.push_back(s.cached[i] + t);
    max_entries = std::max(max_entries, before + run);
    entries += before + run;
    flops +=
        4.0 * s.heads * s.head_dim * (static_cast<double>(run) * before + 0.5 * run * (run + 1));
  }
  max_entries = std::max(max_entries, s.bound);
  columns = (max_entries + kPageTokens - 1) / kPageTokens;
  const int64_t tokens = offsets.back();
  const int64_t page_bytes = int64_t{2} * kPageTokens * s.kv_heads * s.head_dim * 2;
  std::vector<int32_t> table(sequences * columns, 0);
  int64_t pages = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t need = (s.cached[i] + s.runs[i] + kPageTokens - 1) / kPageTokens;
    for (int64_t c = 0; c < need; ++c) table[i * columns + c] = static_cast<int32_t>(pages++);
  }
  // Scattered, as after a while of serving.
  const int64_t stride = 7919;
  if (pages % stride != 0) {
    for (int32_t& page : table) page = static_cast<int32_t>(page * stride % pages);
  }
  const int64_t layers = std::clamp<int64_t>((int64_t{300} << 20) / (pages * page_bytes), 2, 24);

  const int64_t width = int64_t{s.heads} * s.head_dim, kv_width = int64_t{s.kv_heads} * s.head_dim;
  const int64_t total = 2 * width + 2 * kv_width;
  TensorView all(device.Random(tokens * total, stream), DType::kBF16, {tokens, total});
  AttentionArgs args;
  args.q = all.Columns(0, width).Reshape({tokens, s.heads, s.head_dim});
  args.k = all.Columns(width, kv_width).Reshape({tokens, s.kv_heads, s.head_dim});
  args.v = all.Columns(width + kv_width, kv_width).Reshape({tokens, s.kv_heads, s.head_dim});
  args.gate = all.Columns(width + 2 * kv_width, width);
  args.out =
      TensorView(device.Bytes(tokens * width * 2), DType::kBF16, {tokens, s.heads, s.head_dim});
  args.scale = 0.0625f;
  args.offsets = device.Copy(offsets, stream);
  args.slots = device.Copy(slots, stream);
  args.cached = device.Copy(cached, stream);
  args.q_norm = device.Copy(std::vector<float>(s.head_dim, 1.0f), stream);
  args.k_norm = device.Copy(std::vector<float>(s.head_dim, 1.0f), stream);
  args.positions = device.Copy(positions, stream);
  std::vector<float> inv_freq;
  for (int i = 0; i < s.head_dim / 8; ++i) {
    inv_freq.push_back(std::pow(1e7f, -8.0f * static_cast<float>(i) / s.head_dim));
  }
  args.inv_freq = device.Copy(inv_freq, stream);
  args.host_offsets = decode ? nullptr : offsets.data();
  args.host_cached = decode ? nullptr : cached.data();
  args.max_entries = static_cast<int32_t>(max_entries);
  const int64_t scratch = AttentionScratchBytes(s.heads, s.kv_heads, s.head_dim, tokens, sequences,
                                                max_entries, DType::kBF16, stream);
  args.scratch = device.Bytes(scratch + 16);
  PagedKv kv;
  kv.base = device.Random(layers * pages * page_bytes / 2, stream);
  kv.page_stride_bytes = layers * page_bytes;
  kv.page_tokens = kPageTokens;
  kv.dtype = DType::kBF16;
  kv.block_table = TensorView(device.Copy(table, stream).raw(), DType::kI32, {sequences, columns});

  const int calls = static_cast<int>(flops > 1e11 ? layers : std::max<int64_t>(24, layers));
  const auto graph = cuda::Graph::Capture(stream, [&] {
    for (int i = 0; i < calls; ++i) {
      PagedKv layer = kv;
      layer.layer_offset_bytes = i % layers * page_bytes;
      PagedAttention(args, layer, stream);
    }
  });
  std::vector<float> times;
  const auto begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
  for (int i = 0; i < 9; ++i) {
    begin.Record(stream);
    graph.Launch(stream);
    end.Record(stream);
    cuda::Synchronize(stream);
    if (i >= 2) times.push_back(cuda::Event::Milliseconds(begin, end) * 1e3f / calls);
  }
  std::sort(times.begin(), times.end());
  const double us = times[times.size() / 2];
  const double bytes = 2.0 * 2 * entries * s.kv_heads * s.head_dim;
  std::printf(
      "{\"op\": \"attention\", \"shape\": \"%s\", \"heads\": %d, \"kv_heads\": %d, \"dim\": %d, "
      "\"us\": %.2f, \"GB_s\": %.0f, \"TFLOP_s\": %.1f}\n",
      s.name.c_str(), s.heads, s.kv_heads, s.head_dim, us, bytes / us / 1e3, flops / us / 1e6);
  std::fflush(stdout);
}

Shape Even(int heads, int kv_heads, int dim, int sequences, int cached, int run) {
  return {
      heads,
      kv_heads,
      dim,
      std::vector<int>(sequences, cached),
      std::vector<int>(sequences, run),
      std::to_string(sequences) + " x " + std::to_string(run) + " after " + std::to_string(cached)};
}

std::vector<Shape> Shapes(const std::string& which) {
  std::vector<Shape> shapes;
  if (which != "prefill") {
    for (const auto& [sequences, cached] : {std::pair{1, 100},
                                            {1, 1000},
                                            {1, 4095},
                                            {1, 16383},
                                            {1, 131071},
                                            {4, 1000},
                                            {16, 1000},
                                            {16, 4095},
                                            {64, 511},
                                            {64, 4095},
                                            {256, 511},
                                            {256, 2000}}) {
      shapes.push_back(Even(16, 4, 256, sequences, cached, 1));
    }
    shapes.push_back(Even(16, 4, 256, 1, 16384, 1));
    shapes.back().bound = 262144;
    shapes.push_back(Even(8, 2, 256, 1, 1000, 1));
    shapes.push_back(Even(8, 2, 256, 64, 1000, 1));
    shapes.push_back(Even(32, 8, 128, 64, 4095, 1));
    shapes.push_back(Even(16, 16, 64, 16, 4095, 1));
    Shape ragged = Even(16, 4, 256, 64, 511, 1);
    for (int i = 0; i < 64; ++i) ragged.cached[i] = i * i * 37 % 9000;
    ragged.cached[5] = 131071;
    ragged.name = "64 x 1 after 0 to 9000 and one 131071";
    shapes.push_back(ragged);
  }
  if (which != "decode") {
    for (const auto& [sequences, cached, run] : {std::tuple{1, 0, 128},
                                                 {1, 0, 512},
                                                 {1, 0, 2048},
                                                 {1, 0, 4096},
                                                 {1, 0, 16384},
                                                 {8, 0, 2048},
                                                 {1, 8192, 8192},
                                                 {1, 14336, 2048},
                                                 {16, 0, 100}}) {
      shapes.push_back(Even(16, 4, 256, sequences, cached, run));
    }
    shapes.push_back(Even(8, 2, 256, 1, 0, 16384));
    shapes.push_back(Even(32, 8, 128, 1, 0, 16384));
    shapes.push_back(Even(16, 16, 64, 1, 0, 16384));
    Shape mixed = Even(16, 4, 256, 33, 1000, 1);
    mixed.runs[32] = 2048;
    mixed.cached[32] = 0;
    mixed.name = "32 x 1 after 1000 with 1 x 2048";
    shapes.push_back(mixed);
  }
  return shapes;
}

}  // namespace
}  // namespace weir::kernels

// usage: attention_bench_cuda [decode|prefill]
int main(int argc, char** argv) {
  const auto device = weir::cuda::Open();
  if (!device.ok()) {
    std::fprintf(stderr, "%s\n", std::string(device.status().message()).c_str());
    return 1;
  }
  const auto stream = weir::cuda::OwnedStream::Make();
  for (const auto& shape : weir::kernels::Shapes(argc > 1 ? argv[1] : "")) {
    weir::kernels::Measure(shape, stream.get());
  }
}
