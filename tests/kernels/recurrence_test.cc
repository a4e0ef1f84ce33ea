#include "kernels/recurrence.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "gtest/gtest.h"
#include "tests/kernels/device_mirror.h"
#include "tests/kernels/recurrence_cases.h"

namespace weir::kernels {
namespace {

using testing::DeviceMirror;
using testing::Target;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kEps = 0x1p-24;

// Inputs of a case, and a private copy of everything an op may write.
struct Problem {
  Case c;
  int64_t tokens = 0, unowned = 2;  // trailing tokens that belong to no sequence
  std::vector<float> projection;    // q, k, v side by side with a gap: strided rows
  int64_t row = 0;
  std::vector<float> g, beta, out, pool;
  std::vector<int32_t> offsets, slots;
  std::vector<uint8_t> fresh;
  int64_t slot_stride = 0;  // floats
  // Slots that are aligned for wide accesses where the dims are the usual ones, unaligned
  // elsewhere.
  int64_t pad() const { return c.K % 64 == 0 ? 8 : 7; }
  int64_t gap() const { return c.K % 64 == 0 ? 8 : 3; }

  float* q() { return projection.data(); }
  float* k() { return q() + c.heads_q * c.K + gap(); }
  float* v() { return k() + c.heads_k * c.K; }
  int64_t all() const { return tokens + unowned; }
  float* State(int64_t slot, int head) {
    return pool.data() + slot * slot_stride + int64_t{head} * c.K * c.V;
  }

