// `weir bench serve` against a real server: what it counts is what was served.
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

class BenchServeTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = new ServerProcess({"--slots", "8", "--max-queued-requests", "8"});
  }
  static void TearDownTestSuite() { delete server_; }

  static Ran Bench(std::vector<std::string> flags) {
    flags.insert(flags.begin(),
                 {WeirBinary(), "bench", "serve", "--address", server_->grpc_address()});
    return RunProgram(flags);
  }
  static Json Result(const Ran& ran) {
    EXPECT_EQ(ran.exit_code, 0) << ran.err;
    return Json::parse(ran.out, nullptr, false);
  }

  static ServerProcess* server_;
};
ServerProcess* BenchServeTest::server_ = nullptr;

void ExpectOrdered(const Json& summary) {
  EXPECT_GT(summary["p50"], 0);
  EXPECT_LE(summary["p50"], summary["p90"]);
  EXPECT_LE(summary["p90"], summary["p95"]);
  EXPECT_LE(summary["p95"], summary["p99"]);
  EXPECT_LE(summary["p99"], summary["max"]);
  EXPECT_LE(summary["mean"], summary["max"]);
}

TEST_F(BenchServeTest, AClosedLoopCountsEveryToken) {
  const Json line = Result(Bench({"--clients", "4", "--requests", "12", "--prompt-tokens", "20",
                                  "--output-tokens", "15", "--connections", "2"}));
  EXPECT_EQ(line["loop"], "closed");
  EXPECT_EQ(line["model"], "weir-tiny");
  EXPECT_EQ(line["sent"], 12);
  EXPECT_EQ(line["completed"], 12);
  EXPECT_EQ(line["errors"], Json::object());
  EXPECT_EQ(line["first_token_ms"]["count"], 12);
  EXPECT_EQ(line["whole_ms"]["count"], 12);
  // Tokens of one message share their gap; those of the first message have none.
  EXPECT_LE(line["inter_token_ms"]["count"], 12 * 14);
  EXPECT_GE(line["message_gap_ms"]["count"], 12);
  for (const char* key : {"first_token_ms", "inter_token_ms", "message_gap_ms", "whole_ms"}) {
    ExpectOrdered(line[key]);
  }
  EXPECT_LE(line["first_token_ms"]["p50"], line["whole_ms"]["p50"]);
  EXPECT_EQ(line["tokens_out"], 180);
  EXPECT_EQ(line["tokens_in"], 240);
  EXPECT_NEAR(line["output_tokens_per_second"].get<double>() * line["seconds"].get<double>(), 180,
              180 * 0.05);
  server_->ExpectNothingHeld();
}

TEST_F(BenchServeTest, AnOpenLoopArrivesByItself) {
  const Json line = Result(Bench({"--rate", "40", "--requests", "30", "--seed", "5",
                                  "--prompt-tokens", "10", "--output-tokens", "4"}));
  EXPECT_EQ(line["loop"], "open");
  EXPECT_EQ(line["sent"], 30);
  // Arrivals do not wait for the server: a slow one refuses what its queue cannot hold.
  EXPECT_EQ(line["completed"].get<int>() + line["errors"].value("RESOURCE_EXHAUSTED", 0), 30);
  EXPECT_GE(line["completed"], 8);
  // The arrivals of a seed are fixed: 30 gaps of 25 ms at the mean.
  EXPECT_GT(line["seconds"], 0.4);
  EXPECT_LT(line["seconds"], 3.0);
}

TEST_F(BenchServeTest, TimeEndsItAndNothingIsLeftBehind) {
  const Json line = Result(Bench({"--clients", "3", "--seconds", "1", "--warmup", "0.2",
                                  "--prompt-tokens", "10", "--output-tokens", "2000"}));
  EXPECT_NEAR(line["seconds"], 1.0, 0.05);
  EXPECT_EQ(line["completed"].get<int>() + line["cut"].get<int>(), line["sent"]);
  EXPECT_EQ(line["cut"], 3);
  EXPECT_GT(line["output_tokens_per_second"], 50);
  server_->ExpectNothingHeld();
}

