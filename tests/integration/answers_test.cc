// Tools and reasoning with the model that ships, over the real service.
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kWeather[] =
    R"({"type": "function", "function": {"name": "get_weather", "description": "Weather of a city.",)"
    R"( "parameters": {"type": "object", "properties": {"city": {"type": "string", "description":)"
    R"( "name of the city"}}, "required": ["city"]}}})";

struct Parsed {
  grpc::Status status;
  int32_t prompt_tokens = 0;
  std::vector<int32_t> ids;
  std::vector<int32_t> logprob_ids;
  std::string text, reasoning;
  std::vector<v1::ToolCallDelta> calls;
  v1::ChoiceFinished finished;
};

Parsed Parse(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request) {
  Parsed out;
  grpc::ClientContext rpc;
  const auto reader = stub.Generate(&rpc, request);
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
    if (event.has_accepted()) out.prompt_tokens = event.accepted().prompt_tokens();
    if (event.has_choice_finished()) out.finished = event.choice_finished();
    if (!event.has_delta()) continue;
    const v1::Delta& delta = event.delta();
    out.text += delta.text();
    out.reasoning += delta.reasoning();
    out.ids.insert(out.ids.end(), delta.token_ids().begin(), delta.token_ids().end());
    for (const int32_t id : delta.logprobs().token_ids()) out.logprob_ids.push_back(id);
    for (const v1::ToolCallDelta& call : delta.tool_calls()) {
      if (!call.name().empty()) out.calls.emplace_back(call).clear_arguments();
      out.calls.back().mutable_arguments()->append(call.arguments());
    }
  }
  out.status = reader->Finish();
  return out;
}

class AnswersTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = new ServerProcess({"--slots", "4"}); }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  static v1::GenerateRequest Ask(const std::string& question) {
    v1::GenerateRequest request;
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(question);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(120);
    request.mutable_output()->set_parse_answer(true);
    return request;
  }
  static v1::GenerateRequest AskWeather() {
    v1::GenerateRequest request = Ask("What is the weather in Bergen?");
    request.mutable_chat()->add_tools(kWeather);
    return request;
  }

  static ServerProcess* server_;
};

ServerProcess* AnswersTest::server_ = nullptr;

