#include "kernels/norm.h"

#include <cmath>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using testing::ActivationEps;
using testing::AtLevel;
using testing::DeviceMirror;
using testing::kEps;
using testing::kPoison;
using testing::MachineLevels;
using testing::RandomFloats;
using testing::Target;
using testing::Threads;

// A matrix inside a wider buffer of NaN, which must stay NaN. The gap keeps rows of whole vectors
// aligned.
struct Matrix {
  Matrix(int64_t rows, int64_t n, std::vector<float> values)
      : rows(rows), n(n), stride(n + (n % 8 == 0 ? 8 : 3)) {
    data.assign(rows * stride, kPoison);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(values.begin() + r * n, n, data.begin() + r * stride + 1);
    }
  }
  static Matrix Random(int64_t rows, int64_t n, uint64_t seed) {
    return Matrix(rows, n, RandomFloats(rows * n, seed, 2.0f));
  }
  static Matrix Poisoned(int64_t rows, int64_t n) {
    return Matrix(rows, n, std::vector<float>(rows * n, kPoison));
  }
  TensorView view() { return TensorView(data.data(), {rows, stride}).Columns(1, n); }
  float at(int64_t r, int64_t i) const { return data[r * stride + 1 + i]; }
  void ExpectGapsUntouched() const {
    for (int64_t r = 0; r < rows; ++r) {
      ASSERT_TRUE(std::isnan(data[r * stride])) << r;
      ASSERT_TRUE(std::isnan(data[r * stride + n + 1])) << r;
      ASSERT_TRUE(std::isnan(data[r * stride + n + 2])) << r;
    }
  }
  int64_t rows, n, stride;
  std::vector<float> data;
};

// Every test runs on the CPU at each level of this machine, and on the GPU.
class Norm : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (GetParam().device == Device::kCuda) WEIR_NEEDS_GPU();
  }
  static std::vector<SimdLevel> Levels() {
    const std::vector<SimdLevel> all = MachineLevels();
    return GetParam().device == Device::kCpu ? all : std::vector<SimdLevel>{all.back()};
  }
  static DeviceMirror Mirror(Threads& threads) {
    return DeviceMirror(GetParam().device, GetParam().activations, threads.stream().pool);
  }
  // What the last rounding adds to an error of a few roundings of f32.
  static double Rounding() { return ActivationEps(GetParam()); }
  static void CheckGated(const struct Case& c, bool with_gate, bool gate_first, bool normalize,
                         bool sigmoid, std::optional<bool> weight_per_group, bool in_place);
};
INSTANTIATE_TEST_SUITE_P(, Norm, ::testing::ValuesIn(testing::Targets()),
                         [](const auto& info) { return info.param.name(); });

struct Case {
  int64_t rows, n, group;  // group 0: n
};
const std::vector<Case> kCases = {{1, 1, 0},     {2, 7, 0},      {3, 16, 0},    {4, 24, 12},
                                  {3, 80, 20},   {5, 100, 0},    {2, 256, 128}, {3, 515, 0},
                                  {1, 1024, 0},  {700, 40, 20},  {0, 8, 0},     {2, 9000, 0},
                                  {2, 12288, 0}, {3, 6144, 3072}};

double Rms(const std::vector<double>& x, double eps) {
  double sum = 0;
  for (double v : x) sum += v * v;
  return std::sqrt(sum / static_cast<double>(x.size()) + eps);
}
double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A sum of n squares runs in at least 16 chains and a tree of four levels; all terms are positive,
// so its relative error is below (n / 16 + 6) eps; the root halves it; then a handful of roundings.
double Tolerance(int64_t n) { return (static_cast<double>(n) / 32 + 12) * kEps; }

void Norm::CheckGated(const Case& c, bool with_gate, bool gate_first, bool normalize, bool sigmoid,
                      std::optional<bool> weight_per_group, bool in_place) {
  const int64_t group = c.group ? c.group : c.n;
  Matrix x = Matrix::Random(c.rows, c.n, 1), gate = Matrix::Random(c.rows, c.n, 2);
  Matrix out = Matrix::Poisoned(c.rows, c.n);
  std::vector<float> weight = RandomFloats(c.n, 3);
  static Threads threads(3);
  DeviceMirror mirror = Mirror(threads);
  GatedRmsNormArgs a;
  a.x = mirror.Activation(x.view());
  if (with_gate) a.gate = mirror.Activation(gate.view());
  if (weight_per_group) {
    a.weight = mirror.Plain(TensorView(weight.data(), {*weight_per_group ? group : c.n}));
  }
  const Matrix original = x;
  a.group = c.group;
  a.eps = 1e-5f;
  a.activation = sigmoid ? Activation::kSigmoid : Activation::kSilu;
  a.gate_first = gate_first;
  a.normalize = normalize;
  a.out = mirror.Activation(in_place ? x.view() : out.view());
  GatedRmsNorm(a, mirror.stream());
  mirror.Fetch();
  const Matrix& got = in_place ? x : out;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t g = 0; g < c.n; g += group) {
      std::vector<double> v(group), act(group, 1.0);
      for (int64_t i = 0; i < group; ++i) {
        v[i] = original.at(r, g + i);
        const double z = gate.at(r, g + i);
        if (with_gate) act[i] = sigmoid ? Sigmoid(z) : z * Sigmoid(z);
        if (with_gate && gate_first) v[i] *= act[i];
      }
      const double rms = normalize ? Rms(v, 1e-5f) : 1.0;
      for (int64_t i = 0; i < group; ++i) {
        double want = v[i] / rms;
        if (with_gate && !gate_first) want *= act[i];
        if (normalize && weight_per_group) {
          const bool per_group = *weight_per_group || group == c.n;
          want *= weight[per_group ? i : g + i];
        }
        ASSERT_NEAR(got.at(r, g + i), want, (Tolerance(group) + Rounding()) * std::abs(want))
            << r << " " << g + i;
      }
    }
  }
  got.ExpectGapsUntouched();
}

