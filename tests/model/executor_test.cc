// What the executor promises the scheduler beyond logits: sampling, log probabilities, fed-back
// tokens, steps in flight, copies, slots used again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "model/check.h"
#include "model/model.h"
#include "scheduler/executor.h"
#include "tests/model/checkpoint_writer.h"

namespace weir::model {
namespace {

using scheduler::SamplingParams;
using scheduler::SequenceInput;
using scheduler::StepPlan;
using scheduler::StepResult;

// Every kind of state: matrices, conv windows, rings, pages, counters of a routed layer.
constexpr char kConfig[] = R"({"model_type": "hybrid", "vocab_size": 61, "hidden_size": 24,
  "feed_forward": {"type": "swiglu", "intermediate_size": 20},
  "layers": [
    {"type": "gated_deltanet", "params": {"num_heads": 2}},
    {"type": "attn", "params": {"num_heads": 2, "num_kv_heads": 1}},
    {"type": "parallel", "mixers": [{"type": "mamba2", "params": {"num_heads": 3, "state_size": 5}},
                                    {"type": "local_attn", "params": {"num_heads": 2, "window": 6}}]},
    {"type": "routed", "top_k": 1, "mixers": [{"type": "gla", "params": {"num_heads": 2}},
                                              {"type": "attn", "params": {"num_heads": 2}},
                                              {"type": "short_conv"}]}]})";

class ExecutorTest : public testing::Test {
 protected:
  void SetUp() override {
    static const std::string folder = WriteModel("executor", kConfig);
    LoadOptions options;
    options.device = DeviceChoice::kCpu;
    options.dtype = ComputeDType::kF32;
    options.slots = 6;
    options.pages = 60;
    options.page_tokens = 4;
    options.max_step_tokens = 64;
    options.max_step_sequences = 5;
    options.threads = 2;
    auto model = LoadModel(folder, options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    executor_ = model_->executor();
    greedy_.temperature = 0;
    for (int slot = 0; slot < 6; ++slot) {
      pages_.emplace_back(10);
      std::iota(pages_.back().begin(), pages_.back().end(), 10 * slot);
    }
  }

  // A run of `tokens` by the sequence that lives in `slot` and its ten pages.
  SequenceInput Input(int slot, int position, absl::Span<const int32_t> tokens) {
    SequenceInput input;
    input.sequence = 100 + static_cast<uint64_t>(slot);
    input.slot = slot;
    input.pages = pages_[static_cast<size_t>(slot)];
    input.position = position;
    input.tokens = tokens;
    return input;
  }
  SequenceInput Sampled(SequenceInput input, const SamplingParams& params, uint64_t draw = 0) {
    input.sample = true;
    input.sampling = &params;
    input.draw = draw;
    return input;
  }
  StepResult Run(std::vector<SequenceInput> sequences) {
    executor_->Submit({std::move(sequences)});
    return executor_->Wait();
  }
  std::vector<float> Logits(SequenceInput input) {
    input.all_logits = true;
    return Run({input}).outputs[0].logits;
  }

  static int32_t ArgMax(absl::Span<const float> row) {
    return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
  }
  static std::vector<double> LogSoftmax(absl::Span<const float> row) {
    double sum = 0;
    for (const float x : row) sum += std::exp(double{x});
    std::vector<double> out;
    for (const float x : row) out.push_back(x - std::log(sum));
    return out;
  }

  std::unique_ptr<LoadedModel> model_;
  scheduler::Executor* executor_ = nullptr;
  SamplingParams greedy_;
  std::vector<std::vector<int32_t>> pages_;
  const std::vector<int32_t> prompt_ = {3, 1, 41, 59, 26, 5, 35, 8, 9, 7, 9, 32, 38};
};

TEST_F(ExecutorTest, StatesItsLimits) {
  const scheduler::ExecutorLimits& limits = executor_->limits();
  EXPECT_EQ(limits.vocab_size, 61);
  EXPECT_EQ(limits.max_step_tokens, 64);
  EXPECT_EQ(limits.max_step_sequences, 5);
  EXPECT_EQ(limits.cache.slots, 6);
  EXPECT_EQ(limits.cache.pages, 60);
  EXPECT_EQ(limits.layout.page_tokens, 4);
  EXPECT_EQ(limits.layout.slot_bytes % 64, 0);
}

TEST_F(ExecutorTest, GreedyIsTheLargestLogit) {
  const std::vector<float> logits = Logits(Input(0, 0, prompt_));
  ASSERT_EQ(logits.size(), 61 * prompt_.size());
  const absl::Span<const float> last = absl::MakeConstSpan(logits).last(61);
  const StepResult result = Run({Sampled(Input(1, 0, prompt_), greedy_)});
  EXPECT_EQ(result.outputs[0].sequence, 101u);
  EXPECT_EQ(result.outputs[0].chosen.token, ArgMax(last));
  EXPECT_TRUE(result.outputs[0].chosen.top.empty());
  // Without `sample` nothing is chosen.
  EXPECT_EQ(Run({Input(2, 0, prompt_)}).outputs[0].chosen.token, -1);
}

TEST_F(ExecutorTest, AllLogitsAndSampleTogether) {
  SequenceInput input = Sampled(Input(0, 0, prompt_), greedy_);
  SamplingParams biased = greedy_;
  biased.logit_bias = {{7, 1000.0f}};
  input.sampling = &biased;
  input.all_logits = true;
  const StepResult result = Run({input});
  EXPECT_EQ(result.outputs[0].chosen.token, 7);
  EXPECT_EQ(result.outputs[0].logits, Logits(Input(1, 0, prompt_)));  // untouched by the bias
}

TEST_F(ExecutorTest, LogprobsAreOfTheModel) {
  const std::vector<float> logits = Logits(Input(0, 0, prompt_));
  const std::vector<double> expected = LogSoftmax(absl::MakeConstSpan(logits).last(61));
  SamplingParams params;
  params.temperature = 0.7f;
  params.seed = 5;
  params.logprobs = 4;
  const StepResult result = Run({Sampled(Input(1, 0, prompt_), params)});
  const scheduler::TokenLogprob& chosen = result.outputs[0].chosen;
  ASSERT_GE(chosen.token, 0);
  EXPECT_NEAR(chosen.logprob, expected[static_cast<size_t>(chosen.token)], 1e-4);
  ASSERT_EQ(chosen.top.size(), 4u);
  EXPECT_EQ(chosen.top[0].first, ArgMax(absl::MakeConstSpan(logits).last(61)));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(chosen.top[i].second, expected[static_cast<size_t>(chosen.top[i].first)], 1e-4);
    EXPECT_LE(chosen.top[i].second, chosen.top[i > 0 ? i - 1 : 0].second);
  }
}