TEST_F(BenchServeTest, RefusalsAreCountedByCode) {
  // 8 run, 8 wait, the others are refused for now and come again.
  const Json line = Result(Bench(
      {"--clients", "40", "--requests", "200", "--prompt-tokens", "10", "--output-tokens", "100"}));
  const int refused = line["errors"].value("RESOURCE_EXHAUSTED", 0);
  EXPECT_GT(refused, 0);
  EXPECT_GE(line["completed"], 8);
  EXPECT_EQ(line["completed"].get<int>() + refused, 200);
  server_->ExpectNothingHeld();
}

TEST_F(BenchServeTest, PromptsAndTracesAreReplayed) {
  const std::string prompts = TempFolder() + "/prompts.jsonl";
  WriteWhole(prompts,
             "{\"prompt\": \"Once upon a time\", \"output_tokens\": 5}\n\n"
             "{\"tokens\": [30, 40, 50], \"output_tokens\": 7}\n"
             "{\"messages\": [{\"role\": \"user\", \"content\": \"What is 4 plus 5?\"}]}\n");
  Json line = Result(Bench({"--clients", "1", "--prompts", prompts, "--output-tokens", "9"}));
  EXPECT_EQ(line["completed"], 3);
  EXPECT_EQ(line["tokens_out"], 21);

  const std::string csv = TempFolder() + "/trace.csv";
  WriteWhole(csv,
             "TIMESTAMP,ContextTokens,GeneratedTokens\n"
             "2023-11-16 18:15:46.6805900,37,4\n2023-11-16 18:15:48.6805900,20,6\n");
  line = Result(Bench({"--trace", csv, "--trace-speed", "4"}));
  EXPECT_EQ(line["completed"], 2);
  EXPECT_GE(line["seconds"], 0.5);
  EXPECT_EQ(line["tokens_in"], 57);
  EXPECT_EQ(line["tokens_out"], 10);

  const std::string json = TempFolder() + "/trace.jsonl";
  WriteWhole(json,
             "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 3, "
             "\"hash_ids\": [7, 8]}\n");
  line = Result(Bench({"--trace", json, "--clients", "1", "--requests", "2"}));
  EXPECT_EQ(line["completed"], 2);
}

TEST_F(BenchServeTest, MistakesAreSentences) {
  const auto error = [](const std::vector<std::string>& flags) {
    const Ran ran = Bench(flags);
    EXPECT_EQ(ran.exit_code, 1);
    return ran.err;
  };
  EXPECT_THAT(error({}), HasSubstr("name the load: --clients N"));
  EXPECT_THAT(error({"--clients", "2", "--rate", "3"}), HasSubstr("name one"));
  EXPECT_THAT(error({"--clients", "1", "--prompt-tokens", "9000000"}),
              HasSubstr("do not fit the model's longest sequence"));
  EXPECT_THAT(error({"--clients", "1", "--prompts", "/no/such"}),
              HasSubstr("cannot read /no/such"));
  const std::string bad = TempFolder() + "/bad.jsonl";
  WriteWhole(bad, "{\"prompt\": \"x\"}\n{\"text\": 1}\n");
  EXPECT_THAT(error({"--clients", "1", "--prompts", bad}), HasSubstr(bad + ":2: has none of"));
  EXPECT_THAT(error({"--trace", bad}), HasSubstr(bad + ":1: is no JSON object with a numeric"));
  WriteWhole(bad, "{\"tokens\": [999999]}\n");
  EXPECT_THAT(error({"--clients", "2", "--prompts", bad, "--seconds", "20"}),
              HasSubstr("INVALID_ARGUMENT"));
  const Ran nobody =
      RunProgram({WeirBinary(), "bench", "serve", "--address", "127.0.0.1:1", "--clients", "1"});
  EXPECT_EQ(nobody.exit_code, 1);
  EXPECT_THAT(nobody.err, HasSubstr("no server answers at 127.0.0.1:1"));
}

}  // namespace
}  // namespace weir::testing
