#include "kernels/pointwise.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/dense_test_support.h"

namespace weir::kernels {
namespace {

using testing::AtLevel;
using testing::kEps;
using testing::kPoison;
using testing::MachineLevels;
using testing::RandomFloats;
using testing::SameBits;
using testing::Threads;

constexpr float kInf = std::numeric_limits<float>::infinity();

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// Every magnitude and sign, dense where the functions bend.
std::vector<float> Grid() {
  std::vector<float> x = {0.0f, -0.0f};
  for (int i = -40000; i <= 40000; ++i) x.push_back(static_cast<float>(i) * 0.0005f);
  for (int i = -11000; i <= 11000; ++i) x.push_back(static_cast<float>(i) * 0.01003f);
  for (double m = 1e-37; m < 3e38; m *= 1.07) {
    x.push_back(static_cast<float>(m));
    x.push_back(static_cast<float>(-m));
  }
  return x;
}

// Largest error of got against want in units of the last place (a relative 2^-23). Below the
// smallest normal number the unit stays that of the smallest normal number, times |x| where a
// function is x times something that small.
double LargestUlps(const std::vector<float>& x, const std::vector<float>& got,
                   const std::function<double(double)>& want, std::string* where) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double w = want(x[i]);
    if (std::abs(w) > std::numeric_limits<float>::max()) continue;  // overflow is tested apart
    const double least = std::numeric_limits<float>::min() * std::max(1.0, std::abs(double{x[i]}));
    const double unit = std::max(std::abs(w), least) * 0x1p-23;
    double ulps = std::abs(got[i] - w) / unit;
    if (std::isnan(ulps)) ulps = 1e30;
    if (ulps > worst) {
      worst = ulps;
      *where = "x = " + std::to_string(x[i]) + " gives " + std::to_string(got[i]);
    }
  }
  return worst;
}

struct Function {
  std::string name;
  std::function<void(TensorView x, TensorView out, Stream)> run;
  std::function<double(double)> want;
  double ulps;
};

LogDecayArgs Gate(LogDecayArgs::Form form, TensorView x, TensorView out) {
  LogDecayArgs a{};
  a.form = form;
  a.x = x;
  a.out = out;
  return a;
}

// A function of a few rounded steps errs by about half a unit per step; gelu's tail multiplies the
// error of its exponent, which is taken in two parts.
std::vector<Function> Functions() {
  const auto act = [](Activation activation) {
    return
        [activation](TensorView x, TensorView out, Stream s) { Activate(x, activation, out, s); };
  };
  static float one = 1.0f;
  return {
      {"none", act(Activation::kNone), [](double x) { return x; }, 0},
      {"sigmoid", act(Activation::kSigmoid), Sigmoid, 2.5},
      {"silu", act(Activation::kSilu), [](double x) { return x * Sigmoid(x); }, 3},
      {"gelu", act(Activation::kGelu),
       [](double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }, 8},
      {"relu", act(Activation::kRelu), [](double x) { return std::max(x, 0.0); }, 0},
      {"relu2", act(Activation::kRelu2),
       [](double x) { return std::max(x, 0.0) * std::max(x, 0.0); }, 0.5},
      {"beta", [](TensorView x, TensorView out, Stream s) { Beta(x, 2.0f, out, s); },
       [](double x) { return 2 * Sigmoid(x); }, 2.5},
      {"elu_plus_one",
       [](TensorView x, TensorView out, Stream s) {
         GatherRows(x, TensorView(std::vector<int32_t>{0}.data(), {1}), out, s);
         EluPlusOne(out, s);
       },
       [](double x) { return x > 0 ? x + 1 : std::exp(x); }, 1.5},
      {"softplus_decay",
       [](TensorView x, TensorView out, Stream s) {
         LogDecayArgs a = Gate(LogDecayArgs::Form::kSoftplus, x, out);
         a.exp_a = TensorView(&one, {1});
         LogDecay(a, s);
       },
       [](double x) { return -Softplus(x); }, 3},
      {"logsigmoid_decay",
       [](TensorView x, TensorView out, Stream s) {
         LogDecayArgs a = Gate(LogDecayArgs::Form::kLogSigmoid, x, out);
         a.normalizer = 16.0f;
         LogDecay(a, s);
       },
       [](double x) { return -Softplus(-x) / 16; }, 3},
      {"bounded_decay",
       [](TensorView x, TensorView out, Stream s) {
         LogDecayArgs a = Gate(LogDecayArgs::Form::kBoundedSigmoid, x, out);
         a.exp_a = TensorView(&one, {1});
         a.lower_bound = -5.0f;
         LogDecay(a, s);
       },
       [](double x) { return -5 * Sigmoid(x); }, 3},
  };
}