// More rows than one block of logits holds, over two chunks of the prompt.
TEST_F(ExecutorTest, PromptLogprobsCoverEveryTokenAcrossChunks) {
  const std::vector<float> logits = Logits(Input(0, 0, prompt_));
  std::vector<scheduler::TokenLogprob> got;
  for (const auto& [begin, end] : {std::pair<size_t, size_t>{0, 8}, {8, prompt_.size()}}) {
    SequenceInput input =
        Input(1, static_cast<int>(begin), absl::MakeConstSpan(prompt_).subspan(begin, end - begin));
    input.prompt_logprobs = 2;
    input.next_prompt_token = end < prompt_.size() ? prompt_[end] : -1;
    const StepResult result = Run({input, Sampled(Input(2, 0, prompt_), greedy_)});
    EXPECT_TRUE(result.outputs[1].prompt_logprobs.empty());
    const auto& part = result.outputs[0].prompt_logprobs;
    got.insert(got.end(), part.begin(), part.end());
  }
  ASSERT_EQ(got.size(), prompt_.size() - 1);
  for (size_t t = 0; t < got.size(); ++t) {
    const std::vector<double> expected =
        LogSoftmax(absl::MakeConstSpan(logits).subspan(t * 61, 61));
    EXPECT_EQ(got[t].token, prompt_[t + 1]);
    EXPECT_NEAR(got[t].logprob, expected[static_cast<size_t>(prompt_[t + 1])], 1e-4) << t;
    ASSERT_EQ(got[t].top.size(), 2u);
    EXPECT_NEAR(got[t].top[0].second, *std::max_element(expected.begin(), expected.end()), 1e-4);
  }
}

