// From folder to loaded model: tensors that do not fit, memory, sizes, random weights, costs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/cost.h"
#include "model/loading.h"
#include "model/model.h"
#include "tests/model/checkpoint_writer.h"

namespace weir::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr char kConfig[] = R"({"model_type": "hybrid", "vocab_size": 40, "hidden_size": 24,
  "feed_forward": {"type": "swiglu", "intermediate_size": 20},
  "layers": [{"type": "gla", "params": {"num_heads": 2}}, {"type": "attn", "params": {"num_heads": 2}}]})";

TEST(Load, NamesAllTensorsThatDoNotFit) {
  const std::string folder = WriteModel("misfit", kConfig);
  TestTensors tensors = RandomTensors(kConfig);
  tensors.erase("model.layers.0.mixer.q_proj.weight");
  tensors.erase("model.norm.weight");
  tensors["model.layers.1.mixer.extra.weight"] = {{2}, {1, 2}};
  tensors["lm_head.weight"] = {{3, 2}, {1, 2, 3, 4, 5, 6}};
  WriteTensors(folder + "/model.safetensors", tensors);
  for (const absl::Status& status :
       {DescribeModel(folder, {}).status(), LoadModel(folder, {}).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("2 missing: model.layers.0.mixer.q_proj.weight, model.norm.weight"),
                      HasSubstr("1 not expected: model.layers.1.mixer.extra.weight"),
                      HasSubstr("lm_head.weight is [3, 2], expected [40, 24]")));
  }
}

TEST(Load, NamesFoldersThatAreNone) {
  EXPECT_EQ(LoadModel("/nonexistent/model", {}).status().code(), absl::StatusCode::kNotFound);
  const std::string folder = MakeFolder("bare");
  EXPECT_THAT(std::string(LoadModel(folder, {}).status().message()), HasSubstr("config.json"));
  WriteText(folder + "/config.json", kConfig);
  EXPECT_THAT(std::string(LoadModel(folder, {}).status().message()),
              HasSubstr("neither model.safetensors nor"));
  WriteText(folder + "/generation_config.json", "{\"eos_token_id\": [3, \"x\"]}");
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.random_weights = true;
  EXPECT_THAT(std::string(LoadModel(folder, options).status().message()),
              HasSubstr("generation_config.json: eos_token_id holds \"x\""));
}

TEST(Load, DescribesWithoutWeights) {
  const std::string folder = WriteModel("described", kConfig, DType::kBF16);
  WriteText(folder + "/generation_config.json", "{\"eos_token_id\": [3, 4], \"bos_token_id\": 1}");
  auto info = DescribeModel(folder, {});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->name, "weir_model_described");
  EXPECT_EQ(info->family, "hybrid");
  EXPECT_EQ(info->num_layers, 2);
  EXPECT_EQ(info->layers_by_mixer.at("gla"), 1);
  EXPECT_EQ(info->checkpoint_dtype, DType::kBF16);
  EXPECT_EQ(info->compute_dtype, DType::kBF16);
  EXPECT_THAT(info->eos_ids, testing::ElementsAre(3, 4));
  EXPECT_THAT(info->bos_ids, testing::ElementsAre(1));
  // gla: 2 heads of [6, 12] f32. attn: K and V of 2 heads of 12 in bf16, 16 tokens a page.
  EXPECT_EQ(info->layout.slot_bytes, 2 * 6 * 12 * 4);
  EXPECT_EQ(info->layout.page_bytes, 16 * 2 * 24 * 2);
  EXPECT_EQ(info->layout.KvBytesPerToken(), 96);
  LoadOptions f32;
  f32.device = DeviceChoice::kCpu;
  f32.dtype = ComputeDType::kF32;
  EXPECT_EQ(DescribeModel(folder, f32)->layout.KvBytesPerToken(), 192);
}

