// The exponential over `Vec`: include a vector_*.h first. Local to the includer.
#pragma once

namespace weir::kernels {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// 2^x within two units in the last place for x in [-126, 127]; exactly 1 for 0; 0 below -126,
// where the value would be denormal, and for -infinity; NaN for NaN. REQUIRES: x <= 127.
WEIR_VEC Vec::F Exp2(Vec::F x) {
  const Vec::F low = Vec::Set1(-126.0f);
  const Vec::F limited = Vec::Max(low, x);
  const Vec::F n = Vec::Round(limited);
  const Vec::F f = Vec::Sub(limited, n);  // exact; in [-1/2, 1/2]
  // Taylor series of 2^f; the first term left out is below 2^-28.
  Vec::F p = Vec::Set1(1.52527338e-5f);
  p = Vec::Fma(p, f, Vec::Set1(1.54035304e-4f));
  p = Vec::Fma(p, f, Vec::Set1(1.33335581e-3f));
  p = Vec::Fma(p, f, Vec::Set1(9.61812911e-3f));
  p = Vec::Fma(p, f, Vec::Set1(5.55041087e-2f));
  p = Vec::Fma(p, f, Vec::Set1(2.40226507e-1f));
  p = Vec::Fma(p, f, Vec::Set1(6.93147181e-1f));
  p = Vec::Fma(p, f, Vec::Set1(1.0f));
  return Vec::IfLess(x, low, Vec::Set1(0.0f), Vec::Mul(p, Vec::Pow2(n)));
}

}  // namespace
}  // namespace weir::kernels
