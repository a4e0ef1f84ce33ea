#if defined(__x86_64__)
#include "kernels/cpu/pointwise_body.h"

namespace weir::kernels {

const PointwiseTable kPointwiseAvx2 = kPointwiseOfThisFile;

}  // namespace weir::kernels
#endif
