#include "kernels/short_conv.h"

#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using testing::AtLevel;
using testing::DeviceMirror;
using testing::kEps;
using testing::kPoison;
using testing::MachineLevels;
using testing::RandomFloats;
using testing::RoundTo;
using testing::SameBits;
using testing::Target;

struct Case {
  int64_t channels, width;
  bool bias, silu;
  std::vector<int> lengths;
};

const std::vector<Case> kCases = {
    {1, 4, false, true, {1, 5, 0, 2}},
    {20, 4, true, true, {7, 1, 3, 1, 0, 40}},
    {37, 3, false, false, {2, 1, 9, 30}},
    {100, 2, true, false, {5, 0, 1, 1}},
    {64, 1, true, true, {3, 2}},
    {48, 6, false, true, {1, 2, 3, 4, 5, 6, 7, 8}},
    {600, 4, false, true, {70, 1, 2}},
    {515, 4, true, true, {33, 3}},
    {256, 4, true, true, {300, 0, 129, 64, 65, 2}},
    {96, 2, false, false, {1000}},
    {520, 4, false, true, {1, 1, 1, 1, 1, 1}},
};

struct Problem {
  Case c;
  int64_t tokens = 0, stride = 0, slot_stride = 0;
  std::vector<float> x, weight, bias, out, pool;
  std::vector<int32_t> offsets = {0}, slots;
  std::vector<uint8_t> fresh;

  float* Window(int64_t slot) { return pool.data() + slot * slot_stride; }
  // Pads the row so that rows are, or are not, aligned for wide accesses.
  int64_t lead() const { return c.channels % 8 == 0 ? 8 : 3; }
  ShortConvArgs Args() {
    ShortConvArgs a;
    const int64_t all = tokens + 1;  // the last token belongs to nobody
    a.x = TensorView(x.data(), {all, stride}).Columns(lead(), c.channels);
    a.weight = TensorView(weight.data(), {c.channels, c.width});
    if (c.bias) a.bias = TensorView(bias.data(), {c.channels});
    a.activation = c.silu ? Activation::kSilu : Activation::kNone;
    a.out = TensorView(out.data(), {all, stride}).Columns(lead(), c.channels);
    a.offsets = TensorView(offsets.data(), {static_cast<int64_t>(offsets.size())});
    a.slots = TensorView(slots.data(), {static_cast<int64_t>(slots.size())});
    a.fresh = TensorView(fresh.data(), {static_cast<int64_t>(fresh.size())});
    a.state = pool.data();
    a.slot_stride_bytes = slot_stride * 4;
    return a;
  }
};

// For a target with bf16 activations the inputs, and so the windows, are bf16 values.
Problem MakeProblem(const Case& c, const Target& target) {
  Problem p;
  p.c = c;
  for (int length : c.lengths) p.offsets.push_back(p.offsets.back() + length);
  p.tokens = p.offsets.back();
  p.stride = c.channels + p.lead() + (c.channels % 8 == 0 ? 8 : 4);
  p.x = RandomFloats((p.tokens + 1) * p.stride, 1);
  p.weight = RandomFloats(c.channels * c.width, 2);
  p.bias = RandomFloats(c.channels, 3);
  p.out.assign(p.x.size(), kPoison);
  const int sequences = static_cast<int>(c.lengths.size());
  p.slot_stride = (c.width - 1) * c.channels + (c.channels % 8 == 0 ? 8 : 5);
  p.pool = RandomFloats((sequences + 2) * p.slot_stride, 4);
  for (std::vector<float>* values : {&p.x, &p.pool}) {
    for (float& v : *values) v = RoundTo(target.activations, v);
  }
  for (int s = 0; s < sequences; ++s) {
    p.slots.push_back(s == 2 ? -1 : sequences - s);
    p.fresh.push_back(s % 2 == 0);
    if (s % 2 == 0) {  // whatever a fresh slot holds must not matter
      std::fill_n(p.Window(sequences - s), (c.width - 1) * c.channels, kPoison);
    }
  }
  return p;
}

