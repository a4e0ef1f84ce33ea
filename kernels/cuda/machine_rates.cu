// The roofs of a GPU.
#include "kernels/machine_rates.h"

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr size_t kCopyBytes = size_t{1} << 30;  // many times the second-level cache
constexpr int64_t kRateSize = 8192;
constexpr int kPasses = 5;

template <typename Fn>
double BestSeconds(Stream stream, const Fn& enqueue) {
  const cuda::Event begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
  enqueue();
  double best = 1e30;
  for (int pass = 0; pass < kPasses; ++pass) {
    begin.Record(stream);
    enqueue();
    end.Record(stream);
    end.Synchronize();
    best = std::min(best, static_cast<double>(cuda::Event::Milliseconds(begin, end)) * 1e-3);
  }
  return best;
}

}  // namespace

// What a copy within the device's memory moves, bytes read and bytes written together.
double MeasureReadBandwidth(Stream stream) {
  absl::StatusOr<Buffer> from = cuda::AllocateDevice(kCopyBytes, "the bandwidth measurement");
  absl::StatusOr<Buffer> to = cuda::AllocateDevice(kCopyBytes, "the bandwidth measurement");
  if (!from.ok() || !to.ok()) return 0.0;
  cuda::Zero(from->data(), kCopyBytes, stream);
  return 2.0 * kCopyBytes /
         BestSeconds(stream, [&] { cuda::Copy(to->data(), from->data(), kCopyBytes, stream); });
}

// A square product of random numbers: constant ones draw less power and run at higher clocks.
double MeasureMatrixRate(DType compute, Stream stream) {
  auto w = RandomMatrix(kRateSize, kRateSize, compute, 1, 0.02f, stream);
  auto x = RandomMatrix(kRateSize, kRateSize, compute, 2, 1.0f, stream);
  auto y = cuda::AllocateDevice(static_cast<size_t>(kRateSize * kRateSize * DTypeSize(compute)),
                                "the rate measurement");
  if (!w.ok() || !x.ok() || !y.ok()) return 0.0;
  const int64_t rows = kRateSize;
  gpu::TuneMatMul(*w, absl::MakeConstSpan(&rows, 1), stream);
  const TensorView out(y->data(), compute, {kRateSize, kRateSize});
  return 2.0 * kRateSize * kRateSize * kRateSize /
         BestSeconds(stream, [&] { gpu::MatMul(x->table(), *w, TensorView(), out, stream); });
}

}  // namespace weir::kernels::gpu
