// WEIR_CUDA_CHECK for files that include CUDA's own headers.
#pragma once

#include <cuda_runtime.h>

#include "core/cuda/runtime.h"

// Ends the process when a CUDA call fails (see weir::cuda::Die).
#define WEIR_CUDA_CHECK(expr)                                                            \
  do {                                                                                   \
    const cudaError_t weir_cuda_error = (expr);                                          \
    if (weir_cuda_error != cudaSuccess) [[unlikely]]                                     \
      ::weir::cuda::Die(__FILE__, __LINE__, #expr, cudaGetErrorString(weir_cuda_error)); \
  } while (false)
