#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/model.h"
#include "tests/model/checkpoint_writer.h"

namespace weir::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Fields Parse(const std::string& text) { return *Fields::Parse(text, "config.json"); }

TEST(Fields, ReadsWhatIsThere) {
  const Fields f =
      Parse(R"({"n": 3, "x": 0.5, "b": true, "s": "t", "z": null, "l": [1, 2], "o": {"k": 1}})");
  EXPECT_EQ(f.Int("n", 0, 5), 3);
  EXPECT_EQ(f.Int("z", 0, 5, 4), 4);
  EXPECT_EQ(f.Number("x", 0, 1), 0.5);
  EXPECT_EQ(f.Number("n", 0, 9), 3.0);
  EXPECT_TRUE(f.Bool("b", false));
  EXPECT_EQ(f.Choice("s", {"r", "t"}), "t");
  EXPECT_THAT(f.IntList("l", 0, 9), testing::ElementsAre(1, 2));
  EXPECT_THAT(f.IntList("n", 0, 9), testing::ElementsAre(3));
  EXPECT_TRUE(f.IsNull("z"));
  EXPECT_FALSE(f.Has("z"));
  EXPECT_EQ(f.Object("o", true).Int("k", 0, 1), 1);
  f.RefuseUnknown();
  EXPECT_TRUE(f.ok()) << f.status();
}

