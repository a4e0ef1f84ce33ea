#include "kernels/pointwise.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
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
using testing::RoundTo;
using testing::SameBits;
using testing::Target;
using testing::Threads;

constexpr float kInf = std::numeric_limits<float>::infinity();

// Every test runs on the CPU at each level of this machine, and on the GPU.
class OnTargets : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (GetParam().device == Device::kCuda) WEIR_NEEDS_GPU();
  }
  static bool Gpu() { return GetParam().device == Device::kCuda; }
  static bool Bf16() { return Gpu() && GetParam().activations == DType::kBF16; }
  static std::vector<SimdLevel> Levels() {
    const std::vector<SimdLevel> all = MachineLevels();
    return Gpu() ? std::vector<SimdLevel>{all.back()} : all;
  }
  static DeviceMirror Mirror(Threads& threads) {
    return DeviceMirror(GetParam().device, GetParam().activations, threads.stream().pool);
  }
  // What the last rounding, to the activations' type, adds to an error of a few roundings of f32.
  static double Rounding() { return Gpu() ? ActivationEps(GetParam()) : 0.0; }
  static float Rounded(float x) { return Bf16() ? RoundTo(DType::kBF16, x) : x; }
};
class Elementary : public OnTargets {};
class Pointwise : public OnTargets {};
INSTANTIATE_TEST_SUITE_P(, Elementary, ::testing::ValuesIn(testing::Targets()),
                         [](const auto& info) { return info.param.name(); });
INSTANTIATE_TEST_SUITE_P(, Pointwise, ::testing::ValuesIn(testing::Targets()),
                         [](const auto& info) { return info.param.name(); });

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
// function is x times something that small. `scale` raises that floor where less is asked for.
double LargestUlps(const std::vector<float>& x, const std::vector<float>& got,
                   const std::function<double(double)>& want, double scale, std::string* where) {
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double w = want(x[i]);
    if (std::abs(w) > 3.38e38) continue;  // overflow is tested apart
    const double least =
        scale * std::numeric_limits<float>::min() * std::max(1.0, std::abs(double{x[i]}));
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
  std::function<void(TensorView x, TensorView out, DeviceMirror&)> run;
  std::function<double(double)> want;
  double ulps;
  bool f32_out = false;  // whatever the activations are
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
    return [activation](TensorView x, TensorView out, DeviceMirror& m) {
      Activate(x, activation, out, m.stream());
    };
  };
  static float one = 1.0f;
  static int32_t zero = 0;
  return {
      {"none", act(Activation::kNone), [](double x) { return x; }, 0},
      {"sigmoid", act(Activation::kSigmoid), Sigmoid, 2.5},
      {"silu", act(Activation::kSilu), [](double x) { return x * Sigmoid(x); }, 3},
      {"gelu", act(Activation::kGelu),
       [](double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }, 8},
      {"relu", act(Activation::kRelu), [](double x) { return std::max(x, 0.0); }, 0},
      {"relu2", act(Activation::kRelu2),
       [](double x) { return std::max(x, 0.0) * std::max(x, 0.0); }, 0.5},
      {"beta",
       [](TensorView x, TensorView out, DeviceMirror& m) { Beta(x, 2.0f, out, m.stream()); },
       [](double x) { return 2 * Sigmoid(x); }, 2.5, true},
      {"elu_plus_one",
       [](TensorView x, TensorView out, DeviceMirror& m) {
         GatherRows(x, m.Plain(TensorView(&zero, {1})), out, m.stream());
         EluPlusOne(out, m.stream());
       },
       [](double x) { return x > 0 ? x + 1 : std::exp(x); }, 1.5},
      {"softplus_decay",
       [](TensorView x, TensorView out, DeviceMirror& m) {
         LogDecayArgs a = Gate(LogDecayArgs::Form::kSoftplus, x, out);
         a.exp_a = m.Plain(TensorView(&one, {1}));
         LogDecay(a, m.stream());
       },
       [](double x) { return -Softplus(x); }, 3, true},
      {"logsigmoid_decay",
       [](TensorView x, TensorView out, DeviceMirror& m) {
         LogDecayArgs a = Gate(LogDecayArgs::Form::kLogSigmoid, x, out);
         a.normalizer = 16.0f;
         LogDecay(a, m.stream());
       },
       [](double x) { return -Softplus(-x) / 16; }, 3, true},
      {"bounded_decay",
       [](TensorView x, TensorView out, DeviceMirror& m) {
         LogDecayArgs a = Gate(LogDecayArgs::Form::kBoundedSigmoid, x, out);
         a.exp_a = m.Plain(TensorView(&one, {1}));
         a.lower_bound = -5.0f;
         LogDecay(a, m.stream());
       },
       [](double x) { return -5 * Sigmoid(x); }, 3, true},
  };
}

