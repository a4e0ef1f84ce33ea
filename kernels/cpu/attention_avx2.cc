// Attention in AVX2.
#include "kernels/cpu/vector_avx2.h"
// After the vectors that it is written over.
#include "kernels/cpu/attention_tiles.h"

namespace weir::kernels {

const AttentionKernel kAttentionAvx2 = kKernel;

}  // namespace weir::kernels