TEST(Elementary, AFewUnitsInTheLastPlaceOverTheWholeRange) {
  const std::vector<float> x = Grid();
  Threads threads(1);
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (const Function& f : Functions()) {
      std::vector<float> in = x, out(x.size(), kPoison);
      const int64_t n = static_cast<int64_t>(x.size());
      f.run(TensorView(in.data(), {1, n}), TensorView(out.data(), {1, n}), threads.stream());
      std::string where;
      const double worst = LargestUlps(x, out, f.want, &where);
      EXPECT_LE(worst, f.ulps) << f.name << " at " << SimdLevelName(level) << ": " << where;
      RecordProperty(f.name + "_ulps_" + SimdLevelName(level), std::to_string(worst));
      EXPECT_TRUE(SameBits(in, x)) << f.name << " changed its input";
    }
  }
}

// tanh(u) in the published form cancels for negative x: the tolerance is absolute, in units of x.
TEST(Elementary, GeluTanh) {
  const std::vector<float> x = Grid();
  Threads threads(1);
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    std::vector<float> in = x, out(x.size(), kPoison);
    const int64_t n = static_cast<int64_t>(x.size());
    Activate(TensorView(in.data(), {1, n}), Activation::kGeluTanh, TensorView(out.data(), {1, n}),
             threads.stream());
    for (size_t i = 0; i < x.size(); ++i) {
      const double u = std::sqrt(2 / M_PI) * (x[i] + 0.044715 * std::pow(double{x[i]}, 3));
      const double want = 0.5 * x[i] * (1 + std::tanh(u));
      ASSERT_NEAR(out[i], want, 4 * kEps * std::abs(x[i])) << x[i];
    }
  }
}

TEST(Elementary, Extremes) {
  Threads threads(1);
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    const auto apply = [&](const std::string& name, float x) {
      float out = kPoison;
      for (const Function& f : Functions()) {
        if (f.name == name)
          f.run(TensorView(&x, {1, 1}), TensorView(&out, {1, 1}), threads.stream());
      }
      return out;
    };
    EXPECT_EQ(apply("sigmoid", kInf), 1.0f);
    EXPECT_EQ(apply("sigmoid", -kInf), 0.0f);
    EXPECT_EQ(apply("silu", 1e30f), 1e30f);
    EXPECT_EQ(apply("silu", -1e30f), 0.0f);
    EXPECT_EQ(apply("softplus_decay", kInf), -kInf);
    EXPECT_EQ(apply("softplus_decay", -kInf), 0.0f);
    EXPECT_EQ(apply("logsigmoid_decay", -1e30f), -1e30f / 16);
    EXPECT_EQ(apply("elu_plus_one", -kInf), 0.0f);
    for (const char* name : {"sigmoid", "silu", "gelu", "softplus_decay", "bounded_decay"}) {
      EXPECT_TRUE(std::isnan(apply(name, kPoison))) << name;
    }
  }
}

// A matrix inside a wider buffer whose other elements must stay as they are.
struct Strided {
  Strided(int64_t rows, int64_t n, uint64_t seed) : rows(rows), n(n), stride(n + 5) {
    data = RandomFloats(rows * stride, seed, 3.0f);
    original = data;
  }
  static Strided Poisoned(int64_t rows, int64_t n) {
    Strided m(rows, n, 1);
    m.data.assign(m.data.size(), kPoison);
    m.original = m.data;
    return m;
  }
  TensorView view() { return TensorView(data.data(), {rows, stride}).Columns(2, n); }
  TensorView view(int64_t heads) { return view().Reshape({rows, heads, n / heads}); }
  float at(int64_t r, int64_t i) const { return data[r * stride + 2 + i]; }
  void ExpectGapsUntouched() const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < stride; ++i) {
        if (i >= 2 && i < 2 + n) continue;
        const float now = data[r * stride + i], then = original[r * stride + i];
        ASSERT_TRUE(std::isnan(then) ? std::isnan(now) : now == then) << r << " " << i;
      }
    }
  }
  int64_t rows, n, stride;
  std::vector<float> data, original;
};

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{0, 8},  {1, 1},   {1, 7},   {3, 16},
                                                          {2, 17}, {5, 100}, {3, 515}, {600, 64}};

