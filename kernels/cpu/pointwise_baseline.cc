#include "kernels/cpu/pointwise_body.h"

namespace weir::kernels {

const PointwiseTable kPointwiseBaseline = kPointwiseOfThisFile;

}  // namespace weir::kernels
