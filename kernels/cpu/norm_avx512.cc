#if defined(__x86_64__)
#include "kernels/cpu/norm_body.h"

namespace weir::kernels {

const NormTable kNormAvx512 = kNormOfThisFile;

}  // namespace weir::kernels
#endif
