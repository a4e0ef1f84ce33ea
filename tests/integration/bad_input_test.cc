// What clients can get wrong, against the real server: each with the right code and a sentence, and
// the server goes on serving.
#include <cmath>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;
using Request = v1::GenerateRequest;

struct BadCase {
  grpc::StatusCode code;
  const char* sentence;
  std::function<void(Request*)> spoil;  // of a good request
};

void SetNothing(Request*) {}

std::vector<BadCase> BadCases() {
  const auto invalid = grpc::StatusCode::INVALID_ARGUMENT;
  return {
      {invalid, "input: is required", [](Request* r) { r->clear_input(); }},
      {invalid, "text: the prompt is empty", [](Request* r) { r->set_text(""); }},
      {invalid, "token_ids.ids: the prompt is empty", [](Request* r) { r->mutable_token_ids(); }},
      {invalid, "token id 8192 is out of range; the model's ids are 0 to 8191",
       [](Request* r) { r->mutable_token_ids()->add_ids(8192); }},
      {invalid, "token id -1", [](Request* r) { r->mutable_token_ids()->add_ids(-1); }},
      {invalid, "the prompt has 9000 tokens",
       [](Request* r) {
         for (int i = 0; i < 9000; ++i) r->mutable_token_ids()->add_ids(5);
       }},
      {invalid, "stopping.max_tokens: is 9000",
       [](Request* r) { r->mutable_stopping()->set_max_tokens(9000); }},
      {invalid, "sampling.temperature: is nan",
       [](Request* r) { r->mutable_sampling()->set_temperature(NAN); }},
      {invalid, "sampling.top_k", [](Request* r) { r->mutable_sampling()->set_top_k(-1); }},
      {invalid, "sampling.top_p", [](Request* r) { r->mutable_sampling()->set_top_p(0); }},
      {invalid, "sampling.min_p", [](Request* r) { r->mutable_sampling()->set_min_p(1.5f); }},
      {invalid, "sampling.repetition_penalty",
       [](Request* r) { r->mutable_sampling()->set_repetition_penalty(-1); }},
      {invalid, "sampling.presence_penalty",
       [](Request* r) { r->mutable_sampling()->set_presence_penalty(INFINITY); }},
      {invalid, "sampling.frequency_penalty",
       [](Request* r) { r->mutable_sampling()->set_frequency_penalty(-1000); }},
      {invalid, "sampling.logit_bias[9999]",
       [](Request* r) { (*r->mutable_sampling()->mutable_logit_bias())[9999] = 0; }},
      {invalid, "stopping.max_tokens: is 0",
       [](Request* r) { r->mutable_stopping()->set_max_tokens(0); }},
      {invalid, "more than max_tokens",
       [](Request* r) {
         r->mutable_stopping()->set_max_tokens(3);
         r->mutable_stopping()->set_min_tokens(4);
       }},
      {invalid, "stop_strings[0]: is empty",
       [](Request* r) { r->mutable_stopping()->add_stop_strings(""); }},
      {invalid, "stop_token_ids[0]",
       [](Request* r) { r->mutable_stopping()->add_stop_token_ids(10000); }},
      {invalid, "output.logprobs", [](Request* r) { r->mutable_output()->set_logprobs(1000); }},
      {invalid, "output.prompt_logprobs",
       [](Request* r) { r->mutable_output()->set_prompt_logprobs(-2); }},
      {invalid, "both off",
       [](Request* r) {
         r->mutable_output()->set_text(false);
         r->mutable_output()->set_token_ids(false);
       }},
      {invalid, "n: is 1000", [](Request* r) { r->set_n(1000); }},
      {invalid, "priority", [](Request* r) { r->set_priority(-5000); }},
      {invalid, "add_special_tokens",
       [](Request* r) {
         r->mutable_token_ids()->add_ids(3);
         r->set_add_special_tokens(true);
       }},
      {invalid, "chat.messages: at least one", [](Request* r) { r->mutable_chat(); }},
      {invalid, "chat.tools[0]: is no valid JSON",
       [](Request* r) {
         auto* message = r->mutable_chat()->add_messages();
         message->set_role("user");
         message->set_content("hi");
         r->mutable_chat()->add_tools("{");
       }},
      {grpc::StatusCode::OK, "", SetNothing},
  };
}

TEST(BadInputTest, EveryMistakeGetsItsSentence) {
  ServerProcess server({"--slots", "4"});
  for (const BadCase& bad : BadCases()) {
    Request request = LongRequest(5);
    request.set_text("hello");
    bad.spoil(&request);
    const Answer answer = Generate(server.generation(), request);
    EXPECT_EQ(answer.status.error_code(), bad.code) << bad.sentence;
    EXPECT_THAT(answer.status.error_message(), HasSubstr(bad.sentence));
    EXPECT_EQ(answer.status.error_details().empty(), bad.code == grpc::StatusCode::OK);
  }
  server.ExpectNothingHeld();
}

TEST(BadInputTest, AnswersThatCanNeverFitTheMemoryAreRefusedWithNumbers) {
  ServerProcess server({"--slots", "2", "--kv-pages", "10", "--page-tokens", "16"});
  const Answer answer = Generate(server.generation(), LongRequest(500));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("10"));  // pages there are
  EXPECT_THAT(answer.status.error_message(), HasSubstr("32"));  // pages it needs: 503 / 16
  EXPECT_TRUE(Generate(server.generation(), LongRequest(100)).status.ok());
}

grpc::Status SendRaw(const ServerProcess& server, const std::string& method,
                     const std::string& bytes) {
  std::string answer;
  return CallRaw(server.channel(), method, bytes, &answer);
}

TEST(BadInputTest, BytesThatAreNoMessage) {
  ServerProcess server({"--slots", "2", "--max-request-bytes", "10000B"});
  const char* generate = "/weir.v1.GenerationService/Generate";
  grpc::Status status = SendRaw(server, generate,
                                std::string("\x0a\x03"
                                            "ab\xff",
                                            5));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("text: is not valid UTF-8: byte 2"));
  status = SendRaw(server, "/weir.v1.TokenizerService/Tokenize", "\x0a\x02\xc3\x28");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("text: is not valid UTF-8: byte 0"));
  status = SendRaw(server, generate, "\xff\xff\xff");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("no valid weir.v1.GenerateRequest"));
  status = SendRaw(server, generate, std::string(20000, 'x'));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  status = SendRaw(server, "/weir.v1.GenerationService/NoSuchMethod", "");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Generate(server.generation(), LongRequest(5)).status.ok());
  server.ExpectNothingHeld();
}

}  // namespace
}  // namespace weir::testing
