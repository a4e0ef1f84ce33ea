// Passes over the vocabulary in portable code.
#include "kernels/cpu/vector_plain.h"
// After the vectors that it is written over.
#include "kernels/cpu/sample_scan.h"

namespace weir::kernels {

const ScanKernel kScanPlain = {Prepare, Exponentials, Collect};

}  // namespace weir::kernels
