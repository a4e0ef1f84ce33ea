// Tools, reasoning and parsed answers in requests: what is valid, and what it means.
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/request_validator.h"
#include "tests/server/test_model.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;

class ToolUseTest : public ::testing::Test {
 protected:
  ToolUseTest() { model_.answer_style = {text::ReasoningStyle::kThink, text::ToolStyle::kHermes}; }

  static v1::GenerateRequest Chat() {
    v1::GenerateRequest request;
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content("hi");
    request.mutable_chat()->add_tools(R"({"name":"now"})");
    request.mutable_chat()->add_tools(R"({"name":"add"})");
    return request;
  }
  auto Validate(const v1::GenerateRequest& request) {
    return ValidateGenerate(request, model_, RequestLimits(), 1);
  }
  auto Fields(const v1::GenerateRequest& request) {
    return GetErrorDetails(Validate(request).status()).field_violations;
  }
  std::string Rendered(const v1::GenerateRequest& request) {
    const auto valid = Validate(request);
    EXPECT_TRUE(valid.ok()) << valid.status();
    std::string rendered;
    EXPECT_TRUE(EncodePrompt(valid->source, model_, &rendered).ok());
    return rendered;
  }

  ServedModel model_ = weir::testing::TestModel();
};

TEST_F(ToolUseTest, ToolsAreShownUnlessTheyAreNotToBe) {
  v1::GenerateRequest request = Chat();
  EXPECT_THAT(Rendered(request), HasSubstr("add"));
  EXPECT_EQ(Validate(request)->tool_use.tools.size(), 2u);
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_AUTO);
  EXPECT_THAT(Rendered(request), HasSubstr("add"));
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_NONE);
  EXPECT_THAT(Rendered(request), Not(HasSubstr("add")));
  EXPECT_TRUE(Validate(request)->tool_use.tools.empty());
}

TEST_F(ToolUseTest, WhatIsSaidToBeTooDeepIsNotRead) {
  v1::GenerateRequest request = Chat();
  constexpr size_t kLevels = 2'000'000;
  request.mutable_chat()->add_tools(R"({"name":"x","parameters":{"a":)" +
                                    std::string(kLevels, '[') + std::string(kLevels, ']') + "}}");
  EXPECT_THAT(Fields(request), ElementsAre(Pair("chat.tools[2]", HasSubstr("deeper than 64"))));
}

TEST_F(ToolUseTest, SchemasThatReferToThemselvesAreReadInTime) {
  v1::GenerateRequest request = Chat();
  std::string choices;
  for (int i = 0; i < 100; ++i) choices += R"({"$ref":"#/properties/a"},)";
  choices.pop_back();
  request.mutable_chat()->add_tools(R"({"name":"x","parameters":{"properties":{"a":{"anyOf":[)" +
                                    choices + "]}}}}");
  EXPECT_EQ(Validate(request)->tool_use.tools.size(), 3u);
}

TEST_F(ToolUseTest, AChatsObjectsHaveFieldsTogether) {
  v1::GenerateRequest request = Chat();
  std::string fields;
  for (int i = 0; i < 9'000; ++i) fields += absl::StrCat(",\"f", i, "\":1");
  for (int i = 0; i < 12; ++i) {
    request.mutable_chat()->add_tools(absl::StrCat("{\"name\":\"t", i, "\"", fields, "}"));
  }
  EXPECT_THAT(Fields(request),
              ElementsAre(Pair("chat.tools[13]", HasSubstr("more than 100000 fields"))));
}

TEST_F(ToolUseTest, ParallelIsTheDefault) {
  v1::GenerateRequest request = Chat();
  EXPECT_TRUE(Validate(request)->tool_use.parallel);
  request.mutable_tool_use()->set_parallel(false);
  EXPECT_FALSE(Validate(request)->tool_use.parallel);
}

TEST_F(ToolUseTest, WrongUsesAreNamed) {
  v1::GenerateRequest request = Chat();
  request.mutable_tool_use()->set_name("now");
  EXPECT_THAT(Fields(request), ElementsAre(Pair("tool_use.name", HasSubstr("mode NAMED"))));
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_NAMED);
  request.mutable_tool_use()->set_name("later");
  EXPECT_THAT(Fields(request),
              ::testing::Contains(Pair("tool_use.name", HasSubstr("\"later\" is no tool of the "
                                                                  "chat; it has now, add"))));
  request.mutable_chat()->clear_tools();
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_REQUIRED);
  request.mutable_tool_use()->clear_name();
  EXPECT_THAT(Fields(request),
              ::testing::Contains(Pair("tool_use.mode", HasSubstr("needs a tool in chat.tools"))));
  request.mutable_tool_use()->set_mode(static_cast<v1::ToolUse::Mode>(99));
  EXPECT_THAT(Fields(request), ElementsAre(Pair("tool_use.mode", HasSubstr("is 99"))));
  request = v1::GenerateRequest();
  request.set_text("hi");
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_NONE);
  EXPECT_THAT(Fields(request), ElementsAre(Pair("tool_use", HasSubstr("only goes with chat"))));
}