TEST(Fields, ComplainsOfEverythingAtOnceByNameAndValue) {
  const Fields f =
      Parse(R"({"a": -3, "b": "x", "c": 1e300, "d": 12345678901234567890, "e": [1, "y"],
                             "o": {"k": false}, "odd": 1})");
  f.Int("a", 1, 9);
  f.Bool("b", true);
  f.Int("c", 1, 9);
  f.Int("d", 1, 9);
  f.IntList("e", 0, 9);
  f.Object("o", true).Number("k", 0, 1);
  f.String("missing");
  f.RefuseUnknown();
  EXPECT_THAT(
      std::string(f.status().message()),
      AllOf(HasSubstr("a is -3; it must be from 1 to 9"), HasSubstr("b is \"x\""),
            HasSubstr("c is 1e+300; it must be an integer"), HasSubstr("d is 12345678901234567890"),
            HasSubstr("e holds \"y\""), HasSubstr("o.k is false"), HasSubstr("missing is missing"),
            HasSubstr("odd is not a key")));
  EXPECT_EQ(f.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Fields, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "[]", "3", "{", "{\"a\": \"\xff\"}", "nul"}) {
    EXPECT_EQ(Fields::Parse(text, "config.json").status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
  std::string deep = "{\"vocab_size\": ";
  deep.append(1000000, '[');
  deep.append(1000000, ']');
  EXPECT_THAT(std::string(Fields::Parse(deep + "}", "config.json").status().message()),
              HasSubstr("nests brackets"));
}

// A hybrid config with `change` put in place of (or beside) its own keys.
std::string Hybrid(const std::string& layers, const std::string& more = "") {
  return R"({"model_type": "hybrid", "vocab_size": 50, "hidden_size": 24, "layers": [)" + layers +
         "]" + more + "}";
}

absl::Status Describe(const std::string& config) {
  const std::string folder = MakeFolder("config");
  WriteText(folder + "/config.json", config);
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.random_weights = true;
  return DescribeModel(folder, options).status();
}

struct BadConfig {
  const char* name;
  std::string config;
  const char* says;
};
class BadConfigTest : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefusedByName) {
  const absl::Status status = Describe(GetParam().config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Hybrid, BadConfigTest,
    testing::Values(
        BadConfig{"NoVocab",
                  R"({"model_type": "hybrid", "hidden_size": 8, "layers": [{"type": "gla"}]})",
                  "vocab_size is missing"},
        BadConfig{"NoLayers", R"({"model_type": "hybrid", "vocab_size": 8, "hidden_size": 8})",
                  "layers is missing"},
        BadConfig{"EmptyLayers", Hybrid(""), "layers has 0 entries"},
        BadConfig{"LayerIsText", Hybrid("\"gla\""), "layers[0] is \"gla\""},
        BadConfig{"UnknownMixer", Hybrid(R"({"type": "glu"})"), "served are: gla, simple_gla"},
        BadConfig{"UnknownKey", Hybrid(R"({"type": "gla"})", R"(, "hiden_act": 1)"),
                  "hiden_act is not a key"},
        BadConfig{"UnknownLayerKey", Hybrid(R"({"type": "gla", "top_k": 1})"),
                  "layers[0].top_k is not a key"},
        BadConfig{"UnknownParam", Hybrid(R"({"type": "attn", "params": {"windows": 3}})"),
                  "layers[0].params.windows is not a key"},
        BadConfig{"NegativeHeads", Hybrid(R"({"type": "gla", "params": {"num_heads": -4}})"),
                  "layers[0].params.num_heads is -4; it must be from 1"},
        BadConfig{"AbsurdHeads", Hybrid(R"({"type": "gla", "params": {"num_heads": 1000000000}})"),
                  "num_heads is 1000000000"},
        BadConfig{"HeadsAreText", Hybrid(R"({"type": "gla", "params": {"num_heads": "4"}})"),
                  "num_heads is \"4\"; it must be an integer"},
        BadConfig{"TooManyHeads", Hybrid(R"({"type": "attn", "params": {"num_heads": 25}})"),
                  "give head_dim"},
        BadConfig{"KvHeads",
                  Hybrid(R"({"type": "attn", "params": {"num_heads": 4, "num_kv_heads": 3}})"),
                  "num_kv_heads is 3: it must divide num_heads, 4"},
        BadConfig{"ValueHeads",
                  Hybrid(R"({"type": "kda", "params": {"num_heads": 4, "num_v_heads": 6}})"),
                  "num_v_heads is 6: it must be a multiple of num_heads, 4"},
        BadConfig{"Groups",
                  Hybrid(R"({"type": "mamba2", "params": {"num_heads": 4, "n_groups": 3}})"),
                  "n_groups is 3: it must divide"},
        BadConfig{"NoWindow", Hybrid(R"({"type": "local_attn"})"), "window is missing"},
        BadConfig{
            "OddRotary",
            Hybrid(R"({"type": "attn", "params": {"head_dim": 6, "partial_rotary_factor": 0.5}})"),
            "must be even"},
        BadConfig{"OddRetnet", Hybrid(R"({"type": "retnet", "params": {"head_k_dim": 5}})"),
                  "is odd"},
        BadConfig{"PositiveClamp", Hybrid(R"({"type": "gla", "params": {"clamp_min": 1}})"),
                  "clamp_min is 1"},
        BadConfig{"LowerBound", Hybrid(R"({"type": "kda", "params": {"lower_bound": -6}})"),
                  "lower_bound is -6"},
        BadConfig{"TimeStepLimit",
                  Hybrid(R"({"type": "mamba2", "params": {"time_step_limit": [1, 0.5]}})"),
                  "time_step_limit"},
        BadConfig{"FeatureMap",
                  Hybrid(R"({"type": "linear_attn", "params": {"feature_map": "dpfp"}})"),
                  "feature_map is \"dpfp\"; served are"},
        BadConfig{"RopeType",
                  Hybrid(R"({"type": "attn", "params": {"rope_scaling": {"rope_type": "yarn"}}})"),
                  "rope_type is \"yarn\""},
        BadConfig{"Norm", Hybrid(R"({"type": "gla"})", R"(, "norm": "batch_norm")"),
                  "norm is \"batch_norm\""},
        BadConfig{"FeedForwardType",
                  Hybrid(R"({"type": "gla"})",
                         R"(, "feed_forward": {"type": "moe", "intermediate_size": 4})"),
                  "feed_forward.type is \"moe\""},
        BadConfig{"FeedForwardSize",
                  Hybrid(R"({"type": "gla"})", R"(, "feed_forward": {"type": "mlp"})"),
                  "feed_forward.intermediate_size is missing"},
        BadConfig{"NestedJoin",
                  Hybrid(R"({"type": "parallel", "mixers": [{"type": "routed", "mixers": []}]})"),
                  "do not nest"},
        BadConfig{"EmptyJoin", Hybrid(R"({"type": "parallel", "mixers": []})"),
                  "it must hold 1 to 64 mixers"},
        BadConfig{
            "TopK",
            Hybrid(
                R"({"type": "routed", "top_k": 3, "mixers": [{"type": "gla"}, {"type": "attn"}]})"),
            "top_k is 3; it must be from 1 to 2"},
        BadConfig{"EosPastVocab", Hybrid(R"({"type": "gla"})", R"(, "eos_token_id": [2, 50])"),
                  "eos_token_id holds 50"}),
    [](const auto& info) { return info.param.name; });

std::string Gla(const std::string& more) {
  return R"({"model_type": "gla", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2)" +
         more + "}";
}
std::string Qwen(const std::string& more) {
  return R"({"model_type": "qwen3_5_text", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 4,
             "intermediate_size": 32, "num_attention_heads": 2, "linear_num_key_heads": 2,
             "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
             "head_dim": 16)" +
         more + "}";
}