TEST_P(Elementary, AFewUnitsInTheLastPlaceOverTheWholeRange) {
  const std::vector<float> grid = Grid();
  Threads threads(1);
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (const Function& f : Functions()) {
      std::vector<float> in = grid, out(grid.size(), kPoison);
      const int64_t n = static_cast<int64_t>(grid.size());
      DeviceMirror mirror = Mirror(threads);
      const TensorView view = mirror.Activation(TensorView(in.data(), {1, n}));
      const std::vector<float> x = in;  // rounded, where activations are
      const TensorView out_view(out.data(), {1, n});
      f.run(view, f.f32_out ? mirror.Plain(out_view) : mirror.Activation(out_view), mirror);
      mirror.Fetch();
      double limit = f.ulps, floor = 1;
      // Only the CPU follows gelu's tail closely: a rounding of erfc's argument z counts 2 z^2
      // times.
      if (Gpu() && f.name == "gelu") limit = 200;
      if (Bf16() && !f.f32_out && f.ulps > 0) {
        limit = 0x1p15 * 1.02;  // half a unit of a bf16, and the fast exponential
        floor = 2048;           // and nobody minds 1e-35
      }
      std::string where;
      const double worst = LargestUlps(x, out, f.want, floor, &where);
      EXPECT_LE(worst, limit) << f.name << " at " << SimdLevelName(level) << ": " << where;
      RecordProperty(f.name + "_ulps_" + SimdLevelName(level), std::to_string(worst));
      EXPECT_TRUE(SameBits(in, x)) << f.name << " changed its input";
    }
  }
}

// tanh(u) in the published form cancels for negative x: the tolerance is absolute, in units of x.
TEST_P(Elementary, GeluTanh) {
  const std::vector<float> grid = Grid();
  Threads threads(1);
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    std::vector<float> x = grid, out(grid.size(), kPoison);
    const int64_t n = static_cast<int64_t>(x.size());
    DeviceMirror mirror = Mirror(threads);
    Activate(mirror.Activation(TensorView(x.data(), {1, n})), Activation::kGeluTanh,
             mirror.Activation(TensorView(out.data(), {1, n})), mirror.stream());
    mirror.Fetch();
    for (size_t i = 0; i < x.size(); ++i) {
      const double u = std::sqrt(2 / M_PI) * (x[i] + 0.044715 * std::pow(double{x[i]}, 3));
      const double want = 0.5 * x[i] * (1 + std::tanh(u));
      ASSERT_NEAR(out[i], want, 4 * kEps * std::abs(x[i]) + Rounding() * std::abs(want)) << x[i];
    }
  }
}

TEST_P(Elementary, Extremes) {
  Threads threads(1);
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    const auto apply = [&](const std::string& name, float x) {
      float out = kPoison;
      for (const Function& f : Functions()) {
        if (f.name != name) continue;
        DeviceMirror mirror = Mirror(threads);
        const TensorView to(&out, {1, 1});
        f.run(mirror.Activation(TensorView(&x, {1, 1})),
              f.f32_out ? mirror.Plain(to) : mirror.Activation(to), mirror);
        mirror.Fetch();
      }
      return out;
    };
    EXPECT_EQ(apply("sigmoid", kInf), 1.0f);
    EXPECT_EQ(apply("sigmoid", -kInf), 0.0f);
    EXPECT_EQ(apply("silu", 1e30f), Rounded(1e30f));
    EXPECT_EQ(apply("silu", -1e30f), 0.0f);
    EXPECT_EQ(apply("softplus_decay", kInf), -kInf);
    EXPECT_EQ(apply("softplus_decay", -kInf), 0.0f);
    EXPECT_EQ(apply("logsigmoid_decay", -1e30f), -Rounded(1e30f) / 16);
    EXPECT_EQ(apply("elu_plus_one", -kInf), 0.0f);
    for (const char* name : {"sigmoid", "silu", "gelu", "softplus_decay", "bounded_decay"}) {
      EXPECT_TRUE(std::isnan(apply(name, kPoison))) << name;
    }
  }
}

