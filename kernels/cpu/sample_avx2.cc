// Passes over the vocabulary in AVX2.
#include "kernels/cpu/vector_avx2.h"
// After the vectors that it is written over.
#include "kernels/cpu/sample_scan.h"

namespace weir::kernels {

const ScanKernel kScanAvx2 = {Prepare, Exponentials, Collect};

}  // namespace weir::kernels