TEST_P(Norm, GatedRmsInEveryCombination) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    SCOPED_TRACE(SimdLevelName(level));
    for (const Case& c : kCases) {
      for (int bits = 0; bits < 32; ++bits) {
        if (c.n > 2000 && bits % 3 != 0) continue;  // some of them are enough
        for (std::optional<bool> weight :
             {std::optional<bool>(), std::optional<bool>(true), std::optional<bool>(false)}) {
          CheckGated(c, bits & 1, bits & 2, bits & 4, bits & 8, weight, bits & 16);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Norm, RmsIsGatedRmsWithoutGate) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (const Case& c : kCases) {
      Matrix x = Matrix::Random(c.rows, c.n, 4), out = Matrix::Poisoned(c.rows, c.n);
      std::vector<float> weight = RandomFloats(c.n, 5);
      const int64_t group = c.group ? c.group : c.n;
      Threads threads(2);
      DeviceMirror mirror = Mirror(threads);
      RmsNormArgs a{mirror.Activation(x.view()), mirror.Plain(TensorView(weight.data(), {group})),
                    c.group, 1e-6f, mirror.Activation(out.view())};
      RmsNorm(a, mirror.stream());
      mirror.Fetch();
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t g = 0; g < c.n; g += group) {
          std::vector<double> v(group);
          for (int64_t i = 0; i < group; ++i) v[i] = x.at(r, g + i);
          const double rms = Rms(v, 1e-6f);
          for (int64_t i = 0; i < group; ++i) {
            const double want = v[i] / rms * weight[i];
            ASSERT_NEAR(out.at(r, g + i), want, (Tolerance(group) + Rounding()) * std::abs(want));
          }
        }
      }
      out.ExpectGapsUntouched();
    }
  }
}

TEST_P(Norm, LayerNorm) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (const Case& c : kCases) {
      for (bool with_weights : {false, true}) {
        Matrix x = Matrix::Random(c.rows, c.n, 6), out = Matrix::Poisoned(c.rows, c.n);
        std::vector<float> weight = RandomFloats(c.n, 7), bias = RandomFloats(c.n, 8);
        Threads threads(2);
        DeviceMirror mirror = Mirror(threads);
        LayerNormArgs a;
        a.x = mirror.Plain(x.view());  // the residual stream
        if (with_weights) {
          a.weight = mirror.Plain(TensorView(weight.data(), {c.n}));
          a.bias = mirror.Plain(TensorView(bias.data(), {c.n}));
        }
        a.eps = 1e-5f;
        a.out = mirror.Activation(out.view());
        LayerNorm(a, mirror.stream());
        mirror.Fetch();
        for (int64_t r = 0; r < c.rows; ++r) {
          double mean = 0, var = 0, largest = 0;
          for (int64_t i = 0; i < c.n; ++i) mean += x.at(r, i);
          mean /= static_cast<double>(c.n);
          for (int64_t i = 0; i < c.n; ++i) {
            var += (x.at(r, i) - mean) * (x.at(r, i) - mean);
            largest = std::max(largest, std::abs(double{x.at(r, i)}));
          }
          const double inv = 1 / std::sqrt(var / static_cast<double>(c.n) + double{1e-5f});
          for (int64_t i = 0; i < c.n; ++i) {
            const double w = with_weights ? weight[i] : 1.0, b = with_weights ? bias[i] : 0.0;
            const double normed = (x.at(r, i) - mean) * inv;
            // as for rms; and the mean errs likewise, in units of the largest element
            const double error = Tolerance(c.n) * (std::abs(normed) + largest * inv) * std::abs(w);
            ASSERT_NEAR(out.at(r, i), normed * w + b,
                        error + 2 * kEps * std::abs(b) + Rounding() * std::abs(normed * w + b));
          }
        }
        out.ExpectGapsUntouched();
      }
    }
  }
}

