// The decode step of linear-attention mixers on the GPU: the recurrence alone and the fused op, by
// graph replay, slots rotated past the L2 cache. JSON lines.
//
//   linear_mixer_bench
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "kernels/linear_mixer.h"
#include "kernels/recurrence.h"
#include "kernels/short_conv.h"

namespace weir::kernels {
namespace {

constexpr int kHeads = 32, kDim = 128, kTaps = 4;
constexpr int64_t kSlots = 512;

class Bench {
 public:
  Bench() : stream_(cuda::OwnedStream::Make()) {
    random_ = Device(int64_t{64} << 20);
    Buffer host = *cuda::AllocatePinned(random_.size_bytes(), "numbers");
    std::mt19937 rng(1);
    // Values in (-1, 1) both as f32 and as pairs of bf16.
    for (size_t i = 0; i < host.size_bytes() / 2; ++i) {
      const float x = static_cast<float>(rng() % 2001) / 1000.0f - 1.0f;
      host.as<BFloat16>()[i] = ToBFloat16(x);
    }
    cuda::Copy(random_.data(), host.data(), host.size_bytes(), stream());
    cuda::Synchronize(stream());
    copy_rate_ = MeasureCopy();
    std::printf("{\"op\": \"copy\", \"gb_per_s\": %.0f}\n", copy_rate_ / 1e9);
  }

  Stream stream() const { return stream_.get(); }
  Buffer Device(int64_t bytes) {
    return *cuda::AllocateDevice(static_cast<size_t>(bytes), "bench");
  }
  // Numbers to read, of any dtype, never written; `at` spreads the readers.
  TensorView Numbers(DType dtype, std::initializer_list<int64_t> shape, int64_t at = 0) const {
    return TensorView(random_.data() + at % 16 * (int64_t{1} << 20), dtype, shape);
  }