TEST_F(ToolUseTest, ATemplateThatIgnoresToolsIsNoTemplateForThem) {
  auto plain = text::ChatTemplate::FromSource("{{ messages[0].content }}", nullptr);
  ASSERT_TRUE(plain.ok());
  model_.chat_template = std::make_shared<const text::ChatTemplate>(*std::move(plain));
  v1::GenerateRequest request = Chat();
  EXPECT_THAT(Fields(request),
              ElementsAre(Pair("chat.tools", HasSubstr("does not show tools to the model"))));
  request.mutable_tool_use()->set_mode(v1::ToolUse::MODE_NONE);
  EXPECT_THAT(Fields(request), IsEmpty());
}

TEST_F(ToolUseTest, ParsedAnswersNeedAChatAndText) {
  v1::GenerateRequest request = Chat();
  EXPECT_FALSE(Validate(request)->stream.answer.has_value());
  request.mutable_output()->set_parse_answer(true);
  const auto valid = Validate(request);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_EQ(valid->stream.answer->style.tools, text::ToolStyle::kHermes);
  EXPECT_EQ(valid->stream.answer->tools->size(), 2u);
  request.mutable_output()->set_text(false);
  EXPECT_THAT(Fields(request), ElementsAre(Pair("output.parse_answer", HasSubstr("output.text"))));
  request.set_text("hi");
  request.mutable_output()->set_text(true);
  EXPECT_THAT(Fields(request),
              ElementsAre(Pair("output.parse_answer", HasSubstr("only goes with chat"))));
}

TEST_F(ToolUseTest, ThePromptsEndSaysWhereTheAnswerBegins) {
  const auto start = [](std::string_view prompt, size_t continued = 0) {
    return text::ReasoningStartOf(text::ReasoningStyle::kThink, prompt, continued);
  };
  using Start = text::ReasoningStart;
  EXPECT_EQ(start("<|bot|>"), Start::kMayOpen);
  EXPECT_EQ(start("<|bot|><think>\n"), Start::kOpen);
  EXPECT_EQ(start("<|bot|><think>\n\n</think>\n\n"), Start::kNone);
  EXPECT_EQ(start("what is <think> for?<|bot|>"), Start::kMayOpen);
  EXPECT_EQ(text::ReasoningStartOf(text::ReasoningStyle::kNone, "<think>", 0), Start::kNone);
  // An answer that goes on is inside reasoning if its own beginning is.
  EXPECT_EQ(start("<|bot|><think>\nso far", 6), Start::kOpen);
  EXPECT_EQ(start("<|bot|><think>a</think>so far", 6), Start::kNone);
  EXPECT_EQ(start("<|user|>what is <think>, in a word or two, for me? <|bot|>so far", 6),
            Start::kNone);

  v1::GenerateRequest request = Chat();
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("bot");
  message->set_content("<think>so far");
  request.mutable_chat()->set_continue_final_message(true);
  const auto valid = Validate(request);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_EQ(StartOfAnswer(valid->source, model_, "<|bot|><think>so far"), Start::kOpen);
}

}  // namespace
}  // namespace weir::server
