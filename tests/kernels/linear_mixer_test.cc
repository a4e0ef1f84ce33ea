// The fused mixer on the GPU against the single ops composed on the CPU.
#include "kernels/linear_mixer.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "gtest/gtest.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "kernels/recurrence.h"
#include "kernels/short_conv.h"
#include "tests/kernels/dense_test_support.h"
#include "tests/kernels/device_mirror.h"

namespace weir::kernels {
namespace {

using testing::DeviceMirror;
using testing::kEps;
using testing::kPoison;
using testing::RandomFloats;
using testing::RoundTo;
using testing::SameBits;

using Form = LogDecayArgs::Form;

struct Case {
  std::string name;
  DType activations = DType::kF32, window = DType::kF32;
  Decay decay = Decay::kScalar;
  Update update = Update::kDelta;
  int heads = 4, heads_q = 2, heads_k = 2, heads_v = 4, heads_g = 4;
  int K = 128, V = 128;
  int width = 4;  // 0: no convolution
  bool conv_bias = false, silu = true, l2_norm = true, gate = true, norm_weight = true;
  bool fixed_decay = false, clamp = false, decay_bias = true;
  bool sigmoid_gate = false, f32_decay = false;
  Form form = Form::kSoftplus;
  std::vector<int> lengths = {1, 1, 1, 1, 1, 1};  // singles first
};

// A model's shape and flags drawn at random; `runs`: with runs of more than one token behind.
Case RandomCase(uint32_t seed, bool runs) {
  std::mt19937 rng(seed);
  const auto pick = [&](std::initializer_list<int> of) { return of.begin()[rng() % of.size()]; };
  const auto flip = [&] { return rng() % 2 == 0; };
  Case c;
  c.name = (runs ? "runs_" : "random_") + std::to_string(seed);
  c.activations = flip() ? DType::kBF16 : DType::kF32;
  c.window = c.activations;
  c.decay = static_cast<Decay>(rng() % 3);
  c.update = flip() ? Update::kDelta : Update::kAdditive;
  c.heads = pick({1, 2, 4, 6});
  const auto divisor = [&] {
    int n = 1 + static_cast<int>(rng() % static_cast<unsigned>(c.heads));
    while (c.heads % n != 0) --n;
    return n;
  };
  c.heads_q = flip() ? c.heads : divisor();
  c.heads_k = flip() ? c.heads_q : divisor();
  c.heads_v = flip() ? c.heads : c.heads_k;
  c.heads_g = flip() ? c.heads : c.heads_k;
  c.K = pick({64, 128, 256});
  c.V = pick({64, 128, 256});
  c.width = pick({0, 2, 3, 4, 4});
  c.conv_bias = flip();
  c.silu = flip();
  c.l2_norm = c.update == Update::kDelta || flip();
  c.gate = flip();
  c.norm_weight = flip();
  c.fixed_decay = c.decay == Decay::kScalar && rng() % 4 == 0;
  c.clamp = flip();
  c.decay_bias = flip();
  c.sigmoid_gate = flip();
  c.f32_decay = flip();
  c.form = static_cast<Form>(rng() % 3);
  int singles = static_cast<int>(rng() % 6) + (runs ? 0 : 1);
  // As many as keep every multiprocessor busy, where the states are small enough for a test.
  const int64_t state = int64_t{c.heads} * c.K * c.V;
  if (rng() % 2 == 0 && state <= 65536) singles += 280 / c.heads;
  c.lengths.assign(static_cast<size_t>(singles), 1);
  if (runs) {
    for (int n = 1 + static_cast<int>(rng() % 3); n > 0; --n) {
      c.lengths.push_back(pick({0, 1, 2, 5, 64, 90}));
    }
  }
  return c;
}

// Host data of a case. Activations are values of their type from the start.
struct Problem {
  Case c;
  int64_t tokens = 0, sequences = 0, singles = 0, qkv_width = 0, row = 0, slot_floats = 0;
  int64_t window_floats = 0;
  std::vector<float> in;  // rows: qkv | gap | gate | beta | decay
  std::vector<float> decay_f32, conv_weight, conv_bias, decay_bias, exp_a, fixed, norm, out, state;
  std::vector<float> window;  // [slots, W - 1, channels]
  std::vector<int32_t> offsets = {0}, slots;
  std::vector<uint8_t> fresh;
  int64_t gate_at = 0, beta_at = 0, decay_at = 0, decay_width = 0, out_row = 0;