  // Median microseconds of a call: `calls` of them in a graph, call i by enqueue(i).
  double Time(int calls, const std::function<void(int)>& enqueue) const {
    cuda::Graph graph = cuda::Graph::Capture(stream(), [&] {
      for (int i = 0; i < calls; ++i) enqueue(i);
    });
    std::vector<double> times;
    for (int round = 0; round < 8; ++round) {
      const cuda::Event begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
      begin.Record(stream());
      graph.Launch(stream());
      end.Record(stream());
      end.Synchronize();
      if (round > 0) times.push_back(1000.0 * cuda::Event::Milliseconds(begin, end) / calls);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void Report(const std::string& op, const std::string& shape, double us, double bytes) const {
    const double rate = bytes / us * 1e6;
    std::printf(
        "{\"op\": \"%s\", \"shape\": \"%s\", \"us\": %.2f, \"gb_per_s\": %.0f, "
        "\"of_copy\": %.3f}\n",
        op.c_str(), shape.c_str(), us, rate / 1e9, rate / copy_rate_);
    std::fflush(stdout);
  }

 private:
  double MeasureCopy() {
    constexpr int64_t kBytes = int64_t{1} << 30;
    const Buffer from = Device(kBytes), to = Device(kBytes);
    const double us = Time(10, [&](int) { cuda::Copy(to.data(), from.data(), kBytes, stream()); });
    return 2.0 * kBytes / us * 1e6;
  }

  cuda::OwnedStream stream_;
  Buffer random_;
  double copy_rate_ = 1.0;
};

struct Rule {
  const char* name;
  Decay decay;
  Update update;
  int heads_qk;
};
constexpr Rule kRules[] = {{"gdn", Decay::kScalar, Update::kDelta, 16},
                           {"kda", Decay::kVector, Update::kDelta, 32},
                           {"gla", Decay::kVector, Update::kAdditive, 32}};

// Slots [0, kSlots) in turn, and what else names sequences.
struct Sequences {
  explicit Sequences(Bench* bench) {
    const int64_t count = 2 * kSlots;
    std::vector<int32_t> numbers(count);
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<int32_t>(i % kSlots);
    slots = bench->Device(count * 4);
    offsets = bench->Device(count * 4);
    fresh = bench->Device(count);
    Buffer host = *cuda::AllocatePinned(count * 4, "slots");
    std::memcpy(host.data(), numbers.data(), count * 4);
    cuda::Copy(slots.data(), host.data(), count * 4, bench->stream());
    cuda::Copy(offsets.data(), host.data(), count * 4, bench->stream());
    cuda::Zero(fresh.data(), count, bench->stream());
    cuda::Synchronize(bench->stream());
  }
  Buffer slots, offsets, fresh;
};

int64_t StateBytes() { return int64_t{kHeads} * kDim * kDim * 4; }
int64_t Channels(const Rule& rule) { return int64_t{2 * rule.heads_qk + kHeads} * kDim; }

void BenchRecurrence(Bench* bench, const Sequences& sequences, std::byte* pool, int64_t stride,
                     const Rule& rule, int batch, std::byte* out) {
  RecurrenceArgs a;
  a.decay = rule.decay;
  a.update = rule.update;
  a.scale = 0.09f;
  a.heads = kHeads;
  const DType bf16 = DType::kBF16;
  const double us = bench->Time(batch >= 64 ? 24 : 100, [&](int i) {
    a.q = bench->Numbers(bf16, {batch, rule.heads_qk, kDim}, i);
    a.k = bench->Numbers(bf16, {batch, rule.heads_qk, kDim}, i + 1);
    a.v = bench->Numbers(bf16, {batch, kHeads, kDim}, i + 2);
    a.g = rule.decay == Decay::kScalar ? bench->Numbers(DType::kF32, {batch, kHeads}, i + 3)
                                       : bench->Numbers(DType::kF32, {batch, kHeads, kDim}, i + 3);
    if (rule.update == Update::kDelta) {
      a.beta = bench->Numbers(DType::kF32, {batch, kHeads}, i + 4);
    }
    a.out = TensorView(out, bf16, {batch, kHeads, kDim});
    a.offsets = TensorView(sequences.offsets.as<int32_t>(), {batch + 1});
    a.slots = TensorView(sequences.slots.as<int32_t>() + int64_t{i} * batch % kSlots, {batch});
    a.fresh = TensorView(sequences.fresh.as<uint8_t>(), {batch});
    a.state = pool;
    a.slot_stride_bytes = stride;
    RecurrenceStep(a, bench->stream());
  });
  bench->Report(std::string("recurrence_step_") + rule.name, "B=" + std::to_string(batch), us,
                2.0 * static_cast<double>(StateBytes()) * batch);
}

void BenchFused(Bench* bench, const Sequences& sequences, std::byte* pool, int64_t stride,
                const Rule& rule, int batch, std::byte* out) {
  LinearMixerArgs a;
  a.decay = rule.decay;
  a.update = rule.update;
  a.heads = a.heads_v = a.heads_g = kHeads;
  a.heads_q = a.heads_k = rule.heads_qk;
  a.key_dim = a.value_dim = kDim;
  const int64_t channels = Channels(rule), value = int64_t{kHeads} * kDim;
  const bool conv = rule.update == Update::kDelta;
  const DType bf16 = DType::kBF16, f32 = DType::kF32;
  if (conv) {
    a.conv_weight = bench->Numbers(f32, {channels, kTaps});
    a.window = pool + StateBytes();
    a.window_dtype = bf16;
  }
  a.activation = conv ? Activation::kSilu : Activation::kNone;
  a.l2_norm = conv;
  a.decay_form = conv ? LogDecayArgs::Form::kSoftplus : LogDecayArgs::Form::kLogSigmoid;
  const int64_t gates = rule.decay == Decay::kVector ? value : kHeads;
  a.decay_bias = bench->Numbers(f32, {gates}, 1);
  if (conv) a.exp_a = bench->Numbers(f32, {kHeads}, 2);
  a.norm_weight = bench->Numbers(f32, {kDim}, 3);
  const double us = bench->Time(batch >= 64 ? 24 : 100, [&](int i) {
    a.qkv = bench->Numbers(bf16, {batch, channels}, i);
    a.decay_x = bench->Numbers(bf16, {batch, gates}, i + 1);
    if (rule.update == Update::kDelta) a.beta_x = bench->Numbers(bf16, {batch, kHeads}, i + 2);
    a.gate = bench->Numbers(bf16, {batch, value}, i + 3);
    a.out = TensorView(out, bf16, {batch, value});
    a.offsets = TensorView(sequences.offsets.as<int32_t>(), {batch + 1});
    a.slots = TensorView(sequences.slots.as<int32_t>() + int64_t{i} * batch % kSlots, {batch});
    a.fresh = TensorView(sequences.fresh.as<uint8_t>(), {batch});
    a.singles = batch;
    a.state = pool;
    a.slot_stride_bytes = stride;
    LinearMixer(a, bench->stream());
  });
  const double window = conv ? 2.0 * (kTaps - 1) * static_cast<double>(channels) * 2 : 0.0;
  const double rows = 2.0 * static_cast<double>(channels + 2 * value + gates);
  bench->Report(std::string("linear_mixer_") + rule.name, "B=" + std::to_string(batch), us,
                (2.0 * static_cast<double>(StateBytes()) + window + rows) * batch);
}

void BenchConv(Bench* bench, const Sequences& sequences, std::byte* pool, int64_t stride,
               int64_t tokens, int64_t channels) {
  const Buffer x = bench->Device(tokens * channels * 2), y = bench->Device(tokens * channels * 2);
  ShortConvArgs a;
  a.x = TensorView(x.data(), DType::kBF16, {tokens, channels});
  a.out = a.x.At(y.data(), DType::kBF16);
  a.weight = bench->Numbers(DType::kF32, {channels, kTaps});
  Buffer offsets = *cuda::AllocatePinned(8, "offsets");
  offsets.as<int32_t>()[1] = static_cast<int32_t>(tokens);
  a.offsets = TensorView(offsets.as<int32_t>(), {2});
  a.slots = TensorView(sequences.slots.as<int32_t>(), {1});
  a.fresh = TensorView(sequences.fresh.as<uint8_t>(), {1});
  a.window_dtype = DType::kBF16;
  a.state = pool;
  a.slot_stride_bytes = stride;
  const double us = bench->Time(20, [&](int) { ShortConv(a, bench->stream()); });
  bench->Report("short_conv", std::to_string(tokens) + "x" + std::to_string(channels), us,
                4.0 * static_cast<double>(tokens * channels));
}

int Run() {
  if (const auto gpu = cuda::Open(); !gpu.ok()) {
    std::fprintf(stderr, "%s\n", gpu.status().ToString().c_str());
    return 1;
  }
  Bench bench;
  const Sequences sequences(&bench);
  const int64_t stride = StateBytes() + (kTaps - 1) * Channels(kRules[1]) * 2;
  const Buffer pool = bench.Device(kSlots * stride), out = bench.Device(int64_t{8} << 20);
  cuda::Zero(pool.data(), pool.size_bytes(), bench.stream());
  for (const Rule& rule : kRules) {
    for (const int batch : {1, 4, 16, 64, 128, 256}) {
      BenchRecurrence(&bench, sequences, pool.data(), stride, rule, batch, out.data());
      BenchFused(&bench, sequences, pool.data(), stride, rule, batch, out.data());
    }
  }
  for (const int64_t tokens : {512, 4096, 16384}) {
    BenchConv(&bench, sequences, pool.data(), stride, tokens, 8192);
  }
  return 0;
}

}  // namespace
}  // namespace weir::kernels

int main() { return weir::kernels::Run(); }
