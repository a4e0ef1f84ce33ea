// The prefill form of the recurrence on the GPU: times by shape, one JSON object a line, and
// `--check`, which compares small ragged batches with a token-by-token kernel first. FLOP counts
// are those of chunks of 64 (additive 4 K V + 128 (K + V), delta 6 K V + 256 (K + V) + 64^2 / 3 per
// token and value head); bytes are what must move: inputs, outputs and gates once, states in and
// out.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/cuda/check.h"
#include "core/cuda/runtime.h"
#include "kernels/cuda/chunk.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sm90/chunk_scalar.cuh"

namespace weir::kernels::gpu {
namespace {

__device__ uint32_t Hash(uint32_t x) {
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
  return x;
}
__device__ float Unit(uint32_t seed, int64_t i) {
  return (static_cast<float>(Hash(static_cast<uint32_t>(i) * 2654435761u + seed) >> 8) + 0.5f) *
         (1.0f / 16777216.0f);
}
__device__ float Normal(uint32_t seed, int64_t i) {
  return sqrtf(-2.0f * logf(Unit(seed, i))) * cospif(2.0f * Unit(seed + 77, i));
}

// mode 0: normal; 1: unit rows of `width`; 2: the same unit row everywhere; 3: unit rows, every 4th
// zero.
__global__ void FillRows(bf16* x, int width, uint32_t seed, int mode) {
  const int64_t row = blockIdx.x;
  const int64_t at = row * width + threadIdx.x;
  float value = Normal(seed, mode == 2 ? threadIdx.x : at), sum = value * value;
  __shared__ float partial[32];
  sum = WarpSum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < (width + 31) / 32; ++i) sum += partial[i];
  if (mode > 0) value *= rsqrtf(sum);
  if (mode == 3 && row % 4 == 1) value = 0;
  x[at] = __float2bfloat16(value);
}
// mode 0: uniform in [low, high]; 1: high, every 3rd low.
__global__ void FillFloats(float* x, int64_t n, uint32_t seed, float low, float high, int mode) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  x[i] = mode == 1 ? (i % 3 == 0 ? low : high) : low + (high - low) * Unit(seed, i);
}

// One block per sequence and head, one thread per value: the formula, token by token.
__global__ void Reference(sm90::ScalarChunkParams p, const bf16* v, int64_t v_row, int k_dim,
                          float* state, float* out) {
  extern __shared__ float row[];  // k, q
  const int s = blockIdx.x / p.heads, h = blockIdx.x % p.heads, j = threadIdx.x;
  if (p.slots[s] < 0) return;
  float column[128];
  float* mine = state + p.slots[s] * p.slot_stride + (int64_t{h} * p.v_dim + j) * k_dim;
  for (int i = 0; i < k_dim; ++i) column[i] = p.fresh[s] ? 0.0f : mine[i];
  for (int64_t t = p.offsets[s]; t < p.offsets[s + 1]; ++t) {
    __syncthreads();
    for (int i = threadIdx.x; i < k_dim; i += blockDim.x) {
      row[i] = Load(static_cast<const bf16*>(p.k) + t * p.k_row + h / p.per_k * k_dim + i);
      row[128 + i] = Load(static_cast<const bf16*>(p.q) + t * p.q_row + h / p.per_q * k_dim + i);
    }
    __syncthreads();
    const float decay = p.g == nullptr ? 1.0f : expf(p.g[t * p.g_row + h]);
    float seen = 0, write = Load(v + t * v_row + h / p.per_v * p.v_dim + j), read = 0;
    for (int i = 0; i < k_dim; ++i) column[i] *= decay, seen += column[i] * row[i];
    if (p.beta != nullptr) write = p.beta[t * p.beta_row + h] * (write - seen);
    for (int i = 0; i < k_dim; ++i) column[i] += row[i] * write, read += column[i] * row[128 + i];
    out[(t * p.heads + h) * p.v_dim + j] = p.scale * read;
  }
  if (p.offsets[s + 1] == p.offsets[s]) return;
  for (int i = 0; i < k_dim; ++i) mine[i] = column[i];
}