// A matrix inside a wider buffer whose other elements must stay as they are. The gap keeps rows of
// whole vectors aligned.
struct Strided {
  Strided(int64_t rows, int64_t n, uint64_t seed)
      : rows(rows), n(n), stride(n + (n % 8 == 0 ? 8 : 5)) {
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
  // Takes what the mirror has rounded for the original.
  void Keep() { original = data; }
  int64_t rows, n, stride;
  std::vector<float> data, original;
};

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{0, 8},  {1, 1},   {1, 7},   {3, 16},
                                                          {2, 17}, {5, 100}, {3, 515}, {600, 64}};

TEST_P(Pointwise, GateMultiplyMultiplyAndAddScaled) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (auto [rows, n] : kShapes) {
      Threads threads(3);
      Strided a(rows, n, 2), b(rows, n, 3);
      Strided gated = Strided::Poisoned(rows, n), product = Strided::Poisoned(rows, n);
      Strided sum(rows, n, 4), in_place(rows, n, 2);
      DeviceMirror mirror = Mirror(threads);
      const TensorView left = mirror.Activation(a.view()), right = mirror.Activation(b.view());
      const TensorView both = mirror.Activation(in_place.view());
      GateMultiply(left, right, Activation::kSilu, mirror.Activation(gated.view()),
                   mirror.stream());
      Multiply(left, right, mirror.Activation(product.view()), mirror.stream());
      AddScaled(mirror.Plain(sum.view()), left, 0.3f, mirror.stream());
      GateMultiply(both, right, Activation::kSilu, both, mirror.stream());
      mirror.Fetch();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          const double x = a.at(r, i), y = b.at(r, i), s = sum.original[r * sum.stride + 2 + i];
          // silu to 3 units, one product on top
          ASSERT_NEAR(gated.at(r, i), x * Sigmoid(x) * y,
                      8 * kEps * std::abs(x * y) + 1.01 * Rounding() * std::abs(x * y));
          ASSERT_EQ(in_place.at(r, i), gated.at(r, i));
          ASSERT_EQ(product.at(r, i), Rounded(a.at(r, i) * b.at(r, i)));
          ASSERT_NEAR(sum.at(r, i), s + double{0.3f} * x, 2 * kEps * (std::abs(s) + std::abs(x)));
        }
      }
      gated.ExpectGapsUntouched();
      product.ExpectGapsUntouched();
      sum.ExpectGapsUntouched();
    }
  }
}

TEST_P(Pointwise, ScatterAndGather) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    Threads threads(2);
    const int64_t n = 37;
    Strided h(6, n, 5), delta(3, n, 6), gathered = Strided::Poisoned(3, n);
    std::vector<int32_t> rows = {4, 0, 2};
    std::vector<float> weight = {0.5f, -2.0f, 0.0f};
    DeviceMirror mirror = Mirror(threads);
    const TensorView on_device = mirror.Plain(TensorView(rows.data(), {3}));
    const TensorView changed = mirror.Plain(h.view());
    ScatterAddScaled(changed, mirror.Activation(delta.view()), on_device,
                     mirror.Plain(TensorView(weight.data(), {3})), mirror.stream());
    GatherRows(changed, on_device, mirror.Plain(gathered.view()), mirror.stream());
    Strided source(6, 24, 7), picked = Strided::Poisoned(3, 24);
    GatherRows(mirror.Activation(source.view()), on_device, mirror.Activation(picked.view()),
               mirror.stream());
    mirror.Fetch();
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t i = 0; i < 24; ++i) ASSERT_EQ(picked.at(r, i), source.at(rows[r], i));
    }
    picked.ExpectGapsUntouched();
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
    rows[1] = 6;  // on the GPU it cannot be told: a row of zeros
    if (Gpu()) continue;
    EXPECT_DEATH(
        GatherRows(h.view(), TensorView(rows.data(), {3}), gathered.view(), threads.stream()),
        "row 6");
  }
}

