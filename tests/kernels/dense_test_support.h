// What the tests of the dense kernels share: levels of this machine, pools, random numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/cpu_features.h"
#include "core/dtype.h"
#include "core/stream.h"
#include "core/thread_pool.h"

namespace weir::kernels::testing {

// Half a unit in the last place of a float, relative: the most that one rounding adds.
inline constexpr double kEps = 0x1p-24;
inline constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

inline std::vector<SimdLevel> MachineLevels() {
  std::vector<SimdLevel> levels;
  SetMaxSimdLevel(SimdLevel::kAvx512Bf16);
  const SimdLevel best = CurrentSimdLevel();
  for (int i = 0; i <= static_cast<int>(best); ++i) levels.push_back(static_cast<SimdLevel>(i));
  return levels;
}

// Lowers the level for the life of the object.
class AtLevel {
 public:
  explicit AtLevel(SimdLevel level) { SetMaxSimdLevel(level); }
  ~AtLevel() { SetMaxSimdLevel(SimdLevel::kAvx512Bf16); }
};

class Threads {
 public:
  explicit Threads(int count) : pool_(count) {}
  Stream stream() { return {Device::kCpu, &pool_, nullptr}; }

 private:
  ThreadPool pool_;
};

inline std::vector<float> RandomFloats(int64_t n, uint64_t seed, float stddev = 1.0f) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0f, stddev);
  std::vector<float> values(n);
  for (float& v : values) v = normal(rng);
  return values;
}

inline float RoundTo(DType dtype, float x) {
  return dtype == DType::kBF16 ? ToFloat(ToBFloat16(x)) : x;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace weir::kernels::testing
