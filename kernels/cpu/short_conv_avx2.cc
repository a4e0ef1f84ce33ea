#if defined(__x86_64__)
#include "kernels/cpu/short_conv_body.h"

namespace weir::kernels {

const ShortConvTable kShortConvAvx2 = kShortConvOfThisFile;

}  // namespace weir::kernels
#endif
