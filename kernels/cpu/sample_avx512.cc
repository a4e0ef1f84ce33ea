// Passes over the vocabulary in AVX-512.
#include "kernels/cpu/vector_avx512.h"
// After the vectors that it is written over.
#include "kernels/cpu/sample_scan.h"

namespace weir::kernels {

const ScanKernel kScanAvx512 = {Prepare, Exponentials, Collect};

}  // namespace weir::kernels