TEST(Pointwise, GateMultiplyMultiplyAndAddScaled) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (auto [rows, n] : kShapes) {
      Threads threads(3);
      Strided a(rows, n, 2), b(rows, n, 3);
      Strided gated = Strided::Poisoned(rows, n), product = Strided::Poisoned(rows, n);
      Strided sum(rows, n, 4);
      GateMultiply(a.view(), b.view(), Activation::kSilu, gated.view(), threads.stream());
      Multiply(a.view(), b.view(), product.view(), threads.stream());
      AddScaled(sum.view(), a.view(), 0.3f, threads.stream());
      Strided in_place(rows, n, 2);
      GateMultiply(in_place.view(), b.view(), Activation::kSilu, in_place.view(), threads.stream());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          const double x = a.at(r, i), y = b.at(r, i), s = sum.original[r * sum.stride + 2 + i];
          // silu to 3 units, one product on top
          ASSERT_NEAR(gated.at(r, i), x * Sigmoid(x) * y, 8 * kEps * std::abs(x * y));
          ASSERT_EQ(in_place.at(r, i), gated.at(r, i));
          ASSERT_EQ(product.at(r, i), a.at(r, i) * b.at(r, i));
          ASSERT_NEAR(sum.at(r, i), s + double{0.3f} * x, 2 * kEps * (std::abs(s) + std::abs(x)));
        }
      }
      gated.ExpectGapsUntouched();
      product.ExpectGapsUntouched();
      sum.ExpectGapsUntouched();
    }
  }
}

TEST(Pointwise, ScatterAndGather) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    Threads threads(2);
    const int64_t n = 37;
    Strided h(6, n, 5), delta(3, n, 6), gathered = Strided::Poisoned(3, n);
    std::vector<int32_t> rows = {4, 0, 2};
    std::vector<float> weight = {0.5f, -2.0f, 0.0f};
    ScatterAddScaled(h.view(), delta.view(), TensorView(rows.data(), {3}),
                     TensorView(weight.data(), {3}), threads.stream());
    GatherRows(h.view(), TensorView(rows.data(), {3}), gathered.view(), threads.stream());
    Strided before(6, n, 5);
    for (int64_t r = 0; r < 6; ++r) {
      const auto hit = std::find(rows.begin(), rows.end(), r) - rows.begin();
      for (int64_t i = 0; i < n; ++i) {
        const double old = before.at(r, i);
        const double add = hit < 3 ? double{weight[hit]} * delta.at(hit, i) : 0.0;
        ASSERT_NEAR(h.at(r, i), old + add, 2 * kEps * (std::abs(old) + std::abs(add)));
        if (hit < 3) {
          ASSERT_EQ(gathered.at(hit, i), h.at(r, i));
        }
      }
    }
    h.ExpectGapsUntouched();
    gathered.ExpectGapsUntouched();
    rows[1] = 6;
    EXPECT_DEATH(
        GatherRows(h.view(), TensorView(rows.data(), {3}), gathered.view(), threads.stream()),
        "row 6");
  }
}

TEST(Pointwise, EmbeddingLookupOfBothTypes) {
  const int64_t vocab = 9, n = 21;
  std::vector<float> table = RandomFloats(vocab * n, 7);
  std::vector<BFloat16> small(table.size());
  for (size_t i = 0; i < table.size(); ++i) small[i] = ToBFloat16(table[i]);
  std::vector<int32_t> ids = {8, 0, 3, 3};
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    Threads threads(2);
    Strided full = Strided::Poisoned(4, n), half = Strided::Poisoned(4, n);
    EmbeddingLookup(TensorView(table.data(), {vocab, n}), TensorView(ids.data(), {4}), 1.5f,
                    full.view(), threads.stream());
    EmbeddingLookup(TensorView(small.data(), {vocab, n}), TensorView(ids.data(), {4}), 1.5f,
                    half.view(), threads.stream());
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(full.at(r, i), table[ids[r] * n + i] * 1.5f);
        ASSERT_EQ(half.at(r, i), ToFloat(small[ids[r] * n + i]) * 1.5f);
      }
    }
    full.ExpectGapsUntouched();
    half.ExpectGapsUntouched();
  }
}

TEST(Pointwise, LogDecayOfEachFormWithBiasHeadsAndClamp) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (auto [heads, per] : {std::pair<int64_t, int64_t>{5, 1}, {16, 1}, {3, 20}, {2, 128}}) {
      const int64_t n = heads * per, rows = 7;
      std::vector<float> bias = RandomFloats(n, 8), exp_a = RandomFloats(heads, 9);
      for (float& a : exp_a) a = std::exp(a);
      for (auto form : {LogDecayArgs::Form::kSoftplus, LogDecayArgs::Form::kLogSigmoid,
                        LogDecayArgs::Form::kBoundedSigmoid}) {
        Threads threads(2);
        Strided x(rows, n, 10), out = Strided::Poisoned(rows, n);
        LogDecayArgs a = Gate(form, x.view(), out.view());
        a.bias = TensorView(bias.data(), {n});
        a.exp_a = TensorView(exp_a.data(), {heads});
        a.normalizer = 8.0f;
        a.has_clamp = true;
        a.clamp_min = -0.2f;
        a.lower_bound = -4.0f;
        LogDecay(a, threads.stream());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t i = 0; i < n; ++i) {
            const double z = double{x.at(r, i)} + bias[i], e = exp_a[i / per];
            double want = -e * Softplus(z), slope = e;
            if (form == LogDecayArgs::Form::kLogSigmoid) {
              want = std::max(-Softplus(-z) / 8, -double{0.2f});
              slope = 1.0 / 8;
            } else if (form == LogDecayArgs::Form::kBoundedSigmoid) {
              want = -4 * Sigmoid(e * z);
              slope = 2 * e;  // twice: e z is rounded too
            }
            // 3 units of the result, and the rounding of x + bias through a slope of at most 1
            const double input = std::abs(x.at(r, i)) + std::abs(bias[i]);
            ASSERT_NEAR(out.at(r, i), want, 6 * kEps * std::abs(want) + 2 * kEps * slope * input);
          }
        }
        out.ExpectGapsUntouched();
      }
    }
  }
}