INSTANTIATE_TEST_SUITE_P(
    Published, BadConfigTest,
    testing::Values(
        BadConfig{"GlaFeatureMap", Gla(R"(, "feature_map": "relu")"),
                  "feature_map is \"relu\": this option"},
        BadConfig{"GlaAttnres", Gla(R"(, "attnres_block_size": 4)"), "attnres_block_size is 4"},
        BadConfig{"GlaNoGate", Gla(R"(, "use_gk": false)"), "use_gk is false"},
        BadConfig{"GlaHeads", Gla(R"(, "num_heads": 5)"),
                  "num_heads is 5: it must divide int(hidden_size"},
        BadConfig{"GlaAct", Gla(R"(, "hidden_act": "relu")"), "hidden_act is \"relu\""},
        BadConfig{"GlaAttnLayer", Gla(R"(, "attn": {"layers": [2], "num_heads": 2})"),
                  "attn.layers holds 2"},
        BadConfig{
            "GlaAttnTwice",
            Gla(R"(, "attn": [{"layers": [1], "num_heads": 2}, {"layers": [1], "num_heads": 2}])"),
            "layer 1 is named twice"},
        BadConfig{"GlaAttnKey", Gla(R"(, "attn": {"layers": [1], "num_heads": 2, "rank": 3})"),
                  "attn.rank is not a key"},
        BadConfig{"QwenExperts", Qwen(R"(, "num_experts": 8)"),
                  "num_experts is 8: models with experts"},
        BadConfig{
            "QwenLayerType",
            Qwen(R"(, "layer_types": ["full_attention", "sliding_attention", "mamba", "mamba"])"),
            "\"sliding_attention\" is not a layer type"},
        BadConfig{"QwenLayerCount", Qwen(R"(, "layer_types": ["full_attention"])"),
                  "it has 1 entries, num_hidden_layers is 4"},
        BadConfig{"QwenRope", Qwen(R"(, "rope_parameters": {"rope_type": "yarn"})"),
                  "rope_parameters.rope_type is \"yarn\""},
        BadConfig{"QwenNoGate", Qwen(R"(, "attn_output_gate": false)"),
                  "attn_output_gate is false"},
        BadConfig{"MultimodalWithoutText", R"({"model_type": "qwen3_5"})",
                  "text_config is missing"}),
    [](const auto& info) { return info.param.name; });

TEST(Families, AreRefusedByNameWhenUnknown) {
  const absl::Status status = Describe(R"({"model_type": "llama"})");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("\"llama\""), HasSubstr("hybrid, gla")));
  EXPECT_THAT(std::string(Describe("{}").message()), HasSubstr("model_type is missing"));
  EXPECT_TRUE(Describe(Gla("")).ok()) << Describe(Gla(""));
  EXPECT_TRUE(Describe(Qwen("")).ok()) << Describe(Qwen(""));
}

TEST(Families, StateBeyondAnyMachineIsRefused) {
  const absl::Status status = Describe(Hybrid(
      R"({"type": "gla", "params": {"num_heads": 4096, "head_k_dim": 1048576, "head_v_dim": 1048576}})"));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace weir::model
