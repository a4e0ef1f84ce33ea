// The roofs of the machine.
#include "kernels/machine_rates.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/buffer.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/machine_rates_loops.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {
namespace {

// Large enough that what a pass finds in a cache of a few tens of megabytes does not count.
constexpr int64_t kReadBytes = int64_t{512} << 20;
constexpr int64_t kReadChunk = int64_t{2} << 20;
constexpr int kPasses = 5;
constexpr double kRateTaskSeconds = 100e-6;
constexpr int kRateTasksPerThread = 100;

uint64_t ReadPlain(const char* p, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, p + i, 8);
    sum ^= word;
  }
  return sum;
}

void MultiplyAddPlain(int64_t iterations) {
  float sum[32] = {};
  volatile float factor = 0.5f;
  const float a = factor;
  for (; iterations > 0; --iterations) {
    for (float& s : sum) s += a * s;
  }
  factor = sum[0];
}

ReadLoop FindReadLoop() {
#if defined(__x86_64__)
  if (CurrentSimdLevel() >= SimdLevel::kAvx512) return ReadAvx512;
  if (CurrentSimdLevel() >= SimdLevel::kAvx2) return ReadAvx2;
#endif
  return ReadPlain;
}

RateLoop FindRateLoop(DType compute) {
#if defined(__x86_64__)
  const SimdLevel level = CurrentSimdLevel();
  if (compute == DType::kBF16 && level == SimdLevel::kAvx512Bf16) return kRateBf16Avx512Bf16;
  if (level >= SimdLevel::kAvx512) return kRateF32Avx512;
  if (level >= SimdLevel::kAvx2) return kRateF32Avx2;
#endif
  (void)compute;  // without bf16 dot products, bf16 weights are widened and multiplied as f32
  return {MultiplyAddPlain, 64};
}

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double MeasureReadBandwidth(Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::MeasureReadBandwidth(stream);
  }
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(kReadBytes, "the bandwidth measurement");
  if (!buffer.ok()) return 0.0;
  const char* data = reinterpret_cast<const char*>(buffer->data());
  const int64_t chunks = kReadBytes / kReadChunk;
  // Untouched pages would all be the same zero page.
  stream.pool->ParallelFor(chunks, [&](int64_t i) {
    std::memset(buffer->data() + i * kReadChunk, static_cast<int>(i + 1), kReadChunk);
  });
  const ReadLoop read = FindReadLoop();
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double start = Seconds();
    stream.pool->ParallelFor(chunks, [&](int64_t i) {
      sink.fetch_xor(read(data + i * kReadChunk, kReadChunk), std::memory_order_relaxed);
    });
    best = std::max(best, kReadBytes / (Seconds() - start));
  }
  return best;
}

double MeasureMatrixRate(DType compute, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::MeasureMatrixRate(compute, stream);
  }
  const RateLoop loop = FindRateLoop(compute);
  int64_t iterations = 64;
  for (;; iterations *= 2) {
    const double start = Seconds();
    loop.run(iterations);
    if (Seconds() - start > kRateTaskSeconds / 2) break;
  }
  const int64_t tasks = int64_t{kRateTasksPerThread} * stream.pool->num_threads();
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double start = Seconds();
    stream.pool->ParallelFor(tasks, [&](int64_t) { loop.run(iterations); });
    const double flops = static_cast<double>(loop.flops_per_iteration) * iterations * tasks;
    best = std::max(best, flops / (Seconds() - start));
  }
  return best;
}

}  // namespace weir::kernels