  int64_t heads_v() const { return int64_t{c.heads} * c.V; }
  int64_t state_floats() const { return heads_v() * c.K; }
};

void FillSlots(Problem& p) {
  const Case& c = p.c;
  p.slot_floats = p.state_floats() + 4;
  p.window_floats = std::max(c.width - 1, 0) * p.qkv_width;
  p.state = RandomFloats((p.sequences + 2) * p.slot_floats, 11, 0.3f);
  p.window = RandomFloats((p.sequences + 2) * p.window_floats, 12);
  for (float& x : p.window) x = RoundTo(c.activations, x);
  for (int64_t s = 0; s < p.sequences; ++s) {
    p.slots.push_back(s % 5 == 3 ? -1 : static_cast<int32_t>(p.sequences - s));
    p.fresh.push_back(s % 4 == 1);
    if (p.slots.back() >= 0 && p.fresh.back() != 0) {  // whatever a fresh slot holds
      std::fill_n(p.state.begin() + p.slots.back() * p.slot_floats, p.state_floats(), kPoison);
      std::fill_n(p.window.begin() + p.slots.back() * p.window_floats, p.window_floats, kPoison);
    }
  }
}

Problem MakeProblem(const Case& c) {
  Problem p;
  p.c = c;
  for (int length : c.lengths) p.offsets.push_back(p.offsets.back() + length);
  p.tokens = p.offsets.back();
  p.sequences = static_cast<int64_t>(c.lengths.size());
  while (p.singles < p.sequences && c.lengths[static_cast<size_t>(p.singles)] == 1) ++p.singles;
  p.qkv_width = int64_t{c.heads_q + c.heads_k} * c.K + int64_t{c.heads_v} * c.V;
  p.gate_at = p.qkv_width + 1;
  p.beta_at = p.gate_at + p.heads_v();
  p.decay_at = p.beta_at + c.heads;
  p.decay_width = c.decay == Decay::kVector ? int64_t{c.heads_g} * c.K : c.heads;
  p.row = p.decay_at + p.decay_width + 2;
  p.in = RandomFloats((p.tokens + 1) * p.row, 1);
  for (float& x : p.in) x = RoundTo(c.activations, x);
  for (int64_t t = 0; t <= p.tokens; ++t) p.in[t * p.row + p.qkv_width] = kPoison;
  std::fill(p.in.end() - p.row, p.in.end(), kPoison);  // a token that belongs to nobody
  p.decay_f32 = RandomFloats((p.tokens + 1) * p.decay_width, 2);
  p.conv_weight = RandomFloats(p.qkv_width * std::max(c.width, 1), 3, 0.5f);
  p.conv_bias = RandomFloats(p.qkv_width, 4, 0.5f);
  p.decay_bias = RandomFloats(p.decay_width, 5);
  p.exp_a = RandomFloats(c.heads, 6);
  for (float& x : p.exp_a) x = std::exp(x);
  p.fixed = RandomFloats(c.heads, 7);
  for (float& x : p.fixed) x = -std::abs(x);
  p.norm = RandomFloats(c.V, 8);
  p.out_row = p.heads_v() + 5;
  p.out.assign((p.tokens + 1) * p.out_row, kPoison);
  FillSlots(p);
  return p;
}

TensorView Matrix(std::vector<float>& data, int64_t rows, int64_t columns) {
  return TensorView(data.data(), {rows, columns});
}

// What both sides are told, pointing into p.
LinearMixerArgs Describe(Problem& p) {
  const Case& c = p.c;
  const int64_t all = p.tokens + 1;
  LinearMixerArgs a;
  a.decay = c.decay;
  a.update = c.update;
  a.heads = c.heads;
  a.heads_q = c.heads_q;
  a.heads_k = c.heads_k;
  a.heads_v = c.heads_v;
  a.heads_g = c.decay == Decay::kVector ? c.heads_g : c.heads;
  a.key_dim = c.K;
  a.value_dim = c.V;
  const TensorView in = Matrix(p.in, all, p.row);
  a.qkv = in.Columns(0, p.qkv_width);
  if (c.width > 0) {
    a.conv_weight = Matrix(p.conv_weight, p.qkv_width, c.width);
    if (c.conv_bias) a.conv_bias = TensorView(p.conv_bias.data(), {p.qkv_width});
    a.window = p.window.data();
  }
  a.activation = c.silu ? Activation::kSilu : Activation::kNone;
  a.window_dtype = c.window;
  a.l2_norm = c.l2_norm;
  a.q_scale = 1.0f / std::sqrt(static_cast<float>(c.K));
  a.decay_form = c.form;
  if (c.fixed_decay) {
    a.fixed_decay = TensorView(p.fixed.data(), {c.heads});
  } else if (c.decay != Decay::kNone) {
    a.decay_x = c.f32_decay ? Matrix(p.decay_f32, all, p.decay_width)
                            : in.Columns(p.decay_at, p.decay_width);
    if (c.decay_bias) a.decay_bias = TensorView(p.decay_bias.data(), {p.decay_width});
    if (c.form != Form::kLogSigmoid) {
      a.exp_a = TensorView(p.exp_a.data(), {c.decay == Decay::kVector ? a.heads_g : c.heads});
    }
  }
  a.has_clamp = c.clamp;
  a.clamp_min = -0.05f;
  if (c.update == Update::kDelta) a.beta_x = in.Columns(p.beta_at, c.heads);
  if (c.gate) a.gate = in.Columns(p.gate_at, p.heads_v());
  a.gate_activation = c.sigmoid_gate ? Activation::kSigmoid : Activation::kSilu;
  if (c.norm_weight) a.norm_weight = TensorView(p.norm.data(), {c.V});
  a.out = Matrix(p.out, all, p.out_row).Columns(0, p.heads_v());
  a.offsets = TensorView(p.offsets.data(), {p.sequences + 1});
  a.slots = TensorView(p.slots.data(), {p.sequences});
  a.fresh = TensorView(p.fresh.data(), {p.sequences});
  a.host_offsets = p.offsets.data();
  a.singles = static_cast<int>(p.singles);
  a.state = p.state.data();
  a.slot_stride_bytes = p.slot_floats * 4;
  return a;
}

// Of one rounding inside the recurrence, relative.
double InnerEps(const Case& c, bool single) {
  return c.activations == DType::kBF16 && !single ? 0x1p-8 : kEps;
}

// The single ops on the CPU, in p. Returns how far each output may stray, per (token, head): what
// the sum behind it may lose, relative to the norm it is divided by.
std::vector<double> Compose(Problem& p, ThreadPool* pool) {
  const Case& c = p.c;
  const Stream stream{Device::kCpu, pool, nullptr};
  const int64_t all = p.tokens + 1;
  LinearMixerArgs a = Describe(p);
  if (c.width > 0) {
    ShortConvArgs conv;
    conv.x = conv.out = a.qkv;
    conv.weight = a.conv_weight;
    conv.bias = a.conv_bias;
    conv.activation = a.activation;
    conv.offsets = a.offsets;
    conv.slots = a.slots;
    conv.fresh = a.fresh;
    conv.state = a.window;
    conv.slot_stride_bytes = p.window_floats * 4;
    ShortConv(conv, stream);
  } else {
    Activate(a.qkv, a.activation, a.qkv, stream);
  }
  const int64_t q = int64_t{c.heads_q} * c.K, k = int64_t{c.heads_k} * c.K;
  const TensorView rows_q = a.qkv.Columns(0, q), rows_k = a.qkv.Columns(q, k);
  if (c.l2_norm) {
    L2Norm({rows_q, c.K, a.l2_eps, 1.0f, rows_q}, stream);
    L2Norm({rows_k, c.K, a.l2_eps, 1.0f, rows_k}, stream);
  }
  RecurrenceArgs r;
  r.decay = a.decay;
  r.update = a.update;
  r.scale = a.q_scale;
  r.heads = c.heads;
  r.q = rows_q.Reshape({all, c.heads_q, c.K});
  r.k = rows_k.Reshape({all, c.heads_k, c.K});
  r.v = a.qkv.Columns(q + k, int64_t{c.heads_v} * c.V).Reshape({all, c.heads_v, c.V});
  if (c.fixed_decay) r.g = a.fixed_decay.Reshape({1, c.heads});
  std::vector<float> g(all * p.decay_width), beta(all * c.heads), o(all * p.heads_v(), kPoison);
  if (a.decay_x.defined()) {
    r.g = Matrix(g, all, p.decay_width);
    LogDecay({a.decay_form, a.decay_x, a.decay_bias, a.exp_a, a.normalizer, a.clamp_min,
              a.has_clamp, a.lower_bound, r.g},
             stream);
    if (c.decay == Decay::kVector) r.g = r.g.Reshape({all, a.heads_g, c.K});
  }
  if (c.update == Update::kDelta) {
    r.beta = Matrix(beta, all, c.heads);
    Beta(a.beta_x, a.beta_scale, r.beta, stream);
  }
  r.out = TensorView(o.data(), {all, c.heads, c.V});
  r.offsets = a.offsets;
  r.slots = a.slots;
  r.fresh = a.fresh;
  r.state = a.state;
  r.slot_stride_bytes = a.slot_stride_bytes;
  const std::vector<float> before = p.state;
  RecurrenceReference(r);

  std::vector<double> error(all * c.heads, 0.0);
  for (int64_t s = 0; s < p.sequences; ++s) {
    if (p.slots[s] < 0) continue;
    for (int h = 0; h < c.heads; ++h) {
      double peak = 0.0;  // of the state
      for (int64_t i = 0; i < int64_t{c.V} * c.K; ++i) {
        const int64_t at = p.slots[s] * p.slot_floats + int64_t{h} * c.V * c.K + i;
        peak = std::max(peak, std::abs(double{p.state[at]}));
        if (p.fresh[s] == 0) peak = std::max(peak, std::abs(double{before[at]}));
      }
      for (int64_t t = p.offsets[s]; t < p.offsets[s + 1]; ++t) {
        double q1 = 0.0, squares = 0.0;
        for (int i = 0; i < c.K; ++i) {
          q1 += std::abs(double{r.q.row<float>(t)[h / (c.heads / c.heads_q) * c.K + i]});
        }
        for (int i = 0; i < c.V; ++i) {
          const double x = o[(t * c.heads + h) * c.V + i];
          squares += x * x;
        }
        const double rms = std::sqrt(squares / c.V + a.norm_eps);
        error[t * c.heads + h] = 8 * InnerEps(c, s < p.singles) *
                                 std::sqrt(double{1} * c.K + c.lengths[s]) * peak * q1 * a.q_scale /
                                 std::sqrt(double{1} * c.K) / rms;
      }
    }
  }
  GatedRmsNormArgs norm;
  norm.x = Matrix(o, all, p.heads_v()).Rows(0, p.tokens);
  if (c.gate) norm.gate = a.gate.Rows(0, p.tokens);
  norm.activation = a.gate_activation;
  norm.weight = a.norm_weight;
  norm.group = c.V;
  norm.eps = a.norm_eps;
  norm.out = a.out.Rows(0, p.tokens);
  GatedRmsNorm(norm, stream);
  return error;
}

// The fused op on the GPU, in p.
void RunFused(Problem& p) {
  const Case& c = p.c;
  DeviceMirror mirror(Device::kCuda, c.activations, nullptr);
  LinearMixerArgs a = Describe(p);
  mirror.Activation(Matrix(p.in, p.tokens + 1, p.row));
  a.qkv = mirror.Activation(a.qkv);
  a.gate = mirror.Activation(a.gate);
  a.beta_x = mirror.Activation(a.beta_x);
  a.decay_x = c.f32_decay ? mirror.Plain(a.decay_x) : mirror.Activation(a.decay_x);
  a.out = mirror.Activation(a.out);
  for (TensorView* x : {&a.conv_weight, &a.conv_bias, &a.decay_bias, &a.exp_a, &a.fixed_decay,
                        &a.norm_weight, &a.offsets, &a.slots, &a.fresh}) {
    *x = mirror.Plain(*x);
  }
  // A slot holds the state, four floats of nobody, and the window.
  const int64_t element = DTypeSize(c.window), floats = p.slot_floats * 4;
  const int64_t stride = (floats + p.window_floats * element + 15) / 16 * 16;
  std::vector<std::byte> slots(static_cast<size_t>((p.sequences + 2) * stride));
  const auto each = [&](auto&& copy) {
    for (int64_t s = 0; s < p.sequences + 2; ++s) {
      copy(slots.data() + s * stride, p.state.data() + s * p.slot_floats,
           p.window.data() + s * p.window_floats);
    }
  };
  each([&](std::byte* slot, const float* state, const float* window) {
    std::memcpy(slot, state, floats);
    for (int64_t i = 0; i < p.window_floats; ++i) {
      const BFloat16 narrow = ToBFloat16(window[i]);
      std::memcpy(slot + floats + i * element,
                  element == 2 ? static_cast<const void*>(&narrow) : &window[i], element);
    }
  });
  a.state = mirror.Memory(slots.data(), slots.size());
  if (c.width > 0) a.window = static_cast<std::byte*>(a.state) + floats;
  a.slot_stride_bytes = stride;
  ASSERT_TRUE(LinearMixerSupported(a, mirror.stream()));
  const int64_t scratch = LinearMixerScratchBytes(a, p.tokens + 1, p.sequences);
  if (scratch > 0) a.scratch = mirror.Scratch(static_cast<size_t>(scratch));
  LinearMixer(a, mirror.stream());
  mirror.Fetch();
  each([&](std::byte* slot, float* state, float* window) {
    std::memcpy(state, slot, floats);
    for (int64_t i = 0; i < p.window_floats; ++i) {
      BFloat16 narrow;
      std::memcpy(element == 2 ? static_cast<void*>(&narrow) : &window[i],
                  slot + floats + i * element, element);
      if (element == 2) window[i] = ToFloat(narrow);
    }
  });
}

void ExpectOutputs(const Problem& got, const Problem& want, const std::vector<double>& error) {
  const Case& c = got.c;
  const double rounding = c.activations == DType::kBF16 ? 0x1p-8 : 4 * kEps;
  int reported = 0;
  for (int64_t t = 0; t <= got.tokens; ++t) {
    for (int64_t i = 0; i < got.out_row && reported < 3; ++i) {
      const int64_t at = t * got.out_row + i;
      if (t == got.tokens || i >= got.heads_v()) {
        ASSERT_TRUE(std::isnan(got.out[at])) << "written at " << t << ", " << i;
        continue;
      }
      const double y = want.out[at];
      double slope = c.norm_weight ? std::abs(double{want.norm[i % c.V]}) : 1.0;
      if (c.gate) {
        const double x = want.in[t * want.row + want.gate_at + i];
        slope *= std::abs((c.sigmoid_gate ? 1.0 : x) / (1 + std::exp(-x)));
      }
      // Through the chunk form the output is rounded once more, before the norm.
      const double tolerance = error[t * c.heads + i / c.V] * slope + 3 * rounding * std::abs(y);
      if (std::abs(got.out[at] - y) <= tolerance) continue;
      ADD_FAILURE() << "out[" << t << ", " << i << "] = " << got.out[at] << ", not " << y
                    << " within " << tolerance;
      ++reported;
    }
  }
}

void ExpectStates(const Problem& got, const Problem& want, const Problem& before) {
  const Case& c = got.c;
  std::vector<double> tolerance(want.state.size(), 0.0);
  for (int64_t s = 0; s < want.sequences; ++s) {
    if (want.slots[s] < 0 || c.lengths[s] == 0) continue;
    const int64_t base = want.slots[s] * want.slot_floats;
    double peak = 0.0;
    for (int64_t i = base; i < base + want.state_floats(); ++i) {
      peak = std::max(peak, std::abs(double{want.state[i]}));
      if (want.fresh[s] == 0) peak = std::max(peak, std::abs(double{before.state[i]}));
    }
    const double factor =
        8 * InnerEps(c, s < want.singles) * std::sqrt(double{1} * c.K + c.lengths[s]);
    std::fill_n(tolerance.begin() + base, want.state_floats(), factor * peak);
  }
  int reported = 0;
  for (size_t i = 0; i < want.state.size() && reported < 3; ++i) {
    if (std::isnan(want.state[i]) ? std::isnan(got.state[i])
                                  : std::abs(double{got.state[i]} - want.state[i]) <= tolerance[i])
      continue;
    ADD_FAILURE() << "state[" << i << "] = " << got.state[i] << ", not " << want.state[i]
                  << " within " << tolerance[i];
    ++reported;
  }
}

class LinearMixerCase : public ::testing::TestWithParam<Case> {};

TEST_P(LinearMixerCase, IsTheSingleOps) {
  WEIR_NEEDS_GPU();
  if (cuda::Device().major < 9) GTEST_SKIP() << "composed of single ops before sm_90";
  ThreadPool pool(2);
  const Problem before = MakeProblem(GetParam());
  Problem want = before, got = before;
  const std::vector<double> error = Compose(want, &pool);
  want.in = before.in;
  RunFused(got);
  if (HasFatalFailure()) return;
  ExpectOutputs(got, want, error);
  ExpectStates(got, want, before);
  EXPECT_TRUE(SameBits(got.window, want.window));
  EXPECT_TRUE(SameBits(got.in, want.in)) << "inputs are read only";
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  Case gdn;
  gdn.name = "gdn";
  gdn.activations = gdn.window = DType::kBF16;
  cases.push_back(gdn);
  Case kda = gdn;
  kda.name = "kda";
  kda.decay = Decay::kVector;
  kda.heads_q = kda.heads_k = 4;
  kda.sigmoid_gate = true;
  cases.push_back(kda);
  Case gla = kda;
  gla.name = "gla";
  gla.update = Update::kAdditive;
  gla.form = Form::kLogSigmoid;
  gla.width = 0;
  gla.silu = gla.l2_norm = false;
  gla.heads_k = gla.heads_v = gla.heads_g = 2;
  cases.push_back(gla);
  Case many = gdn;  // more blocks than run at once
  many.name = "many";
  many.heads_q = many.heads_k = 1;
  many.heads = many.heads_v = 2;
  many.lengths.assign(1200, 1);
  many.K = many.V = 64;
  cases.push_back(many);
  many.name = "many_share_a_window";  // so that one block takes their heads
  many.lengths.assign(300, 1);
  many.K = many.V = 128;
  cases.push_back(many);
  many.name = "many_channel_decays";
  many.decay = Decay::kVector;
  many.heads_g = 2;
  cases.push_back(many);
  many.name = "many_of_four";
  many.decay = Decay::kScalar;
  many.heads = many.heads_v = 4;
  cases.push_back(many);
  for (Case* c : {&gdn, &kda, &gla}) {
    c->name += "_mixed";
    c->lengths = {1, 1, 1, 1, 1, 70, 2, 0, 1, 64};
    cases.push_back(*c);
  }
  for (uint32_t seed = 1; seed <= 60; ++seed) cases.push_back(RandomCase(seed, seed % 3 == 0));
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cases, LinearMixerCase, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

TEST(LinearMixer, IsComposedOnTheCpu) {
  Problem p = MakeProblem(Case{});
  ThreadPool pool(1);
  EXPECT_FALSE(LinearMixerSupported(Describe(p), {Device::kCpu, &pool, nullptr}));
}

TEST(LinearMixer, LeavesOtherShapesToTheSingleOps) {
  WEIR_NEEDS_GPU();
  DeviceMirror mirror(Device::kCuda, DType::kF32, nullptr);
  Case c;
  c.lengths = {1};
  for (int K : {64, 96}) {
    c.K = K;
    Problem p = MakeProblem(c);
    EXPECT_EQ(LinearMixerSupported(Describe(p), mirror.stream()),
              K == 64 && cuda::Device().major >= 9);
  }
}

}  // namespace
}  // namespace weir::kernels
