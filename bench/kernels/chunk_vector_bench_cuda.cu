// Prefill with a decay per channel (KDA, GLA) on a GPU: one JSON line per shape with the median of
// graph replays, and the distance from the f32 form on a short run of the same kind.
//   chunk_vector_bench_cuda [replays]
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels {
namespace {

__device__ float Uniform(uint64_t i) {
  i = (i + 1) * 0x9e3779b97f4a7c15ull;
  i ^= i >> 31, i *= 0xbf58476d1ce4e5b9ull, i ^= i >> 29, i *= 0x94d049bb133111ebull, i ^= i >> 32;
  return static_cast<float>(i >> 40) * 0x1p-24f;
}

// Values in [low, high), `span` neighbours scaled to unit length where span > 0.
template <typename T>
__global__ void Fill(T* x, int64_t n, float low, float high, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float value = low + (high - low) * Uniform(seed + static_cast<uint64_t>(i));
    gpu::Store(x + i, __bfloat162float(__float2bfloat16_rn(value)));
  }
}

struct Memory {
  void* data = nullptr;
  explicit Memory(int64_t bytes) {
    WEIR_CUDA_CHECK(cudaMalloc(&data, static_cast<size_t>(bytes)));
    WEIR_CUDA_CHECK(cudaMemset(data, 0, static_cast<size_t>(bytes)));
  }
  ~Memory() { cudaFree(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

struct Shape {
  const char* name;
  Update update;
  int batch, tokens, heads;
  float gate;  // the strongest log decay
};

constexpr int kDim = 128;

class Work {
 public:
  Work(const Shape& shape, DType dtype, cudaStream_t stream)
      : shape_(shape),
        dtype_(dtype),
        rows_(int64_t{shape.batch} * shape.tokens),
        q_(Elements() * DTypeSize(dtype)),
        k_(Elements() * DTypeSize(dtype)),
        v_(Elements() * DTypeSize(dtype)),
        out_(Elements() * DTypeSize(dtype)),
        g_(Elements() * 4),
        beta_(rows_ * shape.heads * 4),
        state_(int64_t{shape.batch} * shape.heads * kDim * kDim * 4),
        offsets_((shape.batch + 1) * 4),
        slots_(shape.batch * 4),
        fresh_(shape.batch) {
    const float unit = 1.7f / std::sqrt(float{kDim});
    const auto fill = [&](Memory& m, int64_t n, float low, float high, uint64_t seed, bool f32) {
      if (f32) {
        Fill<float><<<1024, 256, 0, stream>>>(static_cast<float*>(m.data), n, low, high, seed);
      } else {
        Fill<gpu::bf16>
            <<<1024, 256, 0, stream>>>(static_cast<gpu::bf16*>(m.data), n, low, high, seed);
      }
    };
    const bool f32 = dtype == DType::kF32;
    fill(q_, Elements(), -1, 1, 1ull << 40, f32);
    fill(k_, Elements(), -unit, unit, 2ull << 40, f32);
    fill(v_, Elements(), -1, 1, 3ull << 40, f32);
    fill(g_, Elements(), shape.gate, 0, 4ull << 40, true);
    fill(beta_, rows_ * shape.heads, 0, 1, 5ull << 40, true);
    fill(state_, StateElements(), -1, 1, 6ull << 40, true);
    for (int s = 0; s <= shape.batch; ++s) host_offsets_.push_back(s * shape.tokens);
    std::vector<int32_t> slots(static_cast<size_t>(shape.batch));
    for (int s = 0; s < shape.batch; ++s) slots[static_cast<size_t>(s)] = s;
    WEIR_CUDA_CHECK(cudaMemcpy(offsets_.data, host_offsets_.data(), host_offsets_.size() * 4,
                               cudaMemcpyHostToDevice));
    WEIR_CUDA_CHECK(
        cudaMemcpy(slots_.data, slots.data(), slots.size() * 4, cudaMemcpyHostToDevice));
    WEIR_CUDA_CHECK(cudaDeviceSynchronize());
  }

  RecurrenceArgs Args() const {
    RecurrenceArgs a;
    a.decay = Decay::kVector;
    a.update = shape_.update;
    a.scale = 1.0f / std::sqrt(float{kDim});
    a.heads = shape_.heads;
    a.q = TensorView(q_.data, dtype_, {rows_, shape_.heads, kDim});
    a.k = TensorView(k_.data, dtype_, {rows_, shape_.heads, kDim});
    a.v = TensorView(v_.data, dtype_, {rows_, shape_.heads, kDim});
    a.out = TensorView(out_.data, dtype_, {rows_, shape_.heads, kDim});
    a.g = TensorView(g_.data, DType::kF32, {rows_, shape_.heads, kDim});
    a.beta = TensorView(beta_.data, DType::kF32, {rows_, shape_.heads});
    a.offsets = TensorView(static_cast<int32_t*>(offsets_.data), {shape_.batch + 1});
    a.slots = TensorView(static_cast<int32_t*>(slots_.data), {shape_.batch});
    a.fresh = TensorView(static_cast<uint8_t*>(fresh_.data), {shape_.batch});
    a.host_offsets = host_offsets_.data();
    a.state = state_.data;
    a.slot_stride_bytes = int64_t{shape_.heads} * kDim * kDim * 4;
    return a;
  }
  int64_t Elements() const { return rows_ * shape_.heads * kDim; }
  int64_t StateElements() const { return int64_t{shape_.batch} * shape_.heads * kDim * kDim; }
  std::vector<float> State() const { return Floats(state_.data, StateElements()); }
  std::vector<float> Out() const {
    if (dtype_ == DType::kF32) return Floats(out_.data, Elements());
    std::vector<BFloat16> raw(static_cast<size_t>(Elements()));
    WEIR_CUDA_CHECK(cudaMemcpy(raw.data(), out_.data, raw.size() * 2, cudaMemcpyDeviceToHost));
    std::vector<float> x(raw.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = ToFloat(raw[i]);
    return x;
  }

 private:
  static std::vector<float> Floats(const void* from, int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    WEIR_CUDA_CHECK(cudaMemcpy(x.data(), from, x.size() * 4, cudaMemcpyDeviceToHost));
    return x;
  }

  Shape shape_;
  DType dtype_;
  int64_t rows_;
  Memory q_, k_, v_, out_, g_, beta_, state_, offsets_, slots_, fresh_;
  std::vector<int32_t> host_offsets_;
};

double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += std::pow(double{got[i]} - want[i], 2);
    size += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(error / size);
}

void Check(const Shape& shape, cudaStream_t native) {
  const Stream stream{Device::kCuda, nullptr, native};
  Work work(shape, DType::kBF16, native), exact(shape, DType::kF32, native);
  RecurrenceArgs args = work.Args(), exact_args = exact.Args();
  const Memory scratch(gpu::RecurrenceChunkScratchBytes(args, args.q.size(0), shape.batch) + 256);
  args.scratch = scratch.data;
  gpu::RecurrenceChunk(args, stream);
  gpu::RecurrenceChunk(exact_args, stream);
  WEIR_CUDA_CHECK(cudaDeviceSynchronize());
  std::printf(
      "{\"op\": \"%s\", \"tokens\": %d, \"gate\": %g, \"out_error\": %.5f, "
      "\"state_error\": %.5f}\n",
      shape.name, shape.tokens, double{shape.gate}, RelativeError(work.Out(), exact.Out()),
      RelativeError(work.State(), exact.State()));
}

// Whether a sequence gets the same bits alone as among others that fill the device.
void CheckAlone(Shape shape, cudaStream_t native) {
  const Stream stream{Device::kCuda, nullptr, native};
  std::vector<float> outs[2], states[2];
  for (const bool alone : {false, true}) {
    if (alone) shape.batch = 1;
    const Work work(shape, DType::kBF16, native);
    RecurrenceArgs args = work.Args();
    const Memory scratch(gpu::RecurrenceChunkScratchBytes(args, args.q.size(0), shape.batch) + 256);
    args.scratch = scratch.data;
    gpu::RecurrenceChunk(args, stream);
    WEIR_CUDA_CHECK(cudaDeviceSynchronize());
    outs[alone] = work.Out();
    states[alone] = work.State();
  }
  const auto same = [](const std::vector<float>& all, const std::vector<float>& one) {
    return std::memcmp(all.data(), one.data(), one.size() * 4) == 0;
  };
  std::printf("{\"op\": \"%s\", \"alone_same_bits\": %s}\n", shape.name,
              same(outs[0], outs[1]) && same(states[0], states[1]) ? "true" : "false");
}

void Time(const Shape& shape, int replays, cudaStream_t native) {
  const Stream stream{Device::kCuda, nullptr, native};
  Work work(shape, DType::kBF16, native);
  RecurrenceArgs args = work.Args();
  const int64_t bytes = gpu::RecurrenceChunkScratchBytes(args, args.q.size(0), shape.batch);
  const Memory scratch(bytes + 256);
  args.scratch = scratch.data;
  constexpr int kCalls = 5;
  const cuda::Graph graph = cuda::Graph::Capture(stream, [&] {
    for (int i = 0; i < kCalls; ++i) gpu::RecurrenceChunk(args, stream);
  });
  const auto begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
  graph.Launch(stream);
  std::vector<float> times;
  for (int i = 0; i < replays; ++i) {
    begin.Record(stream);
    graph.Launch(stream);
    end.Record(stream);
    end.Synchronize();
    times.push_back(cuda::Event::Milliseconds(begin, end) / kCalls);
  }
  std::sort(times.begin(), times.end());
  std::printf(
      "{\"op\": \"%s\", \"batch\": %d, \"tokens\": %d, \"heads\": %d, \"ms\": %.4f, "
      "\"scratch_mb\": %.1f}\n",
      shape.name, shape.batch, shape.tokens, shape.heads, double{times[times.size() / 2]},
      static_cast<double>(bytes) * 1e-6);
}

int Main(int argc, char** argv) {
  const int replays = argc > 1 ? std::atoi(argv[1]) : 7;
  if (!cuda::Open().ok()) return 1;
  const auto owned = cuda::OwnedStream::Make();
  auto* native = static_cast<cudaStream_t>(owned.get().native);
  for (const Update update : {Update::kDelta, Update::kAdditive}) {
    const char* name = update == Update::kDelta ? "kda_chunk" : "gla_chunk";
    for (const float gate : {-0.1f, -1.0f, -6.0f, -100.0f}) {
      Check({name, update, 2, 1000, 4, gate}, native);
    }
    Check({name, update, 2, 3000, 64, -1.0f}, native);  // more chunks than one launch takes
    CheckAlone({name, update, 4, 3000, 32, -0.5f}, native);
    for (const auto [batch, tokens, heads] :
         {std::array{1, 4096, 32}, {1, 16384, 32}, {8, 2048, 32}, {4, 8192, 64}, {1, 16384, 8}}) {
      Time({name, update, batch, tokens, heads, -0.5f}, replays, native);
    }
  }
  return 0;
}

}  // namespace
}  // namespace weir::kernels

int main(int argc, char** argv) { return weir::kernels::Main(argc, argv); }
