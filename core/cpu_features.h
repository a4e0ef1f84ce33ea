// What vectors this machine has, looked up once. Kernels choose their variant by it.
#pragma once

#include <string>

namespace weir {

enum class SimdLevel : unsigned char {
  kBaseline,    // x86-64-v2 or another architecture: portable code
  kAvx2,        // AVX2 + FMA
  kAvx512,      // AVX-512 F, BW, VL, DQ
  kAvx512Bf16,  // the same with bf16 dot products
};

// The machine's level, lowered by SetMaxSimdLevel.
SimdLevel CurrentSimdLevel();
// Tests and benchmarks run the lower variants too. Not while a kernel runs.
void SetMaxSimdLevel(SimdLevel level);
const char* SimdLevelName(SimdLevel level);

}  // namespace weir