TEST(Pointwise, Mamba2StepSizesAndSkip) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (auto [heads, P] : {std::pair<int64_t, int64_t>{1, 1}, {5, 12}, {32, 64}}) {
      for (auto [lo, hi] : {std::pair{0.0f, 0.0f}, {0.2f, 1.5f}}) {
        const int64_t rows = 6;
        Threads threads(3);
        std::vector<float> bias = RandomFloats(heads, 11), exp_a = RandomFloats(heads, 12);
        for (float& a : exp_a) a = std::exp(a);
        Strided x(rows, heads, 13), xs(rows, heads * P, 14);
        Strided g = Strided::Poisoned(rows, heads), v = Strided::Poisoned(rows, heads * P);
        Mamba2DtArgs a;
        a.x = x.view();
        a.bias = TensorView(bias.data(), {heads});
        a.exp_a = TensorView(exp_a.data(), {heads});
        a.lo = lo;
        a.hi = hi;
        a.xs = xs.view(heads);
        a.g = g.view();
        a.v = v.view(heads);
        Mamba2Dt(a, threads.stream());
        Strided skipped(rows, heads * P, 15);
        const Strided before = skipped;
        AddSkip(xs.view(heads), TensorView(bias.data(), {heads}), skipped.view(heads),
                threads.stream());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t i = 0; i < heads * P; ++i) {
            const int64_t h = i / P;
            double dt = std::max(Softplus(double{x.at(r, h)} + bias[h]), double{lo});
            if (hi > lo) dt = std::min(dt, double{hi});
            // as LogDecay: 3 units, and the rounding of the sum
            const double error =
                6 * kEps * dt + 2 * kEps * (std::abs(x.at(r, h)) + std::abs(bias[h]));
            ASSERT_NEAR(g.at(r, h), -exp_a[h] * dt, exp_a[h] * (error + 2 * kEps * dt));
            ASSERT_NEAR(v.at(r, i), dt * xs.at(r, i),
                        std::abs(xs.at(r, i)) * (error + 2 * kEps * dt));
            const double old = before.at(r, i), add = double{bias[h]} * xs.at(r, i);
            ASSERT_NEAR(skipped.at(r, i), old + add, 2 * kEps * (std::abs(old) + std::abs(add)));
          }
        }
        g.ExpectGapsUntouched();
        v.ExpectGapsUntouched();
        skipped.ExpectGapsUntouched();
      }
    }
  }
}

TEST(Pointwise, DivideBySum) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (int64_t K : {1, 5, 16, 37, 128}) {
      const int64_t rows = 9, heads = 3;
      Threads threads(2);
      Strided x(rows, heads * K, 16);
      for (float& f : x.data) f = std::abs(f);
      x.original = x.data;
      const Strided before = x;
      DivideBySum(x.view(heads), 1e-4f, threads.stream());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < heads; ++h) {
          double sum = 0;
          for (int64_t c = 0; c < K; ++c) sum += before.at(r, h * K + c);
          for (int64_t c = 0; c < K; ++c) {
            const double want = before.at(r, h * K + c) / (sum + double{1e-4f});
            // positive terms: the sum errs by at most K roundings, each of at most eps of it
            ASSERT_NEAR(x.at(r, h * K + c), want, (K + 3) * kEps * want);
          }
        }
      }
      x.ExpectGapsUntouched();
    }
  }
}

// A row's result is the same whatever rows stand around it and however many threads work.
TEST(Pointwise, RowsDoNotDependOnEachOther) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    const int64_t rows = 900, n = 51;
    Strided x(rows, n, 17);
    Strided all = Strided::Poisoned(rows, n);
    Threads three(3), one(1);
    Activate(x.view(), Activation::kGelu, all.view(), three.stream());
    Strided alone = Strided::Poisoned(rows, n);
    for (int64_t r = 0; r < rows; ++r) {
      Activate(x.view().Rows(r, 1), Activation::kGelu, alone.view().Rows(r, 1), one.stream());
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(all.at(r, i), alone.at(r, i));
    }
  }
}

}  // namespace
}  // namespace weir::kernels