// Input t of sequence s as the convolution sees it: before the run, the window.
float Input(Problem& p, int64_t s, int64_t t, int64_t channel) {
  if (t >= 0) return p.x[(p.offsets[s] + t) * p.stride + p.lead() + channel];
  if (p.fresh[s]) return 0.0f;
  return p.Window(p.slots[s])[(p.c.width - 1 + t) * p.c.channels + channel];
}

void ExpectOutputs(Problem& before, const Problem& after, const Target& target) {
  const Case& c = before.c;
  std::vector<bool> written(before.out.size(), false);
  for (size_t s = 0; s < before.slots.size(); ++s) {
    for (int64_t t = 0; t < c.lengths[s]; ++t) {
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        const int64_t at = (before.offsets[s] + t) * before.stride + before.lead() + channel;
        written[at] = true;
        if (before.slots[s] < 0) {
          ASSERT_EQ(after.out[at], 0.0f);
          continue;
        }
        double y = c.bias ? before.bias[channel] : 0.0, size = std::abs(y);
        for (int64_t j = 0; j < c.width; ++j) {
          const double term = double{before.weight[channel * c.width + j]} *
                              Input(before, s, t - c.width + 1 + j, channel);
          y += term;
          size += std::abs(term);
        }
        // width + 1 roundings of partial sums; silu's slope is below 1.1 and its own error 3 units
        double error = (static_cast<double>(c.width) + 2) * kEps * size;
        if (c.silu) {
          y = y / (1 + std::exp(-y));
          error = 1.1 * error + 6 * kEps * std::abs(y);
        }
        if (target.activations == DType::kBF16) {
          error += testing::ActivationEps(target) * (std::abs(y) + error);
        }
        ASSERT_NEAR(after.out[at], y, error) << s << " " << t << " " << channel;
      }
    }
  }
  for (size_t i = 0; i < written.size(); ++i) {
    if (!written[i]) {
      ASSERT_TRUE(std::isnan(after.out[i])) << i;
    }
  }
}

void ExpectWindows(Problem& before, const Problem& after) {
  const Case& c = before.c;
  std::vector<float> want = before.pool;
  for (size_t s = 0; s < before.slots.size(); ++s) {
    if (before.slots[s] < 0 || c.lengths[s] == 0) continue;
    for (int64_t j = 0; j + 1 < c.width; ++j) {
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        want[before.slots[s] * before.slot_stride + j * c.channels + channel] =
            Input(before, s, c.lengths[s] - c.width + 1 + j, channel);
      }
    }
  }
  EXPECT_TRUE(SameBits(after.pool, want));
}

// Calls the op where `target` is with args that point into p, and windows of `window` there.
void Call(const Target& target, DType window, Problem& p, const ShortConvArgs& args,
          ThreadPool* pool) {
  DeviceMirror mirror(target.device, target.activations, pool);
  ShortConvArgs a = args;
  a.x = mirror.Activation(args.x);
  a.out = mirror.Activation(args.out);
  for (TensorView* x : {&a.weight, &a.bias, &a.offsets, &a.slots, &a.fresh}) *x = mirror.Plain(*x);
  std::vector<BFloat16> narrow;
  if (window == DType::kBF16) {
    for (float x : p.pool) narrow.push_back(ToBFloat16(x));
    a.state = mirror.Memory(narrow.data(), narrow.size() * 2);
    a.slot_stride_bytes = p.slot_stride * 2;
  } else {
    a.state = mirror.Memory(p.pool.data(), p.pool.size() * 4);
  }
  a.window_dtype = window;
  ShortConv(a, mirror.stream());
  mirror.Fetch();
  for (size_t i = 0; i < narrow.size(); ++i) p.pool[i] = ToFloat(narrow[i]);
}

// A way to run the op.
struct Way {
  SimdLevel level;
  int threads;
  DType window;
};
std::vector<Way> Ways(const Target& target) {
  if (target.device == Device::kCuda) {
    std::vector<Way> ways = {{SimdLevel::kBaseline, 1, DType::kF32}};
    if (target.activations == DType::kBF16) ways.push_back({ways[0].level, 1, DType::kBF16});
    return ways;
  }
  std::vector<Way> ways;
  for (SimdLevel level : MachineLevels()) {
    for (int threads : {1, 2, 3}) ways.push_back({level, threads, DType::kF32});
  }
  return ways;
}