TEST_P(Pointwise, EmbeddingLookupOfBothTypes) {
  const int64_t vocab = 9, n = 21;
  std::vector<float> table = RandomFloats(vocab * n, 7);
  std::vector<BFloat16> small(table.size());
  for (size_t i = 0; i < table.size(); ++i) small[i] = ToBFloat16(table[i]);
  std::vector<int32_t> ids = {8, 0, -1, 3, 3};
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    Threads threads(2);
    Strided full = Strided::Poisoned(5, n), half = Strided::Poisoned(5, n);
    DeviceMirror mirror = Mirror(threads);
    const TensorView which = mirror.Plain(TensorView(ids.data(), {5}));
    EmbeddingLookup(mirror.Plain(TensorView(table.data(), {vocab, n})), which, 1.5f,
                    mirror.Plain(full.view()), mirror.stream());
    EmbeddingLookup(mirror.Plain(TensorView(small.data(), {vocab, n})), which, 1.5f,
                    mirror.Plain(half.view()), mirror.stream());
    mirror.Fetch();
    for (int64_t r = 0; r < 5; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = ids[r] * n + i;
        ASSERT_EQ(full.at(r, i), ids[r] < 0 ? 0.0f : table[at] * 1.5f);
        ASSERT_EQ(half.at(r, i), ids[r] < 0 ? 0.0f : ToFloat(small[at]) * 1.5f);
      }
    }
    full.ExpectGapsUntouched();
    half.ExpectGapsUntouched();
  }
}

// Ids come from the device, where nobody can look at them in time: a bad one reads nothing.
TEST_P(Pointwise, IdsOutOfRangeOnTheGpuGiveZeros) {
  if (!Gpu()) GTEST_SKIP() << "the CPU refuses them";
  Threads threads(1);
  std::vector<float> table = RandomFloats(3 * 16, 7);
  std::vector<int32_t> ids = {3, 1, 2147483647, -2147483647};
  Strided out = Strided::Poisoned(4, 16);
  DeviceMirror mirror = Mirror(threads);
  EmbeddingLookup(mirror.Plain(TensorView(table.data(), {3, 16})),
                  mirror.Plain(TensorView(ids.data(), {4})), 2.0f, mirror.Plain(out.view()),
                  mirror.stream());
  mirror.Fetch();
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t i = 0; i < 16; ++i) ASSERT_EQ(out.at(r, i), r == 1 ? table[16 + i] * 2 : 0.0f);
  }
}

TEST_P(Pointwise, LogDecayOfEachFormWithBiasHeadsAndClamp) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (auto [heads, per] : {std::pair<int64_t, int64_t>{5, 1}, {16, 1}, {3, 20}, {2, 128}}) {
      const int64_t n = heads * per, rows = 7;
      std::vector<float> bias = RandomFloats(n, 8), exp_a = RandomFloats(heads, 9);
      for (float& a : exp_a) a = std::exp(a);
      for (auto form : {LogDecayArgs::Form::kSoftplus, LogDecayArgs::Form::kLogSigmoid,
                        LogDecayArgs::Form::kBoundedSigmoid}) {
        Threads threads(2);
        Strided x(rows, n, 10), out = Strided::Poisoned(rows, n);
        DeviceMirror mirror = Mirror(threads);
        LogDecayArgs a = Gate(form, mirror.Activation(x.view()), mirror.Plain(out.view()));
        a.bias = mirror.Plain(TensorView(bias.data(), {n}));
        a.exp_a = mirror.Plain(TensorView(exp_a.data(), {heads}));
        a.normalizer = 8.0f;
        a.has_clamp = true;
        a.clamp_min = -0.2f;
        a.lower_bound = -4.0f;
        LogDecay(a, mirror.stream());
        mirror.Fetch();
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

TEST_P(Pointwise, Mamba2StepSizesAndSkip) {
  for (SimdLevel level : Levels()) {
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
        DeviceMirror mirror = Mirror(threads);
        a.x = mirror.Activation(x.view());
        a.bias = mirror.Plain(TensorView(bias.data(), {heads}));
        a.exp_a = mirror.Plain(TensorView(exp_a.data(), {heads}));
        a.lo = lo;
        a.hi = hi;
        a.xs = mirror.Activation(xs.view(heads));
        a.g = mirror.Plain(g.view());
        a.v = mirror.Activation(v.view(heads));
        Mamba2Dt(a, mirror.stream());
        Strided skipped(rows, heads * P, 15);
        const TensorView sum = mirror.Activation(skipped.view(heads));
        skipped.Keep();
        const Strided before = skipped;
        AddSkip(a.xs, a.bias, sum, mirror.stream());
        mirror.Fetch();
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
                        std::abs(xs.at(r, i)) * (error + (2 * kEps + Rounding()) * dt));
            const double old = before.at(r, i), add = double{bias[h]} * xs.at(r, i);
            ASSERT_NEAR(skipped.at(r, i), old + add,
                        (2 * kEps + Rounding()) * (std::abs(old) + std::abs(add)));
          }
        }
        g.ExpectGapsUntouched();
        v.ExpectGapsUntouched();
        skipped.ExpectGapsUntouched();
      }
    }
  }
}