// The same draws whatever shares the batch, and different ones for another seed or index.
TEST_F(ExecutorTest, DrawsDependOnSeedAndIndexAlone) {
  SamplingParams warm;
  warm.temperature = 5.0f;
  warm.seed = 11;
  std::vector<int32_t> alone, crowded, other;
  SamplingParams reseeded = warm;
  reseeded.seed = 12;
  for (uint64_t draw = 0; draw < 12; ++draw) {
    alone.push_back(Run({Sampled(Input(0, 0, prompt_), warm, draw)}).outputs[0].chosen.token);
    other.push_back(Run({Sampled(Input(0, 0, prompt_), reseeded, draw)}).outputs[0].chosen.token);
    crowded.push_back(
        Run({Sampled(Input(3, 0, absl::MakeConstSpan(prompt_).first(1)), reseeded, draw),
             Sampled(Input(1, 0, prompt_), warm, draw), Input(2, 0, prompt_)})
            .outputs[1]
            .chosen.token);
  }
  EXPECT_EQ(alone, crowded);
  EXPECT_NE(alone, other);
  EXPECT_GT(std::set<int32_t>(alone.begin(), alone.end()).size(), 2u);
}

TEST_F(ExecutorTest, ForbiddenTokensAreNeverChosen) {
  const int32_t best = Run({Sampled(Input(0, 0, prompt_), greedy_)}).outputs[0].chosen.token;
  SequenceInput input = Sampled(Input(0, 0, prompt_), greedy_);
  const std::vector<int32_t> forbidden = {best};
  input.forbidden = forbidden;
  EXPECT_NE(Run({input}).outputs[0].chosen.token, best);
}

// Two steps in flight, each fed the token of the one before: the same as one at a time.
TEST_F(ExecutorTest, FeedsThePreviousTokenInFlight) {
  ASSERT_EQ(executor_->limits().max_in_flight, 2);
  std::vector<int32_t> expected;
  expected.push_back(Run({Sampled(Input(0, 0, prompt_), greedy_)}).outputs[0].chosen.token);
  for (int i = 0; i < 6; ++i) {
    const std::vector<int32_t> token = {expected.back()};
    const int position = static_cast<int>(prompt_.size()) + i;
    expected.push_back(Run({Sampled(Input(0, position, token), greedy_)}).outputs[0].chosen.token);
  }
  const std::vector<int32_t> nothing = {-1};
  std::vector<int32_t> fed;
  executor_->Submit(
      {{Sampled(Input(1, 0, prompt_), greedy_), Sampled(Input(2, 0, prompt_), greedy_)}});
  for (int i = 0; i < 6; ++i) {
    SequenceInput input = Sampled(Input(1, static_cast<int>(prompt_.size()) + i, nothing), greedy_);
    input.feed_previous = true;
    StepPlan plan{{input}};
    executor_->Submit(plan);
    plan.sequences.clear();  // the plan itself need not live on
    fed.push_back(executor_->Wait().outputs[0].chosen.token);
  }
  fed.push_back(executor_->Wait().outputs[0].chosen.token);
  EXPECT_EQ(fed, expected);
}

// A penalty must see the token that was fed and not yet known to the caller.
TEST_F(ExecutorTest, PenaltiesSeeTheFedToken) {
  SamplingParams penalised = greedy_;
  penalised.presence_penalty = 1000.0f;
  const std::vector<int32_t> nothing = {-1};
  std::vector<int32_t> chosen;
  std::deque<std::vector<int32_t>> histories;  // each lives until its step is done
  executor_->Submit({{Sampled(Input(0, 0, prompt_), penalised)}});
  for (int i = 0; i < 20; ++i) {
    SequenceInput input =
        Sampled(Input(0, static_cast<int>(prompt_.size()) + i, nothing), penalised);
    input.feed_previous = true;
    histories.push_back(chosen);
    input.generated = histories.back();
    executor_->Submit({{input}});
    chosen.push_back(executor_->Wait().outputs[0].chosen.token);
  }
  chosen.push_back(executor_->Wait().outputs[0].chosen.token);
  EXPECT_EQ(std::set<int32_t>(chosen.begin(), chosen.end()).size(), chosen.size());
}

