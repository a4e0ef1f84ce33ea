// Attention in AVX-512.
#include "kernels/cpu/vector_avx512.h"
// After the vectors that it is written over.
#include "kernels/cpu/attention_tiles.h"

namespace weir::kernels {

const AttentionKernel kAttentionAvx512 = kKernel;

}  // namespace weir::kernels