TEST_P(Pointwise, DivideBySum) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    for (int64_t K : {1, 5, 16, 37, 128}) {
      const int64_t rows = 9, heads = 3;
      Threads threads(2);
      Strided x(rows, heads * K, 16);
      for (float& f : x.data) f = std::abs(f);
      DeviceMirror mirror = Mirror(threads);
      const TensorView view = mirror.Activation(x.view(heads));
      x.Keep();
      const Strided before = x;
      DivideBySum(view, 1e-4f, mirror.stream());
      mirror.Fetch();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t h = 0; h < heads; ++h) {
          double sum = 0;
          for (int64_t c = 0; c < K; ++c) sum += before.at(r, h * K + c);
          for (int64_t c = 0; c < K; ++c) {
            const double want = before.at(r, h * K + c) / (sum + double{1e-4f});
            // positive terms: the sum errs by at most K roundings, each of at most eps of it
            ASSERT_NEAR(x.at(r, h * K + c), want, ((K + 3) * kEps + Rounding()) * want);
          }
        }
      }
      x.ExpectGapsUntouched();
    }
  }
}

TEST_P(Pointwise, DivideByLast) {
  for (int64_t width : {1, 7, 64, 129}) {
    const int64_t rows = 5, heads = 3;
    Threads threads(2);
    Strided x(rows, heads * (width + 1), 18), out = Strided::Poisoned(rows, heads * width);
    for (float& f : x.data) f = std::abs(f);
    DeviceMirror mirror = Mirror(threads);
    DivideByLast(mirror.Activation(x.view(heads)), 1e-4f, mirror.Activation(out.view(heads)),
                 mirror.stream());
    mirror.Fetch();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        const double divisor = double{x.at(r, h * (width + 1) + width)} + double{1e-4f};
        for (int64_t i = 0; i < width; ++i) {
          const double want = x.at(r, h * (width + 1) + i) / divisor;
          ASSERT_NEAR(out.at(r, h * width + i), want, (3 * kEps + Rounding()) * want);
        }
      }
    }
    out.ExpectGapsUntouched();
  }
}

// A row's result is the same whatever rows stand around it and however many threads work.
TEST_P(Pointwise, RowsDoNotDependOnEachOther) {
  for (SimdLevel level : Levels()) {
    AtLevel at(level);
    const int64_t rows = 900, n = 51;
    Strided x(rows, n, 17);
    Strided all = Strided::Poisoned(rows, n);
    Threads three(3), one(1);
    Strided alone = Strided::Poisoned(rows, n);
    DeviceMirror mirror = Mirror(three);
    const TensorView in = mirror.Activation(x.view()), apart = mirror.Activation(alone.view());
    Activate(in, Activation::kGelu, mirror.Activation(all.view()), mirror.stream());
    const Stream stream = Gpu() ? mirror.stream() : one.stream();
    for (int64_t r = 0; r < rows; ++r) {
      Activate(in.Rows(r, 1), Activation::kGelu, apart.Rows(r, 1), stream);
    }
    mirror.Fetch();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(all.at(r, i), alone.at(r, i));
    }
  }
}

}  // namespace
}  // namespace weir::kernels
