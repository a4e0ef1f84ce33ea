#include "kernels/cpu/norm_body.h"

namespace weir::kernels {

const NormTable kNormBaseline = kNormOfThisFile;

}  // namespace weir::kernels
