// The services over a fake executor, as a client sees them: what goes in comes out, and every
// refusal has its code and its details.
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "tests/server/test_model.h"
#include "tests/server/test_server.h"
#include "weir/v1/info.grpc.pb.h"
#include "weir/v1/tokenize.grpc.pb.h"

namespace weir::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

TestServer::Options DefaultOptions() {
  TestServer::Options options;
  options.model = TestModel();
  return options;
}

// What the fake must answer to the same prompt.
std::vector<int32_t> ExpectedIds(const TestServer& server, const std::vector<int32_t>& prompt,
                                 int32_t max_tokens, uint64_t seed, int32_t choice = 0) {
  scheduler::Request request;
  request.prompt = prompt;
  request.max_tokens = max_tokens;
  request.sampling.seed = seed;
  request.num_choices = choice + 1;
  return Expected(request, choice, server.model().limits).tokens;
}

TEST(ServiceTest, IdsGoInAndStreamOut) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = IdsRequest({1, 2, 3}, 20);
  request.mutable_sampling()->set_seed(42);
  const Gathered out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  ASSERT_TRUE(out.events.front().has_accepted());
  ASSERT_TRUE(out.events.back().has_finished());
  EXPECT_EQ(out.accepted.prompt_tokens(), 3);
  EXPECT_EQ(out.accepted.seed(), 42u);
  EXPECT_EQ(out.accepted.max_tokens(), 20);
  ASSERT_EQ(out.choices.size(), 1u);
  EXPECT_EQ(out.choices[0].ids, ExpectedIds(server, {1, 2, 3}, 20, 42));
  EXPECT_EQ(out.choices[0].finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(out.finished.usage().completion_tokens(), 20);
  EXPECT_GT(out.finished.timings().total_us(), 0);
  server.ExpectNothingHeld();
}

TEST(ServiceTest, TheTextIsThatOfTheIds) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = IdsRequest({9}, 200);
  request.set_text("Hello, w\xc3\xb6rld");
  const Gathered out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.accepted.prompt_tokens(), 13);
  EXPECT_EQ(out.choices[0].text, *server.model().tokenizer->Decode(
                                     [&] {
                                       // Rows past the tokenizer's vocabulary have no text.
                                       std::vector<int32_t> known;
                                       for (int32_t id : out.choices[0].ids) {
                                         if (id < server.model().tokenizer->vocab_size()) {
                                           known.push_back(id);
                                         }
                                       }
                                       return known;
                                     }(),
                                     /*skip_special_tokens=*/true));
}

TEST(ServiceTest, EveryChoiceIsItsOwn) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = IdsRequest({5, 6}, 15);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  request.mutable_output()->set_logprobs(3);
  request.mutable_output()->set_prompt_logprobs(1);
  request.set_n(4);
  const Gathered out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  ASSERT_EQ(out.choices.size(), 4u);
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(out.choices[i].ids, ExpectedIds(server, {5, 6}, 15, 7, i)) << i;
    EXPECT_THAT(out.choices[i].logprobs.token_ids(), ElementsAreArray(out.choices[i].ids));
    EXPECT_EQ(out.choices[i].logprobs.top_token_ids_size(), 45);
  }
  EXPECT_THAT(out.prompt_logprobs.token_ids(), ElementsAre(6));
  EXPECT_EQ(out.finished.usage().completion_tokens(), 60);
}

TEST(ServiceTest, TokensComeWithTheirBytesWhereAskedFor) {
  TestServer server(DefaultOptions());
  const text::Tokenizer& tokenizer = *server.model().tokenizer;
  v1::GenerateRequest request = IdsRequest({9}, 30);
  request.set_text("\xc3\xb6<|end|>");
  v1::OutputOptions* output = request.mutable_output();
  output->set_logprobs(2);
  output->set_prompt_logprobs(1);
  output->set_pieces(true);
  output->set_prompt_token_ids(true);
  const Gathered out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_THAT(out.accepted.prompt_token_ids(), ElementsAre(0xc3, 0xb6, kEndId));
  EXPECT_THAT(out.accepted.prompt_pieces(), ElementsAre("\xc3", "\xb6", "<|end|>"));
  EXPECT_THAT(out.prompt_logprobs.pieces(), ElementsAre("\xb6", "<|end|>"));
  const v1::Logprobs& logprobs = out.choices[0].logprobs;
  ASSERT_EQ(logprobs.pieces_size(), 30);
  ASSERT_EQ(logprobs.top_pieces_size(), 60);
  for (int i = 0; i < 60; ++i) {
    const int32_t id = logprobs.top_token_ids(i);
    const std::string want = id == kEndId                    ? "<|end|>"
                             : id == kUserId || id == kBotId ? logprobs.top_pieces(i)
                                                             : tokenizer.TokenBytes(id);
    EXPECT_EQ(logprobs.top_pieces(i), want) << id;
  }
  output->set_pieces(false);
  EXPECT_EQ(server.Generate(request).choices[0].logprobs.pieces_size(), 0);
}

TEST(ServiceTest, BadRequestsNameEveryField) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = IdsRequest({1, 99999}, 5);
  request.mutable_sampling()->set_top_p(3);
  const Gathered out = server.Generate(request);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  google::rpc::BadRequest bad;
  ASSERT_TRUE(GetDetail(out.status, &bad));
  ASSERT_EQ(bad.field_violations_size(), 2);
  EXPECT_EQ(bad.field_violations(0).field(), "token_ids.ids[1]");
  EXPECT_EQ(bad.field_violations(1).field(), "sampling.top_p");
  EXPECT_TRUE(out.events.empty());
  EXPECT_TRUE(server.Generate(IdsRequest({1}, 2)).status.ok());  // it goes on serving
}

