#include "kernels/cpu/short_conv_body.h"

namespace weir::kernels {

const ShortConvTable kShortConvBaseline = kShortConvOfThisFile;

}  // namespace weir::kernels
