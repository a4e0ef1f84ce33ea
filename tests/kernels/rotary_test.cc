#include <gtest/gtest.h>

#include <vector>

#include "kernels/attention.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using namespace testing;  // NOLINT: the support of this test

struct Case {
  int64_t tokens, heads, head_dim, rotary_dim;
  float factor;
  bool strided;
};

class RotaryTest : public ::testing::TestWithParam<Target> {};

TEST_P(RotaryTest, AgreesWithTheFormulaInDouble) {
  const Target target = GetParam();
  const bool on_gpu = target.device == Device::kCuda;
  if (on_gpu) WEIR_NEEDS_GPU();
  const double eps = ActivationEps(target);
  const Case cases[] = {{1, 1, 2, 2, 1.0f, false},      {5, 3, 20, 20, 1.0f, true},
                        {61, 4, 256, 64, 1.0f, false},  {7, 2, 36, 10, 1.25f, true},
                        {200, 8, 128, 128, 1.0f, true}, {3, 2, 24, 0, 1.0f, false}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.head_dim);
    const int64_t width = c.heads * c.head_dim, stride = width + (c.strided ? 11 : 0);
    std::vector<float> x = RandomFloats(c.tokens * stride, c.tokens);
    for (float& v : x) v = RoundTo(on_gpu ? target.activations : DType::kF32, v);
    std::vector<int32_t> positions(c.tokens);
    for (int64_t t = 0; t < c.tokens; ++t) positions[t] = static_cast<int32_t>(t * 997 % 30011);
    std::vector<float> inv_freq(c.rotary_dim / 2);
    for (size_t i = 0; i < inv_freq.size(); ++i) {
      inv_freq[i] =
          std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(c.rotary_dim));
    }
    std::vector<float> first;
    const std::vector<SimdLevel> levels =
        on_gpu ? std::vector<SimdLevel>{CurrentSimdLevel()} : MachineLevels();
    for (SimdLevel level : levels) {
      for (int thread_count : {1, 2, 3}) {
        AtLevel at(level);
        ThreadPool pool(thread_count);
        DeviceMirror mirror(target.device, target.activations, &pool);
        std::vector<float> y = x;
        RotaryArgs args;
        args.x = mirror.Activation(TensorView(y.data(), {c.tokens, stride}))
                     .Columns(0, width)
                     .Reshape({c.tokens, c.heads, c.head_dim});
        args.positions = mirror.Plain(TensorView(positions.data(), {c.tokens}));
        float none = 0;
        args.inv_freq = mirror.Plain(TensorView(inv_freq.empty() ? &none : inv_freq.data(),
                                                {static_cast<int64_t>(inv_freq.size())}));
        args.attention_factor = c.factor;
        Rotary(args, mirror.stream());
        mirror.Fetch();
        if (thread_count == 1) first = y;
        ASSERT_TRUE(SameBits(first, y)) << thread_count << " threads";
      }
      for (int64_t t = 0; t < c.tokens; ++t) {
        for (int64_t e = 0; e < stride; ++e) {
          const int64_t d = e % c.head_dim, half = c.rotary_dim / 2;
          if (e >= width || d >= c.rotary_dim) {
            ASSERT_EQ(first[t * stride + e], x[t * stride + e]) << "untouched part";
            continue;
          }
          const int64_t i = d % half;
          const double angle = double{static_cast<float>(positions[t]) * inv_freq[i]};
          const double a = x[t * stride + e - (d < half ? 0 : half)];
          const double b = x[t * stride + e + (d < half ? half : 0)];
          const double cosine = std::cos(angle) * c.factor, sine = std::sin(angle) * c.factor;
          const double want = d < half ? a * cosine - b * sine : b * cosine + a * sine;
          // cos and sin are rounded twice (value, factor), each product and the sum once.
          // The GPU's cos and sin are good to one unit in the last place: two roundings more.
          const double tolerance = (6 * kEps + eps) * c.factor * (std::fabs(a) + std::fabs(b));
          ASSERT_NEAR(first[t * stride + e], want, tolerance) << "token " << t << " element " << e;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RotaryTest, ::testing::ValuesIn(Targets()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace weir::kernels