TEST(ServiceTest, WhatCanNeverFitIsRefusedWithNumbers) {
  TestServer::Options options = DefaultOptions();
  options.model.limits.cache.pages = 4;  // 32 tokens
  TestServer server(options);
  const Gathered out = server.Generate(IdsRequest({1, 2}, 100));
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(out.status.error_message(), HasSubstr("4"));
  EXPECT_TRUE(server.Generate(IdsRequest({1, 2}, 20)).status.ok());
}

TEST(ServiceTest, RawGarbageIsAnInvalidArgument) {
  TestServer server(DefaultOptions());
  std::string answer;
  const grpc::Status status =  // text = two bytes that are no UTF-8
      CallRaw(server.channel(), "/weir.v1.GenerationService/Generate", "\x0a\x02\xff\xfe", &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("text: is not valid UTF-8: byte 0"));
}

TEST(ServiceTest, TokenizeAndDetokenizeAreInverse) {
  TestServer server(DefaultOptions());
  const auto stub = v1::TokenizerService::NewStub(server.channel());
  v1::TokenizeRequest tokenize;
  tokenize.set_text("a\xc3\xa9<|end|>");
  tokenize.set_pieces(true);
  v1::TokenizeResponse tokens;
  grpc::ClientContext rpc;
  ASSERT_TRUE(stub->Tokenize(&rpc, tokenize, &tokens).ok());
  EXPECT_THAT(tokens.ids(), ElementsAre('a', 0xc3, 0xa9, kEndId));
  EXPECT_THAT(tokens.pieces(), ElementsAre("a", "\xc3", "\xa9", "<|end|>"));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_ids() = tokens.ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext rpc2;
  ASSERT_TRUE(stub->Detokenize(&rpc2, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "a\xc3\xa9");
  detokenize.set_skip_special_tokens(false);
  detokenize.add_ids(kVocabSize - 1);  // a row without a token
  grpc::ClientContext rpc3;
  ASSERT_TRUE(stub->Detokenize(&rpc3, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "a\xc3\xa9<|end|>");

  v1::TokenizeRequest chat;
  chat.mutable_chat()->add_messages()->set_role("user");
  chat.mutable_chat()->mutable_messages(0)->set_content("x");
  grpc::ClientContext rpc4;
  ASSERT_TRUE(stub->Tokenize(&rpc4, chat, &tokens).ok());
  EXPECT_THAT(tokens.ids(), ElementsAre(kUserId, 'x', kEndId, kBotId));
  EXPECT_EQ(tokens.rendered(), "<|user|>x<|end|><|bot|>");

  detokenize.add_ids(kVocabSize);
  grpc::ClientContext rpc5;
  const grpc::Status status = stub->Detokenize(&rpc5, detokenize, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("ids[5]"));
}

TEST(ServiceTest, ModelAndServerInfoTellTheTruth) {
  TestServer::Options options = DefaultOptions();
  options.model.sampling.temperature = 0.5f;
  TestServer server(options);
  const auto stub = v1::ModelService::NewStub(server.channel());
  v1::GetModelResponse model;
  grpc::ClientContext rpc;
  ASSERT_TRUE(stub->GetModel(&rpc, {}, &model).ok());
  EXPECT_EQ(model.model().vocab_size(), kVocabSize);
  EXPECT_EQ(model.limits().slots(), 16);
  EXPECT_EQ(model.model().state_bytes_per_sequence(), 1024);
  EXPECT_EQ(model.model().kv_bytes_per_token(), 32);
  EXPECT_TRUE(model.model().has_tokenizer());
  EXPECT_THAT(model.model().chat_template(), HasSubstr("<|bot|>"));
  EXPECT_EQ(model.model().default_sampling().temperature(), 0.5f);
  EXPECT_TRUE(model.model().default_sampling().has_top_k());

  v1::GetServerInfoResponse info;
  grpc::ClientContext rpc2;
  ASSERT_TRUE(stub->GetServerInfo(&rpc2, {}, &info).ok());
  EXPECT_EQ(info.state(), v1::SERVING_STATE_SERVING);
  EXPECT_EQ(info.limits().slots(), 16);
  EXPECT_EQ(info.limits().max_choices(), 16);
  EXPECT_EQ(info.load().steps(), 0);
  EXPECT_EQ(info.load().since_last_step_ms(), -1);
  server.Generate(IdsRequest({1}, 3));
  grpc::ClientContext rpc3;
  ASSERT_TRUE(stub->GetServerInfo(&rpc3, {}, &info).ok());
  EXPECT_GE(info.load().steps(), 3);
  EXPECT_EQ(info.load().slots_used(), 0);
}

TEST(ServiceTest, CallsAreCountedByCode) {
  TestServer server(DefaultOptions());
  server.Generate(IdsRequest({1}, 3));
  server.Generate(IdsRequest({}, 3));
  // The counter moves after the client has its status.
  const std::string ok = "weir_grpc_calls_total{code=\"OK\",method=\"Generate\"} 1";
  const std::string bad = "weir_grpc_calls_total{code=\"INVALID_ARGUMENT\",method=\"Generate\"} 1";
  std::string text;
  for (int i = 0; i < 500; ++i) {
    text = server.registry().Serialize();
    if (text.find(ok) != std::string::npos && text.find(bad) != std::string::npos) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_THAT(text, HasSubstr(ok));
  EXPECT_THAT(text, HasSubstr(bad));
  EXPECT_THAT(text, HasSubstr("weir_open_streams 0"));
  EXPECT_THAT(text, HasSubstr("weir_memory_bytes{kind=\"state\"} 16384"));
}

}  // namespace
}  // namespace weir::testing
