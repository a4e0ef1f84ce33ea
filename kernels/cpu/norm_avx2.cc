#if defined(__x86_64__)
#include "kernels/cpu/norm_body.h"

namespace weir::kernels {

const NormTable kNormAvx2 = kNormOfThisFile;

}  // namespace weir::kernels
#endif
