// The random numbers of a draw, the same on every device.
//
// A token is drawn by two exponential races (Gumbel-max in other words): the block b of kDrawBlock
// consecutive ids with the smallest E_b / mass_b wins, mass_b being the weight of its kept ids;
// then inside it the id i with the smallest E_i / weight_i. All E are independent, exponential with
// mean
// 1. So each id is drawn with its probability; the order in which weights are summed does not
// matter; a change of the logits by a rounding changes the token only when a race was as close as
// that; and a vocabulary needs a number per block and per id of one block, not one per id.
#pragma once

#include <cstdint>

#include "core/philox.h"

namespace weir::kernels {

inline constexpr int kDrawBlock = 256;

// The stream of Philox(seed, draw, stream) whose word i % 4 belongs to id i, or to block i.
constexpr uint64_t IdNoiseStream(int64_t id) { return static_cast<uint64_t>(id) / 4; }
constexpr uint64_t BlockNoiseStream(int64_t block) {
  return (uint64_t{1} << 32) + static_cast<uint64_t>(block) / 4;
}

// The exponential E of 32 random bits: -log(1 - u), u = (bits + 1/2) 2^-32. Where u > 1/2 it is
// computed as -log(v) with v = 1 - u, so that neither tail loses digits: `log1p_of_minus` and
// `log_of` are the device's functions x -> log(1 - x) and x -> log(x).
template <typename Real, typename Log1pOfMinus, typename LogOf>
constexpr Real Exponential(uint32_t bits, const Log1pOfMinus& log1p_of_minus, const LogOf& log_of) {
  constexpr Real kStep = static_cast<Real>(0x1p-32);
  const Real half = static_cast<Real>(0.5);
  if (bits < 0x80000000u) return -log1p_of_minus((static_cast<Real>(bits) + half) * kStep);
  return -log_of((static_cast<Real>(~bits) + half) * kStep);
}
// Never more than Exponential(bits): decides most races without a logarithm.
constexpr float LeastExponential(uint32_t bits) { return static_cast<float>(bits) * 0x1p-32f; }

}  // namespace weir::kernels
