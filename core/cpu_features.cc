#include "core/cpu_features.h"

#include <algorithm>
#include <atomic>

namespace weir {
namespace {

SimdLevel Detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return SimdLevel::kAvx512Bf16;
  if (avx512) return SimdLevel::kAvx512;
  if (avx2) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kBaseline;
}

std::atomic<SimdLevel> g_max{SimdLevel::kAvx512Bf16};

}  // namespace

SimdLevel CurrentSimdLevel() {
  static const SimdLevel detected = Detect();
  return std::min(detected, g_max.load(std::memory_order_relaxed));
}

void SetMaxSimdLevel(SimdLevel level) { g_max.store(level, std::memory_order_relaxed); }

const char* SimdLevelName(SimdLevel level) {
  switch (level) {
    case SimdLevel::kBaseline:
      return "baseline";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx512Bf16:
      return "avx512-bf16";
  }
  return "?";
}

}  // namespace weir
