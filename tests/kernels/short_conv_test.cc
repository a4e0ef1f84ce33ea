#include "kernels/short_conv.h"

#include <cmath>
#include <random>
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

struct Case {
  int64_t channels, width;
  bool bias, silu;
  std::vector<int> lengths;
};

const std::vector<Case> kCases = {
    {1, 4, false, true, {1, 5, 0, 2}},    {20, 4, true, true, {7, 1, 3, 1, 0, 40}},
    {37, 3, false, false, {2, 1, 9, 30}}, {100, 2, true, false, {5, 0, 1, 1}},
    {64, 1, true, true, {3, 2}},          {48, 6, false, true, {1, 2, 3, 4, 5, 6, 7, 8}},
    {600, 4, false, true, {70, 1, 2}},    {515, 4, true, true, {33, 3}},
};

struct Problem {
  Case c;
  int64_t tokens = 0, stride = 0, slot_stride = 0;
  std::vector<float> x, weight, bias, out, pool;
  std::vector<int32_t> offsets = {0}, slots;
  std::vector<uint8_t> fresh;

  float* Window(int64_t slot) { return pool.data() + slot * slot_stride; }
  ShortConvArgs Args() {
    ShortConvArgs a;
    const int64_t all = tokens + 1;  // the last token belongs to nobody
    a.x = TensorView(x.data(), {all, stride}).Columns(3, c.channels);
    a.weight = TensorView(weight.data(), {c.channels, c.width});
    if (c.bias) a.bias = TensorView(bias.data(), {c.channels});
    a.activation = c.silu ? Activation::kSilu : Activation::kNone;
    a.out = TensorView(out.data(), {all, stride}).Columns(3, c.channels);
    a.offsets = TensorView(offsets.data(), {static_cast<int64_t>(offsets.size())});
    a.slots = TensorView(slots.data(), {static_cast<int64_t>(slots.size())});
    a.fresh = TensorView(fresh.data(), {static_cast<int64_t>(fresh.size())});
    a.state = pool.data();
    a.slot_stride_bytes = slot_stride * 4;
    return a;
  }
};

Problem MakeProblem(const Case& c) {
  Problem p;
  p.c = c;
  for (int length : c.lengths) p.offsets.push_back(p.offsets.back() + length);
  p.tokens = p.offsets.back();
  p.stride = c.channels + 7;
  p.x = RandomFloats((p.tokens + 1) * p.stride, 1);
  p.weight = RandomFloats(c.channels * c.width, 2);
  p.bias = RandomFloats(c.channels, 3);
  p.out.assign(p.x.size(), kPoison);
  const int sequences = static_cast<int>(c.lengths.size());
  p.slot_stride = (c.width - 1) * c.channels + 5;
  p.pool = RandomFloats((sequences + 2) * p.slot_stride, 4);
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
  if (t >= 0) return p.x[(p.offsets[s] + t) * p.stride + 3 + channel];
  if (p.fresh[s]) return 0.0f;
  return p.Window(p.slots[s])[(p.c.width - 1 + t) * p.c.channels + channel];
}

void ExpectOutputs(Problem& before, const Problem& after) {
  const Case& c = before.c;
  std::vector<bool> written(before.out.size(), false);
  for (size_t s = 0; s < before.slots.size(); ++s) {
    for (int64_t t = 0; t < c.lengths[s]; ++t) {
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        const int64_t at = (before.offsets[s] + t) * before.stride + 3 + channel;
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

TEST(ShortConv, IsTheFormulaOnEveryLevelWithAnyThreads) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    SCOPED_TRACE(SimdLevelName(level));
    for (const Case& c : kCases) {
      Problem before = MakeProblem(c);
      std::vector<float> first;
      for (int count : {1, 2, 3}) {
        Threads threads(count);
        Problem p = before;
        ShortConv(p.Args(), threads.stream());
        ExpectOutputs(before, p);
        ExpectWindows(before, p);
        if (HasFatalFailure()) return;
        if (count == 1) first = p.out;
        EXPECT_TRUE(SameBits(first, p.out));
      }
    }
  }
}

TEST(ShortConv, InPlaceIsTheSame) {
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (const Case& c : kCases) {
      Problem apart = MakeProblem(c), in_place = apart;
      Threads threads(2);
      ShortConv(apart.Args(), threads.stream());
      ShortConvArgs a = in_place.Args();
      a.out = a.x;
      ShortConv(a, threads.stream());
      for (int64_t t = 0; t < apart.tokens; ++t) {
        for (int64_t i = 0; i < c.channels; ++i) {
          ASSERT_EQ(in_place.x[t * apart.stride + 3 + i], apart.out[t * apart.stride + 3 + i]);
        }
      }
      EXPECT_TRUE(SameBits(apart.pool, in_place.pool));
    }
  }
}

TEST(ShortConv, CutAnywhereAndAloneIsTheSameBitForBit) {
  std::mt19937 rng(5);
  for (SimdLevel level : MachineLevels()) {
    AtLevel at(level);
    for (const Case& c : kCases) {
      Problem whole = MakeProblem(c), pieces = whole;
      Threads threads(2), one(1);
      ShortConv(whole.Args(), threads.stream());
      for (size_t s = 0; s < pieces.slots.size(); ++s) {
        for (int done = 0; done < c.lengths[s];) {
          const int count = std::min<int>(c.lengths[s] - done, 1 + static_cast<int>(rng() % 4));
          int32_t offsets[2] = {pieces.offsets[s] + done, pieces.offsets[s] + done + count};
          int32_t slot[1] = {pieces.slots[s]};
          uint8_t fresh[1] = {static_cast<uint8_t>(done == 0 && pieces.fresh[s])};
          ShortConvArgs a = pieces.Args();
          a.offsets = TensorView(offsets, {2});
          a.slots = TensorView(slot, {1});
          a.fresh = TensorView(fresh, {1});
          ShortConv(a, one.stream());
          done += count;
        }
      }
      EXPECT_TRUE(SameBits(whole.out, pieces.out));
      EXPECT_TRUE(SameBits(whole.pool, pieces.pool));
    }
  }
}

TEST(ShortConvContract, RefusesOtherActivations) {
  Problem p = MakeProblem(kCases[0]);
  ShortConvArgs a = p.Args();
  a.activation = Activation::kGelu;
  Threads threads(1);
  EXPECT_DEATH(ShortConv(a, threads.stream()), "no activation but silu");
}

}  // namespace
}  // namespace weir::kernels