// A fork copies the slot and the pages that it must own; both go on as one would.
TEST_F(ExecutorTest, CopyForks) {
  Run({Input(0, 0, prompt_)});
  const std::vector<std::pair<int32_t, int32_t>> slots = {{0, 4}};
  const std::vector<std::pair<int32_t, int32_t>> pages = {{0, 40}, {1, 41}, {2, 42}, {3, 43}};
  executor_->Copy(slots, pages);
  const std::vector<int32_t> left = {4}, right = {17};
  const int position = static_cast<int>(prompt_.size());
  const std::vector<float> one = Logits(Input(0, position, left));
  const std::vector<float> two = Logits(Input(4, position, right));
  Run({Input(1, 0, prompt_)});
  EXPECT_EQ(Logits(Input(1, position, left)), one);
  Run({Input(2, 0, prompt_)});
  EXPECT_EQ(Logits(Input(2, position, right)), two);
}

TEST_F(ExecutorTest, CopiesTakeEffectInCallOrder) {
  Run({Input(0, 0, prompt_)});
  const int position = static_cast<int>(prompt_.size());
  const std::vector<int32_t> token = {4};
  std::vector<std::byte> state(static_cast<size_t>(executor_->limits().layout.BytesFor(position)));
  const std::vector<int32_t> owned = {0, 1, 2, 3}, other = {20, 21, 22, 23};
  // Copied out behind a step that is in flight, which must be part of it.
  executor_->Submit({{Input(0, position, token)}});
  executor_->CopyOut(0, owned, state.data());
  executor_->Wait();
  executor_->CopyIn(2, other, state.data());
  EXPECT_EQ(Logits(Input(0, position + 1, token)), Logits(Input(2, position + 1, token)));
}

// Nothing of a slot's former tenant shows, also where a routed mixer was not yet picked.
TEST_F(ExecutorTest, UsedSlotsAreAsGoodAsNew) {
  std::vector<std::vector<float>> clean, dirty;
  const auto pass = [&](int slot, std::vector<std::vector<float>>* rows) {
    for (size_t t = 0; t < prompt_.size(); ++t) {
      rows->push_back(
          Logits(Input(slot, static_cast<int>(t), absl::MakeConstSpan(prompt_).subspan(t, 1))));
    }
  };
  pass(0, &clean);
  std::vector<int32_t> others(40);
  for (size_t i = 0; i < others.size(); ++i) others[i] = static_cast<int32_t>((i * 17 + 5) % 61);
  Run({Input(3, 0, others)});
  pass(3, &dirty);
  EXPECT_EQ(clean, dirty);
}

// Rows of a decode batch are those of a mixed batch, bit for bit, in whatever order they are
// planned.
TEST_F(ExecutorTest, MixedBatchesDecodeExactly) {
  Run({Input(0, 0, prompt_), Input(1, 0, prompt_)});
  const std::vector<int32_t> token = {33};
  const int position = static_cast<int>(prompt_.size());
  const std::vector<float> alone = Logits(Input(0, position, token));
  SequenceInput decode = Input(1, position, token);
  decode.all_logits = true;
  const StepResult mixed = Run({Input(2, 0, prompt_), Input(4, 0, prompt_), decode});
  EXPECT_EQ(mixed.outputs[2].logits, alone);
}

TEST(ExecutorTypes, Bf16WeightsAndF16Checkpoints) {
  // bf16 values exactly: served in f32 and in bf16 they differ by the rounding of activations
  // alone.
  const std::string folder = WriteModel("bf16", kConfig, DType::kBF16);
  std::vector<std::vector<float>> logits;
  for (const ComputeDType dtype : {ComputeDType::kF32, ComputeDType::kAuto}) {
    LoadOptions options;
    options.device = DeviceChoice::kCpu;
    options.dtype = dtype;
    options.slots = 2;
    options.pages = 20;
    auto model = LoadModel(folder, options);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->info().checkpoint_dtype, DType::kBF16);
    ManualEngine engine((*model)->executor(), 1);
    const int sequence = *engine.Open(30);
    logits.push_back(engine.Step({{sequence, {3, 1, 41, 59, 26}}})[0]);
  }
  EXPECT_GT(RelativeError(logits[1], logits[0]), 1e-6);
  EXPECT_LT(RelativeError(logits[1], logits[0]), 5e-2);
}

