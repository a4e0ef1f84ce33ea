// cuBLASLt, opened at run time: a binary that was built with CUDA starts without it.
#pragma once

#include <cublasLt.h>

#include "core/status.h"

namespace weir::kernels::gpu {

// The functions that we call, and a handle made by the first.
struct CublasLt {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescInit_internal) init_desc = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc = nullptr;
  decltype(&cublasLtMatrixLayoutInit_internal) init_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceInit_internal) init_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) check = nullptr;
  cublasLtHandle_t handle = nullptr;
};

// Looked for where the loader looks (beside the binary, in the toolkit it was built with), in
// WEIR_CUBLASLT (the library or its folder), in /usr/local/cuda/lib64. Opened once; the same answer
// ever after. NOT_FOUND with what was tried. Safe from any thread.
const absl::StatusOr<CublasLt>& OpenCublasLt();

}  // namespace weir::kernels::gpu
