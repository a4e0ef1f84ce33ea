// Attention in portable code.
#include "kernels/cpu/vector_plain.h"
// After the vectors that it is written over.
#include "kernels/cpu/attention_tiles.h"

namespace weir::kernels {

const AttentionKernel kAttentionPlain = kKernel;

}  // namespace weir::kernels
