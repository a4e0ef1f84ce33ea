// Random weights, made where they are used: the same values as on the CPU.
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 4096;

template <typename T>
__global__ void RandomKernel(T* weights, int64_t count, uint32_t salt, float step) {
  PdlLaunchDependents();
  PdlWait();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    // A 32-bit finaliser (MurmurHash3, Appleby, public domain) of the element's index.
    uint32_t h = static_cast<uint32_t>(i) + salt;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    h ^= h >> 16;
    Store(weights + i, static_cast<float>(static_cast<int32_t>(h)) * step);
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> RandomMatrix(int64_t out, int64_t in, DType compute, uint64_t seed,
                                          float stddev, Stream stream) {
  WEIR_CHECK(compute == DType::kF32 || compute == DType::kBF16) << DTypeName(compute);
  const int64_t count = out * in;
  RETURN_IF_ERROR(ReserveLibrary());
  ASSIGN_OR_RETURN(Buffer data, cuda::AllocateDevice(
                                    static_cast<size_t>(count * DTypeSize(compute)), "a weight"));
  const auto salt = static_cast<uint32_t>(seed * 0x9E3779B97F4A7C15u >> 32);
  // Uniform in [-a, a] has standard deviation a / sqrt(3).
  const float step = stddev * std::sqrt(3.0f) * 0x1p-31f;
  if (count > 0) {
    const auto blocks = static_cast<unsigned>(std::min(kBlocks, CeilDiv(count, kThreads)));
    WithActivation(compute, [&](auto tag) {
      using T = decltype(tag);
      Launch("RandomMatrix", stream, RandomKernel<T>, blocks, kThreads, {}, data.as<T>(), count,
             salt, step);
    });
  }
  return PackedMatrix::OnDevice(std::move(data), out, in, compute);
}

}  // namespace weir::kernels::gpu