class ShortConvOn : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (target().device == Device::kCuda) WEIR_NEEDS_GPU();
  }
  const Target& target() const { return GetParam(); }

  // `body` with every case in every way.
  void ForAll(const std::function<void(const Case&, const Way&, ThreadPool*)>& body) {
    for (const Way& way : Ways(target())) {
      AtLevel at(way.level);
      ThreadPool pool(way.threads);
      for (const Case& c : kCases) {
        SCOPED_TRACE(std::to_string(c.channels) + " channels, width " + std::to_string(c.width) +
                     ", " + std::string(SimdLevelName(way.level)) + " x " +
                     std::to_string(way.threads) + ", window " +
                     std::string(DTypeName(way.window)));
        body(c, way, &pool);
        if (HasFatalFailure()) return;
      }
    }
  }
};

TEST_P(ShortConvOn, IsTheFormula) {
  ForAll([&](const Case& c, const Way& way, ThreadPool* pool) {
    Problem before = MakeProblem(c, target()), p = before;
    Call(target(), way.window, p, p.Args(), pool);
    ExpectOutputs(before, p, target());
    ExpectWindows(before, p);
    if (way.threads == 1) return;
    Problem one = before;
    ThreadPool single(1);
    Call(target(), way.window, one, one.Args(), &single);
    EXPECT_TRUE(SameBits(one.out, p.out));
  });
}

TEST_P(ShortConvOn, InPlaceIsTheSame) {
  ForAll([&](const Case& c, const Way& way, ThreadPool* pool) {
    Problem apart = MakeProblem(c, target()), in_place = apart;
    Call(target(), way.window, apart, apart.Args(), pool);
    ShortConvArgs a = in_place.Args();
    a.out = a.x;
    Call(target(), way.window, in_place, a, pool);
    for (int64_t t = 0; t < apart.tokens; ++t) {
      for (int64_t i = 0; i < c.channels; ++i) {
        const int64_t at = t * apart.stride + apart.lead() + i;
        ASSERT_EQ(in_place.x[at], apart.out[at]) << t << " " << i;
      }
    }
    EXPECT_TRUE(SameBits(apart.pool, in_place.pool));
  });
}

TEST_P(ShortConvOn, CutAnywhereAndAloneIsTheSameBitForBit) {
  std::mt19937 rng(5);
  ForAll([&](const Case& c, const Way& way, ThreadPool* pool) {
    Problem whole = MakeProblem(c, target()), pieces = whole;
    Call(target(), way.window, whole, whole.Args(), pool);
    for (size_t s = 0; s < pieces.slots.size(); ++s) {
      for (int done = 0; done < c.lengths[s];) {
        const int most = c.lengths[s] > 100 ? 90 : 4;
        const int count = std::min<int>(c.lengths[s] - done, 1 + static_cast<int>(rng() % most));
        int32_t offsets[2] = {pieces.offsets[s] + done, pieces.offsets[s] + done + count};
        int32_t slot[1] = {pieces.slots[s]};
        uint8_t fresh[1] = {static_cast<uint8_t>(done == 0 && pieces.fresh[s])};
        ShortConvArgs a = pieces.Args();
        a.offsets = TensorView(offsets, {2});
        a.slots = TensorView(slot, {1});
        a.fresh = TensorView(fresh, {1});
        Call(target(), way.window, pieces, a, pool);
        done += count;
      }
    }
    EXPECT_TRUE(SameBits(whole.out, pieces.out));
    EXPECT_TRUE(SameBits(whole.pool, pieces.pool));
  });
}

INSTANTIATE_TEST_SUITE_P(Targets, ShortConvOn, ::testing::ValuesIn(testing::Targets()),
                         [](const auto& info) { return info.param.name(); });

TEST(ShortConvContract, RefusesOtherActivations) {
  Problem p = MakeProblem(kCases[0], {});
  ShortConvArgs a = p.Args();
  a.activation = Activation::kGelu;
  ThreadPool pool(1);
  EXPECT_DEATH(ShortConv(a, {Device::kCpu, &pool, nullptr}), "no activation but silu");
}

}  // namespace
}  // namespace weir::kernels