TEST(Load, ReportsProgressToTheEnd) {
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  int64_t last = 0, total = 0;
  int tensors = 0;
  options.progress = [&](int64_t done, int64_t of, int count) {
    EXPECT_GE(done, last);
    EXPECT_GE(count, tensors);
    last = done;
    total = of;
    tensors = count;
  };
  auto model = LoadModel(WriteModel("progress", kConfig), options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(last, total);
  EXPECT_GT(tensors, 10);
  EXPECT_GE((*model)->info().weight_bytes, (*model)->info().num_parameters * 4);
}

TEST(Load, RefusesOptionsOutOfRange) {
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.random_weights = true;
  const std::string folder = MakeFolder("options");
  WriteText(folder + "/config.json", kConfig);
  options.page_tokens = 0;
  EXPECT_THAT(std::string(DescribeModel(folder, options).status().message()),
              HasSubstr("page_tokens is 0; it must be from 1"));
  options.page_tokens = 16;
  options.slots = -1;
  EXPECT_THAT(std::string(DescribeModel(folder, options).status().message()),
              HasSubstr("slots is -1"));
}

TEST(Load, RefusesACacheBeyondMemory) {
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.pages = INT32_MAX;
  options.slots = 2;
  const absl::Status status = LoadModel(WriteModel("beyond", kConfig), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2147483647 pages of 3072 bytes"));
}

TEST(Load, RandomWeightsNeedOnlyAConfigFile) {
  const std::string file = MakeFolder("shape") + "/shape.json";
  WriteText(file, kConfig);
  EXPECT_EQ(LoadModel(file, {}).status().code(), absl::StatusCode::kNotFound);
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.random_weights = true;
  auto model = LoadModel(file, options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->info().name, "shape");
}

TEST(CacheSize, SharesTheBudget) {
  cache::StateLayout layout;
  layout.slot_bytes = 1000;
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.max_step_sequences = 8;
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 5500)->slots, 5);
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 1 << 30)->slots, 32);
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 1 << 30)->pages, 0);
  EXPECT_THAT(std::string(ChooseCacheSize(layout, options, 100, 999).status().message()),
              AllOf(HasSubstr("1000"), HasSubstr("999")));
  layout.page_bytes = 100;
  layout.page_tokens = 10;
  // 100 tokens: 1000 + 10 * 100 bytes each.
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 10000)->slots, 5);
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 10000)->pages, 50);
  options.slots = 3;
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 10000)->slots, 3);
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 10000)->pages, 30);  // no more than can be used
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 3000).status().code(),
            absl::StatusCode::kResourceExhausted);
  options.pages = 7;
  EXPECT_EQ(ChooseCacheSize(layout, options, 100, 10)->pages, 7);
}

// The published 0.8B shape: its numbers worked out by hand.
TEST(Cost, OfAKnownShape) {
  const std::string file = MakeFolder("cost") + "/shape.json";
  WriteText(file, R"({"model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 1024,
    "intermediate_size": 3584, "num_hidden_layers": 24, "num_attention_heads": 8,
    "num_key_value_heads": 2, "tie_word_embeddings": true, "head_dim": 256,
    "linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "dtype": "bfloat16"})");
  LoadOptions options;
  options.device = DeviceChoice::kCpu;
  options.random_weights = true;
  auto info = DescribeModel(file, options);
  ASSERT_TRUE(info.ok()) << info.status();
  // 18 layers: a window of 3 * 6144 and 16 heads of 128 x 128, f32.
  EXPECT_EQ(info->layout.slot_bytes, 18 * (3 * 6144 * 4 + 16 * 128 * 128 * 4));
  // 6 layers: K and V of 2 heads of 256 in bf16.
  EXPECT_EQ(info->layout.KvBytesPerToken(), 6 * 2 * 2 * 256 * 2);
  EXPECT_EQ(info->layers_by_mixer.at("gated_deltanet"), 18);
  EXPECT_EQ(info->compute_dtype, DType::kBF16);
  auto cost = EstimateCost(file, options);
  ASSERT_TRUE(cost.ok()) << cost.status();
  const double delta = 1024.0 * (4 * 2048 + 32) + 2048.0 * 1024;
  const double attention = 1024.0 * (2 * 2048 + 2 * 512) + 2048.0 * 1024;
  const double feed_forward = 3 * 1024.0 * 3584;
  EXPECT_EQ(cost->matrix_flops_per_token, 2 * (18 * delta + 6 * attention + 23 * feed_forward));
  EXPECT_EQ(cost->head_flops, 2 * (1024.0 * 248320 + feed_forward));
  EXPECT_EQ(cost->kv_bytes_per_context_token, 12288);
  EXPECT_EQ(cost->state_bytes, info->layout.slot_bytes);
  EXPECT_NEAR(static_cast<double>(cost->weight_bytes),
              cost->matrix_flops_per_token + cost->head_flops,
              2e6);  // two bytes, two operations; small f32 parameters on top
  EXPECT_EQ(cost->DecodeBytes(2, 100),
            cost->weight_bytes + 2.0 * (2 * cost->state_bytes + 100 * 12288));
}

}  // namespace
}  // namespace weir::model