// The smallest and the oddest dimensions: whole and token by token agree, and numbers stay finite.
TEST(ExecutorTypes, OddShapes) {
  const char* layers[] = {
      R"({"type": "gla", "params": {"num_heads": 1, "head_k_dim": 1, "head_v_dim": 1, "gate_low_rank_dim": 1}})",
      R"({"type": "gla", "params": {"num_heads": 3, "num_kv_heads": 1, "head_k_dim": 129, "head_v_dim": 3,
          "use_short_conv": true, "conv_size": 1, "conv_bias": true, "clamp_min": 0}})",
      R"({"type": "simple_gla", "params": {"num_heads": 1, "head_k_dim": 2, "conv_size": 9}})",
      R"({"type": "retnet", "params": {"num_heads": 2, "head_k_dim": 2, "use_short_conv": true}})",
      R"({"type": "linear_attn", "params": {"num_heads": 1, "head_k_dim": 1, "feature_map": "elu",
          "norm_feature_map": true}})",
      R"({"type": "delta_net", "params": {"num_heads": 1, "head_k_dim": 1, "use_beta": false,
          "allow_neg_eigval": true, "use_short_conv": false}})",
      R"({"type": "gated_deltanet", "params": {"num_heads": 1, "num_v_heads": 5, "head_dim": 3}})",
      R"({"type": "kda", "params": {"num_heads": 1, "head_dim": 65, "expand_v": 2, "conv_size": 1,
          "lower_bound": -5}})",
      R"({"type": "mamba2", "params": {"num_heads": 1, "head_dim": 1, "state_size": 1, "conv_size": 1}})",
      R"({"type": "mamba2", "params": {"num_heads": 6, "n_groups": 3, "head_dim": 5, "state_size": 70,
          "rms_norm": false, "time_step_limit": [0.01, 0.1], "use_bias": true}})",
      R"({"type": "local_attn", "params": {"num_heads": 1, "window": 1, "head_dim": 2}})",
      R"({"type": "attn", "params": {"num_heads": 1, "head_dim": 1, "rope_theta": null}})",
      R"({"type": "attn", "params": {"num_heads": 5, "num_kv_heads": 1, "head_dim": 6, "qk_norm": true,
          "partial_rotary_factor": 0, "output_gate": true, "qkv_bias": true}})",
      R"({"type": "short_conv", "params": {"conv_size": 1, "bias": true}})",
      R"({"type": "routed", "mixers": [{"type": "short_conv"}]})",
      R"({"type": "parallel", "mixers": [{"type": "attn", "params": {"num_heads": 1, "head_dim": 2}}]})",
  };
  std::vector<int32_t> tokens(70);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 5);
  for (const char* layer : layers) {
    const std::string config = absl::StrCat(
        R"({"model_type": "hybrid", "vocab_size": 5, "hidden_size": 7, "norm": "layer_norm",)",
        R"("embedding_multiplier": 3, "logits_multiplier": 0.5, "tie_word_embeddings": true,)",
        R"("residual_multiplier": 0.7, "layers": [)", layer, ",", layer, "]}");
    LoadOptions options;
    options.device = DeviceChoice::kCpu;
    options.slots = 3;
    options.pages = 300;
    options.page_tokens = 1;
    auto model = LoadModel(WriteModel("odd", config), options);
    ASSERT_TRUE(model.ok()) << model.status() << layer;
    ManualEngine engine((*model)->executor(), 1);
    const std::vector<float> whole = engine.Step({{*engine.Open(80), tokens}})[0];
    const int sequence = *engine.Open(80);
    std::vector<float> singles;
    for (const int32_t token : tokens) {
      const std::vector<float> row = engine.Step({{sequence, {token}}})[0];
      singles.insert(singles.end(), row.begin(), row.end());
    }
    EXPECT_LE(RelativeError(singles, whole), 1e-5) << layer;
    EXPECT_GT(RelativeError(std::vector<float>(whole.size(), 0.0f), whole), 0.5) << layer;
  }
}

TEST(ExecutorTypes, RandomWeightsAreTheSameEveryTime) {
  const std::string file = MakeFolder("random") + "/shape.json";
  WriteText(file, kConfig);
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.random_weights = true;
  options.slots = 2;
  options.pages = 20;
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 2; ++i) {
    options.threads = 1 + i;
    auto model = LoadModel(file, options);
    ASSERT_TRUE(model.ok()) << model.status();
    ManualEngine engine((*model)->executor(), 1);
    logits.push_back(engine.Step({{*engine.Open(30), {3, 1, 41}}})[0]);
    EXPECT_TRUE(
        std::all_of(logits[0].begin(), logits[0].end(), [](float x) { return std::isfinite(x); }));
  }
  EXPECT_EQ(logits[0], logits[1]);
}

}  // namespace
}  // namespace weir::model