TEST_F(AnswersTest, AToolIsCalledAndItsResultSaid) {
  v1::GenerateRequest request = AskWeather();
  const Parsed call = Parse(server_->generation(), request);
  ASSERT_TRUE(call.status.ok()) << call.status.error_message();
  EXPECT_THAT(call.text, IsEmpty());
  EXPECT_THAT(call.reasoning, IsEmpty());
  ASSERT_EQ(call.calls.size(), 1u);
  EXPECT_EQ(call.calls[0].name(), "get_weather");
  EXPECT_THAT(call.calls[0].id(), StartsWith("call_"));
  EXPECT_EQ(nlohmann::json::parse(call.calls[0].arguments()), nlohmann::json({{"city", "Bergen"}}));
  EXPECT_EQ(call.finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(call.finished.tool_calls(), 1);

  v1::ChatMessage* assistant = request.mutable_chat()->add_messages();
  assistant->set_role("assistant");
  v1::ToolCall* made = assistant->add_tool_calls();
  made->set_id(call.calls[0].id());
  made->set_name(call.calls[0].name());
  made->set_arguments(call.calls[0].arguments());
  v1::ChatMessage* result = request.mutable_chat()->add_messages();
  result->set_role("tool");
  result->set_tool_call_id(call.calls[0].id());
  result->set_content(R"({"temperature": 21, "sky": "sunny"})");
  const Parsed said = Parse(server_->generation(), request);
  ASSERT_TRUE(said.status.ok()) << said.status.error_message();
  EXPECT_THAT(said.calls, IsEmpty());
  EXPECT_THAT(said.text, HasSubstr("21"));
  EXPECT_THAT(said.text, HasSubstr("Bergen"));
}

TEST_F(AnswersTest, TheTokensAreTheSameAsUnparsed) {
  v1::GenerateRequest request = AskWeather();
  request.mutable_output()->set_logprobs(1);
  const Parsed parsed = Parse(server_->generation(), request);
  request.mutable_output()->set_parse_answer(false);
  const Parsed plain = Parse(server_->generation(), request);
  EXPECT_EQ(parsed.ids, plain.ids);
  EXPECT_EQ(parsed.logprob_ids, parsed.ids);  // each beside its token, also of tags
  EXPECT_THAT(plain.text, StartsWith("<tool_call>"));
  EXPECT_THAT(plain.calls, IsEmpty());
  EXPECT_EQ(plain.finished.tool_calls(), 0);
}

TEST_F(AnswersTest, TheReasoningOfASumIsApart) {
  const Parsed sum = Parse(server_->generation(), Ask("What is 47 + 38?"));
  ASSERT_TRUE(sum.status.ok()) << sum.status.error_message();
  EXPECT_THAT(sum.reasoning, StartsWith("47+38"));
  EXPECT_THAT(sum.reasoning, Not(HasSubstr("think>")));
  EXPECT_EQ(sum.text, "47 + 38 = 85");
  constexpr int32_t kThinkEnd = 7;  // "</think>"
  const auto end = std::find(sum.ids.begin(), sum.ids.end(), kThinkEnd);
  ASSERT_NE(end, sum.ids.end());
  EXPECT_EQ(sum.finished.reasoning_tokens(), end - sum.ids.begin() + 1);
}

// The last message opens the reasoning, so the answer begins inside it.
TEST_F(AnswersTest, APromptMayEndInsideTheReasoning) {
  v1::GenerateRequest request = Ask("What is 47 + 38?");
  v1::ChatMessage* begun = request.mutable_chat()->add_messages();
  begun->set_role("assistant");
  begun->set_content("<think>\n47+38: ");
  request.mutable_chat()->set_continue_final_message(true);
  const Parsed sum = Parse(server_->generation(), request);
  ASSERT_TRUE(sum.status.ok()) << sum.status.error_message();
  EXPECT_THAT(sum.reasoning, HasSubstr("write"));
  EXPECT_EQ(sum.text, "47 + 38 = 85");
}

TEST_F(AnswersTest, WithToolUseNoneTheModelSeesNoTools) {
  v1::GenerateRequest request = AskWeather();
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_NONE);
  const Parsed none = Parse(server_->generation(), request);
  request.mutable_chat()->clear_tools();
  request.clear_tool_use();
  const Parsed without = Parse(server_->generation(), request);
  EXPECT_EQ(none.ids, without.ids);
  EXPECT_EQ(none.prompt_tokens, without.prompt_tokens);
  EXPECT_THAT(none.calls, IsEmpty());
}

v1::ModelInfo Model(ServerProcess& server) {
  grpc::ClientContext rpc;
  v1::GetModelResponse response;
  EXPECT_TRUE(v1::ModelService::NewStub(server.channel())
                  ->GetModel(&rpc, v1::GetModelRequest(), &response)
                  .ok());
  return response.model();
}

TEST_F(AnswersTest, TheParsersAreToldAndCanBeSet) {
  EXPECT_EQ(Model(*server_).tool_parser(), "hermes");
  EXPECT_EQ(Model(*server_).reasoning_parser(), "think");
  ServerProcess plain({"--slots", "4", "--tool-parser", "none", "--reasoning-parser", "none"});
  EXPECT_EQ(Model(plain).tool_parser(), "");
  EXPECT_EQ(Model(plain).reasoning_parser(), "");
  const Parsed call = Parse(plain.generation(), AskWeather());
  EXPECT_THAT(call.text, StartsWith("<tool_call>"));
  EXPECT_THAT(Parse(plain.generation(), Ask("What is 47 + 38?")).text, StartsWith("<think>"));
}

}  // namespace
}  // namespace weir::testing