  RecurrenceArgs Args() {
    RecurrenceArgs a;
    a.decay = c.decay;
    a.update = c.update;
    a.scale = 1.0f / std::sqrt(static_cast<float>(c.K));
    a.heads = c.heads;
    const TensorView wide(projection.data(), {all(), row});
    const int64_t qk = c.heads_q * c.K + gap();
    a.q = wide.Columns(0, c.heads_q * c.K).Reshape({all(), c.heads_q, c.K});
    a.k = wide.Columns(qk, c.heads_k * c.K).Reshape({all(), c.heads_k, c.K});
    a.v = wide.Columns(qk + c.heads_k * c.K, c.heads_v * c.V).Reshape({all(), c.heads_v, c.V});
    if (c.decay == Decay::kScalar) {
      a.g = TensorView(g.data(), {c.gate == Gate::kFixed ? 1 : all(), c.heads});
    } else if (c.decay == Decay::kVector) {
      a.g = TensorView(g.data(), {all(), c.heads_g, c.K});
    }
    if (c.update == Update::kDelta) a.beta = TensorView(beta.data(), {all(), c.heads});
    a.out = TensorView(out.data(), {all(), c.heads, c.V});
    a.offsets = TensorView(offsets.data(), {static_cast<int64_t>(offsets.size())});
    a.slots = TensorView(slots.data(), {static_cast<int64_t>(slots.size())});
    a.fresh = TensorView(fresh.data(), {static_cast<int64_t>(fresh.size())});
    a.state = pool.data();
    a.slot_stride_bytes = slot_stride * 4;
    return a;
  }
};

float GateValue(Gate gate, int64_t i, std::mt19937& rng) {
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  switch (gate) {
    case Gate::kZero:
      return 0.0f;
    case Gate::kOne:
      return -1.0f;
    case Gate::kFive:
      return -5.0f;
    case Gate::kStrong:
      return -20.0f * unit(rng);
    case Gate::kHuge:
      return -1e4f;
    case Gate::kAlternating:
      return i % 3 == 0 ? -1e4f : -0.05f * unit(rng);
    case Gate::kInfinite:
      return i % 5 == 0 ? -kInf : -0.1f * unit(rng);
    default:
      return -0.3f * unit(rng) * unit(rng);
  }
}

void FillKeys(Problem& p, std::mt19937& rng) {
  const Case& c = p.c;
  std::normal_distribution<float> normal;
  std::vector<float> same(c.K);
  for (float& x : same) x = normal(rng);
  for (int64_t t = 0; t < p.all(); ++t) {
    for (int h = 0; h < c.heads_k; ++h) {
      float* k = p.k() + t * p.row + h * c.K;
      const bool zero = c.keys == Keys::kZero || (c.keys == Keys::kSometimesZero && t % 4 == 1);
      double norm = 0;
      for (int i = 0; i < c.K; ++i) {
        k[i] = c.keys == Keys::kSame ? same[i] : normal(rng);
        if (c.keys == Keys::kOneHot) k[i] = i == (t * 7 + h) % c.K ? 1.0f : 0.0f;
        if (zero) k[i] = 0.0f;
        norm += double{k[i]} * k[i];
      }
      // Unit keys, as the delta rules have them: every update is then non-expansive.
      for (int i = 0; i < c.K && norm > 0; ++i) k[i] = static_cast<float>(k[i] / std::sqrt(norm));
    }
  }
}

// For a target with bf16 activations, q, k and v are bf16 values from the start.
Problem MakeProblem(const Case& c, const Target& target = {}, uint32_t seed = 1) {
  Problem p;
  p.c = c;
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  p.offsets = {0};
  for (int length : c.lengths) p.offsets.push_back(p.offsets.back() + length);
  p.tokens = p.offsets.back();
  p.row = c.heads_q * c.K + p.gap() + c.heads_k * c.K + c.heads_v * c.V + p.pad();
  p.projection.resize(p.all() * p.row);
  for (float& x : p.projection) x = normal(rng);
  FillKeys(p, rng);
  if (target.activations == DType::kBF16) {
    for (float& x : p.projection) x = ToFloat(ToBFloat16(x));
  }
  p.g.resize(p.all() * std::max(c.heads, c.heads_g * c.K));
  const int width = c.decay == Decay::kVector ? c.heads_g * c.K : c.heads;
  for (size_t i = 0; i < p.g.size(); ++i) {
    p.g[i] =
        GateValue(c.gate, static_cast<int64_t>(i) / width + static_cast<int64_t>(i) % width, rng);
  }
  p.beta.resize(p.all() * c.heads);
  for (float& x : p.beta) {
    x = c.betas == Betas::kZero  ? 0.0f
        : c.betas == Betas::kOne ? 1.0f
        : c.betas == Betas::kTwo ? 2.0f
                                 : unit(rng);
    if (c.betas == Betas::kNegativeEigenvalues) x *= 2.0f;
  }
  p.out.assign(p.all() * c.heads * c.V, kNan);
  const int sequences = static_cast<int>(c.lengths.size());
  p.slot_stride = int64_t{c.heads} * c.K * c.V + p.pad();
  p.pool.resize((sequences + 2) * p.slot_stride);
  for (float& x : p.pool) x = normal(rng);
  for (int s = 0; s < sequences; ++s) {
    p.slots.push_back(s == 4 ? -1 : (sequences - s));  // slots 0 and sequences + 1 are nobody's
    p.fresh.push_back(s % 3 == 0);
    if (s % 3 == 0) {  // a fresh slot may hold anything
      std::fill_n(p.pool.begin() + (sequences - s) * p.slot_stride, p.slot_stride - p.pad(), kNan);
    }
  }
  return p;
}

// What must come out, in double, and how far a float computation may stray from it.
struct Expected {
  std::vector<double> out, out_tolerance;  // NaN: must not be written
  std::vector<double> pool, pool_tolerance;
};

// How exactly an op computes: what one of its inner roundings adds, and what rounding an output to
// the type of activations adds, both relative.
struct Precision {
  double inner = kEps, out = 0.0;
};
// f32 throughout; activations rounded once, on the way out.
Precision StepPrecision(const Target& target) {
  return {kEps, target.activations == DType::kBF16 ? testing::ActivationEps(target) : 0.0};
}
// With bf16 activations the matrix products take bf16 operands: every factor is rounded.
Precision ChunkPrecision(const Target& target) {
  return {testing::ActivationEps(target), StepPrecision(target).out};
}

// Rounding: an output is a sum over K and, through the state, over the tokens so far; each of these
// ~K + T roundings errs by at most eps times the largest value the state entry had (the updates are
// non-expansive, so old errors do not grow), and they do not conspire: sqrt(K + T), with 8 for
// the several operations each stands for.
Expected DoubleReference(Problem& p, const Precision& precision = {}) {
  const Case& c = p.c;
  Expected e;
  e.out.assign(p.out.size(), std::nan(""));
  e.out_tolerance.assign(p.out.size(), 0.0);
  e.pool.assign(p.pool.begin(), p.pool.end());
  e.pool_tolerance.assign(p.pool.size(), 0.0);
  const double scale = 1.0f / std::sqrt(static_cast<float>(c.K));
  for (size_t s = 0; s < p.slots.size(); ++s) {
    for (int h = 0; h < c.heads; ++h) {
      for (int j = 0; j < c.V; ++j) {
        const int slot = p.slots[s], length = c.lengths[s];
        std::vector<double> state(c.K), peak(c.K);
        for (int i = 0; i < c.K && slot >= 0; ++i) {
          state[i] = p.fresh[s] ? 0.0 : p.State(slot, h)[j * c.K + i];
          peak[i] = std::abs(state[i]);
        }
        // With one key and beta 2 each step is a reflection: errors neither decay nor average out.
        const bool reflects = c.betas == Betas::kTwo && c.keys == Keys::kSame;
        const double factor =
            (reflects ? 16 : 8) * precision.inner * std::sqrt(double{1.0} * c.K + length);
        for (int64_t t = p.offsets[s]; t < p.offsets[s + 1]; ++t) {
          const int64_t o = (t * c.heads + h) * c.V + j;
          e.out[o] = 0.0;
          if (slot < 0) continue;
          const float* q = p.q() + t * p.row + h / (c.heads / c.heads_q) * c.K;
          const float* k = p.k() + t * p.row + h / (c.heads / c.heads_k) * c.K;
          const double v = p.v()[t * p.row + h / (c.heads / c.heads_v) * c.V + j];
          double seen = 0, largest = std::abs(v);
          for (int i = 0; i < c.K; ++i) {
            if (c.decay == Decay::kScalar) {
              state[i] *= std::exp(double{p.g[(c.gate == Gate::kFixed ? 0 : t) * c.heads + h]});
            } else if (c.decay == Decay::kVector) {
              state[i] *=
                  std::exp(double{p.g[(t * c.heads_g + h / (c.heads / c.heads_g)) * c.K + i]});
            }
            seen += state[i] * k[i];
            largest += std::abs(k[i]) * peak[i];
          }
          const double write =
              c.update == Update::kDelta ? p.beta[t * c.heads + h] * (v - seen) : v;
          double read = 0, size = 0;
          for (int i = 0; i < c.K; ++i) {
            state[i] += k[i] * write;
            peak[i] = std::max({peak[i], std::abs(state[i]), std::abs(k[i]) * largest});
            read += state[i] * q[i];
            size += peak[i] * std::abs(q[i]);
          }
          e.out[o] = scale * read;
          e.out_tolerance[o] = factor * scale * size + precision.out * std::abs(e.out[o]);
        }
        if (slot < 0 || length == 0) continue;
        for (int i = 0; i < c.K; ++i) {
          const int64_t at = p.State(slot, h) + j * c.K + i - p.pool.data();
          e.pool[at] = state[i];
          e.pool_tolerance[at] = factor * peak[i];
        }
      }
    }
  }
  return e;
}

void ExpectNear(const std::vector<float>& got, const std::vector<double>& want,
                const std::vector<double>& tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  int reported = 0;
  for (size_t i = 0; i < got.size() && reported < 3; ++i) {
    if (std::isnan(want[i]) ? std::isnan(got[i]) : std::abs(got[i] - want[i]) <= tolerance[i])
      continue;
    ADD_FAILURE() << what << "[" << i << "] = " << got[i] << ", not " << want[i] << " within "
                  << tolerance[i];
    ++reported;
  }
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

std::vector<SimdLevel> Levels() {
  SetMaxSimdLevel(SimdLevel::kAvx512Bf16);
  std::vector<SimdLevel> levels;
  for (SimdLevel level : {SimdLevel::kBaseline, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
    if (level <= CurrentSimdLevel()) levels.push_back(level);
  }
  return levels;
}

using Op = void (*)(const RecurrenceArgs&, Stream);

// Calls `op` with `args`, which point into p, where `target` is; p then holds what it left there.
void Call(Op op, const Target& target, Problem& p, const RecurrenceArgs& args, ThreadPool* pool) {
  DeviceMirror mirror(target.device, target.activations, pool);
  mirror.Activation(TensorView(p.projection.data(), {p.all(), p.row}));
  RecurrenceArgs a = args;
  a.host_offsets = args.offsets.data<int32_t>();
  for (TensorView* x : {&a.q, &a.k, &a.v, &a.out}) *x = mirror.Activation(*x);
  for (TensorView* x : {&a.g, &a.beta, &a.offsets, &a.slots, &a.fresh}) *x = mirror.Plain(*x);
  a.state = mirror.Memory(p.pool.data(), p.pool.size() * 4);
  const int64_t bytes =
      RecurrenceChunkScratchBytes(a, a.q.size(0), a.slots.size(0), mirror.stream());
  if (bytes > 0) a.scratch = mirror.Scratch(static_cast<size_t>(bytes));
  op(a, mirror.stream());
  mirror.Fetch();
}

// A way to run an op that must give the same bits as the others of its level.
struct Way {
  SimdLevel level;
  int threads;
  std::string name() const { return SimdLevelName(level) + (" x " + std::to_string(threads)); }
};
std::vector<Way> Ways(const Target& target) {
  if (target.device == Device::kCuda) return {{SimdLevel::kBaseline, 1}};
  std::vector<Way> ways;
  for (SimdLevel level : Levels()) {
    for (int threads : {1, 2, 3}) ways.push_back({level, threads});
  }
  return ways;
}

class RecurrenceFormula : public ::testing::TestWithParam<Case> {};

class Recurrence : public ::testing::TestWithParam<std::tuple<Case, Target>> {
 protected:
  void SetUp() override {
    if (target().device == Device::kCuda) WEIR_NEEDS_GPU();
  }
  ~Recurrence() override { SetMaxSimdLevel(SimdLevel::kAvx512Bf16); }
  const Case& c() const { return std::get<0>(GetParam()); }
  const Target& target() const { return std::get<1>(GetParam()); }

  // `run` on a copy of `original` in every way: within tolerance, the same bits with any threads.
  void ExpectEveryWay(const Problem& original, const Expected& e,
                      const std::function<void(Problem&, ThreadPool*)>& run) {
    Problem first = original;
    for (const Way& way : Ways(target())) {
      SCOPED_TRACE(way.name());
      SetMaxSimdLevel(way.level);
      ThreadPool pool(way.threads);
      Problem p = original;
      run(p, &pool);
      ExpectNear(p.out, e.out, e.out_tolerance, "out");
      ExpectNear(p.pool, e.pool, e.pool_tolerance, "state");
      if (way.threads == 1) first = p;
      EXPECT_TRUE(SameBits(first.out, p.out));
      EXPECT_TRUE(SameBits(first.pool, p.pool));
    }
  }

  ThreadPool pool_{2};
};

// Every token of every sequence by calls of one token per sequence, as decoding does it.
void RunSteps(Problem& p, const std::function<void(Problem&)>& step) {
  const std::vector<int32_t> offsets = p.offsets, slots = p.slots;
  const std::vector<uint8_t> fresh = p.fresh;
  int longest = 0;
  for (int length : p.c.lengths) longest = std::max(longest, length);
  for (int i = 0; i < longest; ++i) {
    p.offsets.clear();
    p.slots.clear();
    p.fresh.clear();
    // Gather token i of every sequence that has one into a batch of rows of their own.
    std::vector<int64_t> tokens;
    for (size_t s = 0; s < slots.size(); ++s) {
      if (i >= p.c.lengths[s]) continue;
      tokens.push_back(offsets[s] + i);
      p.slots.push_back(slots[s]);
      p.fresh.push_back(i == 0 && fresh[s]);
    }
    Problem batch = p;
    batch.tokens = static_cast<int64_t>(tokens.size());
    batch.unowned = 0;
    const int g_width = p.c.decay == Decay::kVector ? p.c.heads_g * p.c.K : p.c.heads;
    for (size_t b = 0; b < tokens.size(); ++b) {
      batch.offsets.push_back(static_cast<int32_t>(b));
      std::copy_n(p.projection.begin() + tokens[b] * p.row, p.row,
                  batch.projection.begin() + b * p.row);
      if (p.c.gate != Gate::kFixed) {
        std::copy_n(p.g.begin() + tokens[b] * g_width, g_width, batch.g.begin() + b * g_width);
      }
      std::copy_n(p.beta.begin() + tokens[b] * p.c.heads, p.c.heads,
                  batch.beta.begin() + b * p.c.heads);
    }
    batch.offsets.push_back(static_cast<int32_t>(tokens.size()));
    step(batch);
    p.pool = batch.pool;
    const int64_t width = p.c.heads * p.c.V;
    for (size_t b = 0; b < tokens.size(); ++b) {
      std::copy_n(batch.out.begin() + b * width, width, p.out.begin() + tokens[b] * width);
    }
  }
  p.offsets = offsets;
  p.slots = slots;
  p.fresh = fresh;
}

TEST_P(RecurrenceFormula, ReferenceIsTheFormula) {
  Problem p = MakeProblem(GetParam());
  const Expected e = DoubleReference(p);
  RecurrenceReference(p.Args());
  ExpectNear(p.out, e.out, e.out_tolerance, "out");
  ExpectNear(p.pool, e.pool, e.pool_tolerance, "state");
}

TEST_P(Recurrence, ChunkIsTheFormula) {
  Problem original = MakeProblem(c(), target());
  const Expected e = DoubleReference(original, ChunkPrecision(target()));
  ExpectEveryWay(original, e, [&](Problem& p, ThreadPool* pool) {
    Call(RecurrenceChunk, target(), p, p.Args(), pool);
  });
}

TEST_P(Recurrence, StepsAreTheFormula) {
  Problem original = MakeProblem(c(), target());
  const Expected e = DoubleReference(original, StepPrecision(target()));
  ExpectEveryWay(original, e, [&](Problem& p, ThreadPool* pool) {
    RunSteps(p, [&](Problem& batch) { Call(RecurrenceStep, target(), batch, batch.Args(), pool); });
  });
}

// Runs the sequences piece by piece; each piece is a call with at most `pieces(rng)` tokens of
// each.
TEST_P(Recurrence, CutAnywhereIsTheSameWithinRounding) {
  Problem original = MakeProblem(c(), target());
  const Expected e = DoubleReference(original, ChunkPrecision(target()));
  std::mt19937 rng(7);
  for (int round = 0; round < 3; ++round) {
    Problem p = original;
    std::vector<int> done(p.slots.size(), 0);
    for (bool more = true; more;) {
      more = false;
      // Every piece is a call of its own: a piece of one sequence, the others empty or absent.
      for (size_t s = 0; s < p.slots.size(); ++s) {
        const int left = p.c.lengths[s] - done[s];
        if (left == 0) continue;
        const int count = std::min<int>(left, 1 + static_cast<int>(rng() % 40));
        RecurrenceArgs a = p.Args();
        int32_t offsets[2] = {p.offsets[s] + done[s], p.offsets[s] + done[s] + count};
        int32_t slot[1] = {p.slots[s]};
        uint8_t fresh[1] = {static_cast<uint8_t>(done[s] == 0 && p.fresh[s])};
        a.offsets = TensorView(offsets, {2});
        a.slots = TensorView(slot, {1});
        a.fresh = TensorView(fresh, {1});
        Call(RecurrenceChunk, target(), p, a, &pool_);
        done[s] += count;
        more = true;
      }
    }
    ExpectNear(p.out, e.out, e.out_tolerance, "out");
    ExpectNear(p.pool, e.pool, e.pool_tolerance, "state");
  }
}

TEST_P(Recurrence, AloneIsTheSameBitForBit) {
  Problem together = MakeProblem(c(), target());
  Problem apart = together;
  Call(RecurrenceChunk, target(), together, together.Args(), &pool_);
  for (size_t s = 0; s < apart.slots.size(); ++s) {
    RecurrenceArgs a = apart.Args();
    a.offsets = TensorView(apart.offsets.data() + s, {2});
    a.slots = TensorView(apart.slots.data() + s, {1});
    a.fresh = TensorView(apart.fresh.data() + s, {1});
    Call(RecurrenceChunk, target(), apart, a, &pool_);
  }
  EXPECT_TRUE(SameBits(together.out, apart.out));
  EXPECT_TRUE(SameBits(together.pool, apart.pool));
}

INSTANTIATE_TEST_SUITE_P(Cases, RecurrenceFormula, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Cases, Recurrence,
                         ::testing::Combine(::testing::ValuesIn(Cases()),
                                            ::testing::ValuesIn(testing::Targets())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::get<1>(info.param).name();
                         });

// On a GPU a long additive sequence may run as two halves at once, if its neighbours leave room:
// with five sequences of sixteen heads there is none, alone there is.
TEST(RecurrenceHalves, AreTheSameBitForBit) {
  WEIR_NEEDS_GPU();
  const testing::Target target{Device::kCuda, DType::kBF16};
  ThreadPool pool(2);
  for (const Gate gate : {Gate::kMild, Gate::kFixed}) {
    Problem together = MakeProblem({"halves",
                                    Decay::kScalar,
                                    Update::kAdditive,
                                    16,
                                    1,
                                    1,
                                    16,
                                    1,
                                    128,
                                    64,
                                    {2100, 3, 1, 2, 5},
                                    gate},
                                   target);
    Problem apart = together;
    const Expected e = DoubleReference(together, ChunkPrecision(target));
    Call(RecurrenceChunk, target, together, together.Args(), &pool);
    ExpectNear(together.out, e.out, e.out_tolerance, "out");
    ExpectNear(together.pool, e.pool, e.pool_tolerance, "state");
    for (size_t s = 0; s < apart.slots.size(); ++s) {
      RecurrenceArgs a = apart.Args();
      a.offsets = TensorView(apart.offsets.data() + s, {2});
      a.slots = TensorView(apart.slots.data() + s, {1});
      a.fresh = TensorView(apart.fresh.data() + s, {1});
      Call(RecurrenceChunk, target, apart, a, &pool);
    }
    EXPECT_TRUE(SameBits(together.out, apart.out));
    EXPECT_TRUE(SameBits(together.pool, apart.pool));
  }
}

TEST(RecurrenceContract, StepRefusesTwoTokensOfOneSequence) {
  Problem p = MakeProblem({"two", Decay::kNone, Update::kAdditive, 1, 1, 1, 1, 1, 4, 4, {2}});
  ThreadPool pool(1);
  EXPECT_DEATH(RecurrenceStep(p.Args(), {Device::kCpu, &pool, nullptr}), "more than one token");
}

TEST(RecurrenceContract, RefusesHeadsThatDoNotDivide) {
  Problem p = MakeProblem({"heads", Decay::kNone, Update::kAdditive, 4, 4, 2, 2, 1, 4, 4, {2}});
  ThreadPool pool(1);
  RecurrenceArgs a = p.Args();
  a.heads = 3;
  EXPECT_DEATH(RecurrenceChunk(a, {Device::kCpu, &pool, nullptr}), "Check failed");
}

}  // namespace
}  // namespace weir::kernels