struct Shape {
  const char* name;
  Update update;
  Decay decay;
  int heads_q, heads_k, heads, k_dim, v_dim;
  std::vector<int> lengths;
  float gate_low = -0.3f, gate_high = 0.0f;
  int gate_mode = 0;  // 2: fixed per head
  float beta_low = 0.0f, beta_high = 1.0f;
  int keys = 1;
  // What the relative error may be. Repeated keys with beta 2 are reflections back and forth:
  // written values of alternating sign that cancel, each rounded to bf16.
  double tolerance = 8e-3;
};

struct Data {
  std::vector<Buffer> buffers;
  RecurrenceArgs args;
  std::vector<int32_t> offsets;
  int64_t tokens = 0, all = 0;
};

template <typename T>
T* Allocate(Data& d, int64_t count) {
  d.buffers.push_back(
      *cuda::AllocateDevice(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T), "bench"));
  return static_cast<T*>(static_cast<void*>(d.buffers.back().data()));
}
template <typename T>
T* Upload(Data& d, const std::vector<T>& x) {
  T* to = Allocate<T>(d, static_cast<int64_t>(x.size()));
  WEIR_CUDA_CHECK(cudaMemcpy(to, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  return to;
}

Data Make(const Shape& shape, uint32_t seed, bool padding) {
  Data d;
  d.offsets = {0};
  for (int length : shape.lengths) d.offsets.push_back(d.offsets.back() + length);
  d.tokens = d.offsets.back();
  d.all = d.tokens + (padding ? 2 : 0);
  const int sequences = static_cast<int>(shape.lengths.size());
  const int64_t qk = int64_t{shape.heads_q} * shape.k_dim,
                kk = int64_t{shape.heads_k} * shape.k_dim, vv = int64_t{shape.heads} * shape.v_dim;
  auto* q = Allocate<BFloat16>(d, d.all * qk);
  auto* k = Allocate<BFloat16>(d, d.all * kk);
  auto* v = Allocate<BFloat16>(d, d.all * vv);
  auto* out = Allocate<BFloat16>(d, d.all * vv);
  const auto rows = [&](BFloat16* x, int heads, int dim, uint32_t s, int mode) {
    FillRows<<<static_cast<unsigned>(d.all * heads), static_cast<unsigned>(dim)>>>(
        reinterpret_cast<bf16*>(x), dim, s, mode);
    if (padding) {  // tokens that belong to nobody hold anything
      WEIR_CUDA_CHECK(cudaMemset(x + d.tokens * heads * dim, 0xff, 4 * heads * dim));
    }
  };
  rows(q, shape.heads_q, shape.k_dim, seed, 0);
  rows(k, shape.heads_k, shape.k_dim, seed + 1, shape.keys);
  rows(v, shape.heads, shape.v_dim, seed + 2, 0);
  WEIR_CUDA_CHECK(cudaMemset(out, 0xff, static_cast<size_t>(d.all * vv) * 2));
  const auto floats = [&](int64_t n, uint32_t s, float low, float high, int mode) {
    float* x = Allocate<float>(d, n);
    FillFloats<<<static_cast<unsigned>((n + 255) / 256), 256>>>(x, n, s, low, high, mode);
    return x;
  };
  RecurrenceArgs& a = d.args;
  a.decay = shape.decay;
  a.update = shape.update;
  a.scale = 1.0f / std::sqrt(static_cast<float>(shape.k_dim));
  a.heads = shape.heads;
  a.q = TensorView(q, {d.all, shape.heads_q, shape.k_dim});
  a.k = TensorView(k, {d.all, shape.heads_k, shape.k_dim});
  a.v = TensorView(v, {d.all, shape.heads, shape.v_dim});
  a.out = TensorView(out, {d.all, shape.heads, shape.v_dim});
  if (shape.decay != Decay::kNone) {
    const int64_t n = shape.gate_mode == 2 ? 1 : d.all;
    a.g = TensorView(
        floats(n * shape.heads, seed + 3, shape.gate_low, shape.gate_high, shape.gate_mode),
        {n, shape.heads});
  }
  if (shape.update == Update::kDelta) {
    a.beta = TensorView(floats(d.all * shape.heads, seed + 4, shape.beta_low, shape.beta_high, 0),
                        {d.all, shape.heads});
  }
  std::vector<int32_t> slots;
  std::vector<uint8_t> fresh;
  for (int s = 0; s < sequences; ++s) {
    slots.push_back(padding && s == 4 ? -1 : s);
    fresh.push_back(s % 3 == 0);
  }
  a.offsets = TensorView(Upload(d, d.offsets), {sequences + 1});
  a.host_offsets = d.offsets.data();
  a.slots = TensorView(Upload(d, slots), {sequences});
  a.fresh = TensorView(Upload(d, fresh), {sequences});
  const int64_t state = int64_t{shape.heads} * shape.k_dim * shape.v_dim;
  a.state = floats(state * sequences, seed + 5, -1.0f, 1.0f, 0);
  a.slot_stride_bytes = state * 4;
  a.scratch = Allocate<uint8_t>(d, ScalarChunkScratchBytes(a, d.all, sequences));
  return d;
}

bool Check(const Shape& shape, Stream stream) {
  Data d = Make(shape, 1, true);
  const int sequences = static_cast<int>(shape.lengths.size());
  const int64_t states = int64_t{shape.heads} * shape.k_dim * shape.v_dim * sequences;
  const int64_t outs = d.all * shape.heads * shape.v_dim;
  float* state = Allocate<float>(d, states);
  float* out = Allocate<float>(d, outs);
  WEIR_CUDA_CHECK(cudaMemset(out, 0, outs * 4));
  WEIR_CUDA_CHECK(cudaMemcpy(state, d.args.state, states * 4, cudaMemcpyDeviceToDevice));
  WEIR_CUDA_CHECK(cudaMemset(d.args.scratch, 0xff, d.buffers[d.buffers.size() - 3].size_bytes()));
  Reference<<<static_cast<unsigned>(sequences * shape.heads), static_cast<unsigned>(shape.v_dim),
              1024>>>(sm90::MakeScalarChunkParams(d.args),
                      reinterpret_cast<const bf16*>(d.args.v.raw()), d.args.v.row_stride(),
                      shape.k_dim, state, out);
  WEIR_CUDA_CHECK(cudaDeviceSynchronize());
  if (!ScalarChunkSupported(d.args)) {
    std::printf("%s: not supported\n", shape.name);
    return false;
  }
  ScalarChunk(d.args, stream);
  WEIR_CUDA_CHECK(cudaDeviceSynchronize());
  std::vector<float> want(outs), want_state(states), got_state(states);
  std::vector<BFloat16> got(outs);
  WEIR_CUDA_CHECK(cudaMemcpy(want.data(), out, outs * 4, cudaMemcpyDefault));
  WEIR_CUDA_CHECK(cudaMemcpy(got.data(), d.args.out.raw(), outs * 2, cudaMemcpyDefault));
  WEIR_CUDA_CHECK(cudaMemcpy(want_state.data(), state, states * 4, cudaMemcpyDefault));
  WEIR_CUDA_CHECK(cudaMemcpy(got_state.data(), d.args.state, states * 4, cudaMemcpyDefault));
  double error = 0, size = 0, state_error = 0, state_size = 0, worst = 0;
  int64_t bad = 0, first_bad = -1, overwritten = 0;
  const int64_t row = int64_t{shape.heads} * shape.v_dim;
  for (int64_t i = 0; i < outs; ++i) {
    const double x = ToFloat(got[i]);
    if (i >= d.tokens * row) {
      uint16_t bits = 0;
      std::memcpy(&bits, &got[i], 2);
      overwritten += bits != 0xffff;
      continue;
    }
    if (!std::isfinite(x)) {
      if (bad++ == 0) first_bad = i;
      continue;
    }
    error += (x - want[i]) * (x - want[i]);
    size += double{want[i]} * want[i];
    worst = std::max(worst, std::abs(x - want[i]));
  }
  for (int64_t i = 0; i < states; ++i) {
    if (!std::isfinite(got_state[i])) ++bad;
    state_error += std::pow(double{got_state[i]} - want_state[i], 2);
    state_size += double{want_state[i]} * want_state[i];
  }
  const double e = std::sqrt(error / (size + 1e-30)),
               se = std::sqrt(state_error / (state_size + 1e-30));
  const bool ok = bad == 0 && overwritten == 0 && e < shape.tolerance && se < shape.tolerance;
  std::printf("%-22s %s out %.2e worst %.2e state %.2e bad %lld (first %lld) over %lld\n",
              shape.name, ok ? "ok  " : "FAIL", e, worst, se, static_cast<long long>(bad),
              static_cast<long long>(first_bad), static_cast<long long>(overwritten));
  return ok;
}

double MedianMs(Stream stream, int repeats, const std::function<void()>& run) {
  const cuda::Graph graph = cuda::Graph::Capture(stream, [&] {
    for (int i = 0; i < repeats; ++i) run();
  });
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    cuda::Event begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
    begin.Record(stream);
    graph.Launch(stream);
    end.Record(stream);
    end.Synchronize();
    if (i > 0) times.push_back(cuda::Event::Milliseconds(begin, end) / repeats);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void Time(const Shape& shape, Stream stream) {
  std::vector<Data> sets;
  for (uint32_t i = 0; i < 2; ++i) sets.push_back(Make(shape, 10 + i, false));
  for (Data& d : sets) d.args.host_offsets = d.offsets.data();
  size_t next = 0;
  const double ms =
      MedianMs(stream, 20, [&] { ScalarChunk(sets[next++ % sets.size()].args, stream); });
  const double prepare_ms = MedianMs(stream, 20, [&] {
    const RecurrenceArgs& a = sets[next++ % sets.size()].args;
    sm90::ScalarChunkPrepare(sm90::MakeScalarChunkParams(a), shape.k_dim,
                             sm90::ChunkSlots(a.q.size(0), a.slots.size(0)), stream);
  });
  const bool delta = shape.update == Update::kDelta;
  const double heads = shape.heads, k = shape.k_dim, v = shape.v_dim,
               tokens = static_cast<double>(sets[0].tokens);
  const double flop =
      tokens * heads * (delta ? 6 * k * v + 256 * (k + v) + 4096.0 / 3 : 4 * k * v + 128 * (k + v));
  const double bytes =
      tokens * (2 * k * (shape.heads_q + shape.heads_k) + 4 * v * heads +
                4 * heads * ((delta ? 1 : 0) + (shape.decay == Decay::kScalar ? 1 : 0))) +
      8 * heads * k * v * static_cast<double>(shape.lengths.size());
  std::printf(
      "{\"op\": \"%s\", \"sequences\": %zu, \"tokens\": %.0f, \"heads_qk\": %d, \"heads\": %d, "
      "\"k\": %d, \"v\": %d, \"ms\": %.4f, \"prepare_ms\": %.4f, \"mtokens_s\": %.2f, \"gb_s\": "
      "%.0f, "
      "\"tflop_s\": %.1f}\n",
      shape.name, shape.lengths.size(), tokens, shape.heads_k, shape.heads, shape.k_dim,
      shape.v_dim, ms, prepare_ms, tokens / ms * 1e-3, bytes / ms * 1e-6, flop / ms * 1e-9);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  if (auto device = cuda::Open(); !device.ok()) {
    std::fprintf(stderr, "%s\n", device.status().ToString().c_str());
    return 1;
  }
  const cuda::OwnedStream owned = cuda::OwnedStream::Make();
  const Stream stream = owned.get();
  const Update add = Update::kAdditive, delta = Update::kDelta;
  const Decay none = Decay::kNone, scalar = Decay::kScalar;
  bool ok = true;
  if (argc > 1 && std::strcmp(argv[1], "--check") == 0) {
    const std::vector<int> ragged = {5, 0, 1, 16, 17, 100, 3, 64, 65, 33, 1, 300};
    const float inf = INFINITY;
    for (const Shape& shape : std::vector<Shape>{
             {"linear_128", add, none, 2, 2, 4, 128, 128, ragged},
             {"mamba2_128_64", add, scalar, 1, 1, 4, 128, 64, ragged},
             {"retnet_64_128", add, scalar, 4, 4, 4, 64, 128, ragged, -0.1f, -0.001f, 2},
             {"simple_64", add, scalar, 4, 2, 4, 64, 64, ragged},
             {"delta_128", delta, none, 2, 2, 2, 128, 128, {300, 64, 63}},
             {"gdn_128", delta, scalar, 2, 2, 4, 128, 128, ragged},
             {"gdn_128_q4k2", delta, scalar, 4, 2, 8, 128, 128, ragged},
             {"gdn_64", delta, scalar, 2, 2, 4, 64, 64, ragged},
             {"gdn_64_128", delta, scalar, 2, 2, 4, 64, 128, ragged},
             {"gdn_128_wide", delta, scalar, 8, 8, 16, 128, 128, ragged},
             {"add_128_wide", add, scalar, 8, 8, 16, 128, 128, ragged},
             {"gdn_64_wide", delta, scalar, 8, 8, 16, 64, 128, ragged},
             {"gdn_beta2_same", delta, none, 2, 2, 2, 128, 128, ragged, 0, 0, 0, 2, 2, 2, 6e-2},
             {"gdn_beta1_same", delta, none, 2, 2, 2, 128, 128, ragged, 0, 0, 0, 1, 1, 2},
             {"gdn_beta02_same", delta, scalar, 2, 2, 2, 128, 128, ragged, -0.1f, 0, 0, 0, 2, 2},
             {"gdn_beta0", delta, scalar, 2, 2, 2, 128, 128, ragged, -0.1f, 0, 0, 0, 0, 1},
             {"gdn_keys_sometimes_0", delta, scalar, 2, 2, 2, 128, 128, ragged, -.1f, 0, 0, 0, 2,
              3},
             {"gdn_gate_0", delta, scalar, 2, 2, 2, 128, 128, ragged, 0, 0},
             {"gdn_gate_1", delta, scalar, 2, 2, 2, 128, 128, ragged, -1, -1},
             {"gdn_gate_5", delta, scalar, 2, 2, 2, 128, 128, ragged, -5, -5},
             {"gdn_gate_40", delta, scalar, 2, 2, 2, 128, 128, ragged, -40, -40},
             {"gdn_gate_1e4", delta, scalar, 2, 2, 2, 128, 128, ragged, -1e4f, -1e4f},
             {"gdn_gate_mixed", delta, scalar, 2, 2, 2, 128, 128, ragged, -1e4f, -0.01f, 1},
             {"gdn_gate_inf", delta, scalar, 2, 2, 2, 128, 128, ragged, -inf, -0.01f, 1},
             {"add_gate_inf", add, scalar, 2, 2, 2, 128, 128, ragged, -inf, -0.01f, 1},
             {"gdn_long", delta, scalar, 1, 1, 2, 128, 128, {2000}, -0.02f, 0},
             {"add_long", add, scalar, 1, 1, 2, 128, 128, {2000}, -0.02f, 0}}) {
      ok = Check(shape, stream) && ok;
    }
    std::printf("%s\n", ok ? "all ok" : "FAILED");
    if (argc == 2) return ok ? 0 : 1;
  }
  const auto same = [](int count, int length) { return std::vector<int>(count, length); };
  for (const Shape& shape :
       std::vector<Shape>{{"gated_delta", delta, scalar, 16, 16, 32, 128, 128, same(1, 1024)},
                          {"gated_delta", delta, scalar, 16, 16, 32, 128, 128, same(1, 4096)},
                          {"gated_delta", delta, scalar, 16, 16, 32, 128, 128, same(1, 16384)},
                          {"gated_delta", delta, scalar, 16, 16, 32, 128, 128, same(8, 2048)},
                          {"gated_delta", delta, scalar, 16, 16, 32, 128, 128, same(4, 8192)},
                          {"gated_delta", delta, scalar, 16, 16, 64, 128, 128, same(4, 8192)},
                          {"gated_delta", delta, scalar, 16, 16, 16, 128, 128, same(1, 16384)},
                          {"scalar_additive", add, scalar, 32, 32, 32, 128, 128, same(1, 16384)},
                          {"scalar_additive", add, scalar, 32, 32, 32, 128, 128, same(8, 2048)},
                          {"mamba2", add, scalar, 1, 1, 64, 128, 64, same(1, 16384)},
                          {"mamba2", add, scalar, 1, 1, 64, 128, 64, same(8, 2048)},
                          {"linear", add, none, 16, 16, 16, 64, 64, same(8, 2048)}}) {
    Time(shape, stream);
  }
  return 0;
}

}  // namespace
}  // namespace weir::kernels::gpu

int main(int argc, char** argv) { return weir::kernels::gpu::Main(argc, argv); }
