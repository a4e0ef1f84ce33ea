// Launching kernels of ours, and what device code everywhere needs.
//
// Programmatic dependent launch: with LaunchOptions::overlap (the default) a kernel may start while the one
// before it on the stream still runs. Therefore EVERY kernel calls PdlWait() on every path before it reads
// anything that an earlier kernel wrote, or writes anything at all; weights and constants may be read before.
// PdlLaunchDependents() early in the kernel lets the next one start; it only needs to be called, its effect
// on memory is none (the next kernel's PdlWait waits for this one's end).
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/check.h"
#include "core/cuda/check.h"
#include "core/dtype.h"
#include "core/stream.h"

namespace weir::kernels::gpu {

struct LaunchOptions {
  size_t shared_bytes = 0;  // dynamic; above 48 KiB the kernel's limit is raised on the first launch
  int cluster = 1;          // thread blocks per cluster along x (sm_90)
  bool overlap = true;      // programmatic dependent launch
};

// Enqueues kernel<<<grid, block>>>(args...) and ends the process on an error, naming `op`.
// What each argument converts to is checked against the kernel's parameters.
template <typename... Params, typename... Args>
void Launch(const char* op, Stream stream, void (*kernel)(Params...), dim3 grid, dim3 block,
            const LaunchOptions& options, Args&&... args) {
  if (options.shared_bytes > 48 * 1024) {
    WEIR_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(options.shared_bytes)));
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = options.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.native);
  config.attrs = attributes;
  if (options.overlap && cuda::Device().major >= 9) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (options.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = static_cast<unsigned>(options.cluster);
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  if (error != cudaSuccess) [[unlikely]] {
    cuda::Die(__FILE__, __LINE__,
              std::string("launching ") + op + " with grid (" + std::to_string(grid.x) + ", " +
                  std::to_string(grid.y) + ", " + std::to_string(grid.z) + "), block " +
                  std::to_string(block.x) + ", shared bytes " + std::to_string(options.shared_bytes),
              cudaGetErrorString(error));
  }
}

__device__ __forceinline__ void PdlWait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void PdlLaunchDependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

using bf16 = __nv_bfloat16;

template <typename T>
struct DeviceType;  // our storage type -> CUDA's
template <>
struct DeviceType<float> {
  using type = float;
};
template <>
struct DeviceType<BFloat16> {
  using type = bf16;
};

__device__ __forceinline__ float Load(const float* p) { return *p; }
__device__ __forceinline__ float Load(const bf16* p) { return __bfloat162float(*p); }
__device__ __forceinline__ void Store(float* p, float x) { *p = x; }
__device__ __forceinline__ void Store(bf16* p, float x) { *p = __float2bfloat16_rn(x); }

// Calls fn(float()) or fn(bf16()): `const auto x = decltype(tag){}` picks a template.
template <typename Fn>
void WithActivation(DType dtype, const Fn& fn) {
  if (dtype == DType::kBF16) {
    fn(bf16{});
  } else {
    WEIR_CHECK(dtype == DType::kF32) << "activations of " << DTypeName(dtype);
    fn(float{});
  }
}

constexpr int kWarp = 32;

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int i = kWarp / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int i = kWarp / 2; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
  return x;
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }
__device__ __forceinline__ float Silu(float x) { return x / (1.0f + __expf(-x)); }
// log(1 + e^x) without overflow.
__device__ __forceinline__ float Softplus(float x) { return x > 20.0f ? x : log1pf(__expf(x)); }

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace weir::kernels::gpu