TEST_P(Norm, AddRms) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (const Case& c : kCases) {
      for (bool with_delta : {false, true}) {
        Matrix h = Matrix::Random(c.rows, c.n, 9), delta = Matrix::Random(c.rows, c.n, 10);
        const Matrix before = h;
        Matrix out = Matrix::Poisoned(c.rows, c.n);
        std::vector<float> weight = RandomFloats(c.n, 11);
        Threads threads(2);
        DeviceMirror mirror = Mirror(threads);
        AddRmsNormArgs a;
        a.h = mirror.Plain(h.view());
        if (with_delta) a.delta = mirror.Activation(delta.view());
        a.scale = 0.7f;
        a.weight = mirror.Plain(TensorView(weight.data(), {c.n}));
        a.out = mirror.Activation(out.view());
        AddRmsNorm(a, mirror.stream());
        mirror.Fetch();
        for (int64_t r = 0; r < c.rows; ++r) {
          std::vector<double> v(c.n);
          for (int64_t i = 0; i < c.n; ++i) {
            const double old = before.at(r, i),
                         d = with_delta ? double{0.7f} * delta.at(r, i) : 0.0;
            ASSERT_NEAR(h.at(r, i), old + d, 2 * kEps * (std::abs(old) + std::abs(d)));
            v[i] = h.at(r, i);
          }
          const double rms = Rms(v, 1e-6f);
          for (int64_t i = 0; i < c.n; ++i) {
            const double want = v[i] / rms * weight[i];
            ASSERT_NEAR(out.at(r, i), want, (Tolerance(c.n) + Rounding()) * std::abs(want));
          }
        }
        h.ExpectGapsUntouched();
        out.ExpectGapsUntouched();
      }
    }
  }
}

TEST_P(Norm, L2) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (const Case& c : kCases) {
      Matrix x = Matrix::Random(c.rows, c.n, 12), out = Matrix::Poisoned(c.rows, c.n);
      const int64_t group = c.group ? c.group : c.n;
      Threads threads(2);
      DeviceMirror mirror = Mirror(threads);
      L2Norm({mirror.Activation(x.view()), c.group, 1e-6f, 0.25f, mirror.Activation(out.view())},
             mirror.stream());
      mirror.Fetch();
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t g = 0; g < c.n; g += group) {
          double sum = 0;
          for (int64_t i = 0; i < group; ++i) sum += double{x.at(r, g + i)} * x.at(r, g + i);
          for (int64_t i = 0; i < group; ++i) {
            const double want = x.at(r, g + i) / std::sqrt(sum + double{1e-6f}) * 0.25;
            ASSERT_NEAR(out.at(r, g + i), want, (Tolerance(group) + Rounding()) * std::abs(want));
          }
        }
      }
      out.ExpectGapsUntouched();
    }
  }
}

TEST_P(Norm, ZerosStayZeroAndEpsKeepsThemFinite) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    Matrix x(2, 20, std::vector<float>(40, 0.0f)), out = Matrix::Poisoned(2, 20);
    Threads threads(1);
    DeviceMirror mirror = Mirror(threads);
    const TensorView in = mirror.Activation(x.view()), to = mirror.Activation(out.view());
    L2Norm({in, 10, 1e-6f, 1.0f, to}, mirror.stream());
    mirror.Fetch();
    for (int64_t i = 0; i < 20; ++i) ASSERT_EQ(out.at(1, i), 0.0f);
    RmsNorm({in, TensorView(), 0, 1e-6f, to}, mirror.stream());
    mirror.Fetch();
    for (int64_t i = 0; i < 20; ++i) ASSERT_EQ(out.at(1, i), 0.0f);
  }
}

TEST_P(Norm, RowsDoNotDependOnTheirBatchNorOnThreads) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    const int64_t rows = 600, n = 77;
    Matrix x = Matrix::Random(rows, n, 13), gate = Matrix::Random(rows, n, 14);
    Matrix together = Matrix::Poisoned(rows, n), apart = Matrix::Poisoned(rows, n);
    GatedRmsNormArgs a;
    Threads three(3), one(1);
    DeviceMirror mirror = Mirror(three);
    a.x = mirror.Activation(x.view());
    a.gate = mirror.Activation(gate.view());
    a.out = mirror.Activation(together.view());
    const TensorView alone = mirror.Activation(apart.view());
    GatedRmsNorm(a, mirror.stream());
    Stream stream = mirror.stream();
    if (stream.device == Device::kCpu) stream = one.stream();
    for (int64_t r = 0; r < rows; ++r) {
      GatedRmsNormArgs b = a;
      b.x = a.x.Rows(r, 1);
      b.gate = a.gate.Rows(r, 1);
      b.out = alone.Rows(r, 1);
      GatedRmsNorm(b, stream);
    }
    mirror.Fetch();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(together.at(r, i), apart.at(r, i));
    }
  }
}

TEST(NormContract, GroupMustDivide) {
  Matrix x = Matrix::Random(1, 10, 15);
  Threads threads(1);
  EXPECT_DEATH(L2Norm({x.view(), 3, 1e-6f, 1.0f, x.view()}, threads.stream()), "group 3 of 10");
}

}  // namespace
}  // namespace weir::kernels
