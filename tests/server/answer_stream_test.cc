// Answers taken apart on their way to the client: what a ResponseStream makes of tokens where the
// request asks for parse_answer.
#include "server/answer_stream.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/response_stream.h"
#include "tests/server/test_model.h"

namespace weir::server {
namespace {

using scheduler::FinishReason;
using ::testing::ElementsAre;
using ::testing::MatchesRegex;
using weir::testing::ByteTokenizer;
using weir::testing::kEndId;

class IdleHost : public ResponseStream::Host {
 public:
  void ScheduleProcess() override {}
  void StopChoice(int32_t) override {}
};

// What a client has after the last event.
struct Whole {
  std::string text, reasoning;
  std::vector<v1::ToolCallDelta> calls;
  std::vector<int32_t> ids;
  v1::ChoiceFinished finished;
  int deltas = 0;
};

class AnswerStreamTest : public ::testing::Test {
 protected:
  AnswerStreamTest() {
    config_.text = true;
    config_.answer.emplace();
    config_.answer->style = {text::ReasoningStyle::kThink, text::ToolStyle::kHermes};
    config_.answer->tools = std::make_shared<const std::vector<text::Tool>>(
        text::ReadTools(std::vector<std::string>{R"({"name":"now"})"}));
    config_.answer->id_seed = 7;
  }

  // The answer, a token a byte, as a client gathers it that takes an event now and then.
  Whole Run(const std::string& answer, int take_every = 1,
            FinishReason reason = FinishReason::kStop) {
    ResponseStream stream(config_, 3, ByteTokenizer(), 10'000, &host_);
    Whole whole;
    const auto take = [&] {
      stream.Process();
      v1::GenerateEvent event;
      while (stream.Take(&event)) Gather(event, &whole);
    };
    int n = 0;
    for (const char c : answer) {
      scheduler::TokenEvent event;
      event.token.token = static_cast<uint8_t>(c);
      stream.OnToken(event);
      if (++n % take_every == 0) take();
    }
    stream.OnChoiceFinished({0, reason, reason == FinishReason::kStop ? kEndId : -1, 0});
    take();
    return whole;
  }

  static void Gather(const v1::GenerateEvent& event, Whole* whole) {
    if (event.has_choice_finished()) whole->finished = event.choice_finished();
    if (!event.has_delta()) return;
    ++whole->deltas;
    whole->text += event.delta().text();
    whole->reasoning += event.delta().reasoning();
    for (const int32_t id : event.delta().token_ids()) whole->ids.push_back(id);
    for (const v1::ToolCallDelta& call : event.delta().tool_calls()) {
      if (static_cast<size_t>(call.index()) == whole->calls.size()) {
        whole->calls.push_back(call);
        continue;
      }
      ASSERT_EQ(call.index() + 1, static_cast<int>(whole->calls.size()));
      EXPECT_TRUE(call.id().empty() && call.name().empty());  // in the first delta only
      whole->calls.back().mutable_arguments()->append(call.arguments());
    }
  }

  StreamConfig config_;
  IdleHost host_;
};

const char kAnswer[] =
    "<think>\nhm\n</think>\n\nOne moment.\n<tool_call>\n{\"name\": \"now\", \"arguments\": "
    "{\"zone\": \"CET\"}}\n</tool_call><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";

TEST_F(AnswerStreamTest, EachPartHasItsField) {
  for (const int take_every : {1, 2, 7, 1000}) {
    const Whole whole = Run(kAnswer, take_every);
    EXPECT_EQ(whole.reasoning, "hm");
    EXPECT_EQ(whole.text, "One moment.");
    ASSERT_EQ(whole.calls.size(), 2u);
    EXPECT_EQ(whole.calls[0].name(), "now");
    EXPECT_EQ(whole.calls[0].arguments(), "{\"zone\": \"CET\"}");
    EXPECT_EQ(whole.calls[1].name(), "f");
    EXPECT_EQ(whole.calls[1].arguments(), "{}");
    EXPECT_EQ(whole.finished.tool_calls(), 2);
    EXPECT_EQ(whole.finished.reasoning_tokens(), 19);  // up to </think>
    EXPECT_EQ(whole.ids.size(), sizeof kAnswer - 1);
  }
}

TEST_F(AnswerStreamTest, CallsHaveIdsOfTheirOwn) {
  const Whole whole = Run(kAnswer);
  EXPECT_THAT(whole.calls[0].id(), MatchesRegex("call_[a-z2-7]{24}"));
  EXPECT_NE(whole.calls[0].id(), whole.calls[1].id());
  EXPECT_EQ(Run(kAnswer).calls[0].id(), whole.calls[0].id());  // the seed's
  config_.answer->id_seed = 8;
  EXPECT_NE(Run(kAnswer).calls[0].id(), whole.calls[0].id());
  config_.answer->style.tools = text::ToolStyle::kKimi;  // the model names its calls itself
  const Whole kimi = Run(
      "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}"
      "<|tool_call_end|><|tool_calls_section_end|>");
  EXPECT_EQ(kimi.calls[0].id(), "functions.now:3");
}

TEST_F(AnswerStreamTest, WithoutParseAnswerTheTextIsWhole) {
  config_.answer.reset();
  const Whole whole = Run(kAnswer);
  EXPECT_EQ(whole.text, kAnswer);
  EXPECT_EQ(whole.finished.tool_calls(), 0);
}

TEST_F(AnswerStreamTest, WhatIsHeldComesBeforeTheEnd) {
  const Whole text = Run("a <tool_call>\n{\"na", 1, FinishReason::kLength);
  EXPECT_EQ(text.text, "a <tool_call>\n{\"na");
  const Whole arguments =
      Run("<tool_call>{\"name\": \"now\", \"arguments\": {\"zo", 1, FinishReason::kLength);
  EXPECT_EQ(arguments.text, "");
  EXPECT_EQ(arguments.calls[0].arguments(), "{\"zo");
  EXPECT_EQ(arguments.finished.tool_calls(), 1);
}

TEST_F(AnswerStreamTest, ReasoningIsCountedWhereverItEnds) {
  EXPECT_EQ(Run("4").finished.reasoning_tokens(), 0);
  EXPECT_EQ(Run("<think>4").finished.reasoning_tokens(), 8);
  config_.answer->in_reasoning = true;
  EXPECT_EQ(Run("2+2</think>4").finished.reasoning_tokens(), 11);
  EXPECT_EQ(Run("2+2 \n", 1, FinishReason::kLength).finished.reasoning_tokens(), 5);
  // Stop strings hold text back, which must not change whose a token is.
  config_.stop_strings = {"</think>4 and much more"};
  EXPECT_EQ(Run("2+2</think>4").finished.reasoning_tokens(), 11);
}

TEST_F(AnswerStreamTest, StopStringsAreLookedForInTheWholeText) {
  config_.stop_strings = {"</think>"};
  const Whole whole = Run("<think>hm</think>\n4");
  EXPECT_EQ(whole.finished.stop_string(), "</think>");
  EXPECT_EQ(whole.reasoning, "hm");
  EXPECT_EQ(whole.text, "");
  config_.stop_strings = {"</tool_call>"};
  const Whole call = Run(kAnswer);
  EXPECT_EQ(call.finished.stop_string(), "</tool_call>");
  ASSERT_EQ(call.calls.size(), 1u);
  EXPECT_EQ(call.calls[0].arguments(), "{\"zone\": \"CET\"}");
}

TEST_F(AnswerStreamTest, HeldTextFillsNoBuffer) {
  config_.token_ids = false;
  ResponseStream stream(config_, 3, ByteTokenizer(), /*max_waiting_tokens=*/5, &host_);
  for (const char c : std::string("<tool_call>\n{\"name\": \"now\", ")) {
    scheduler::TokenEvent event;
    event.token.token = static_cast<uint8_t>(c);
    ASSERT_TRUE(stream.OnToken(event));
    stream.Process();
    v1::GenerateEvent taken;
    EXPECT_FALSE(stream.Take(&taken));
  }
}

// Tags that are special tokens stay for the parser; the others are left out as ever.
TEST_F(AnswerStreamTest, SpecialTagsReachTheParser) {
  const auto tokenizer = text::Tokenizer::FromJson(
      R"({"version":"1.0","added_tokens":[)"
      R"({"id":2,"content":"<|tool_call|>","special":true,"normalized":false,"lstrip":false,)"
      R"("rstrip":false,"single_word":false},)"
      R"({"id":3,"content":"<|end|>","special":true,"normalized":false,"lstrip":false,)"
      R"("rstrip":false,"single_word":false}],"decoder":{"type":"Fuse"},)"
      R"("model":{"type":"WordLevel","vocab":{"<unk>":0,"[{\"name\": \"now\"}]":1},)"
      R"("unk_token":"<unk>"}})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  config_.answer->style.tools = text::ToolStyle::kGranite;
  EXPECT_THAT(KeptTokens(*config_.answer, **tokenizer), ElementsAre(2));
  ResponseStream stream(config_, 3, *tokenizer, 100, &host_);
  for (const int32_t id : {3, 2, 1, 3}) {
    scheduler::TokenEvent event;
    event.token.token = id;
    stream.OnToken(event);
  }
  stream.OnChoiceFinished({0, FinishReason::kStop, 3, 0});
  stream.Process();
  Whole whole;
  v1::GenerateEvent event;
  while (stream.Take(&event)) Gather(event, &whole);
  EXPECT_EQ(whole.text, "");
  ASSERT_EQ(whole.calls.size(), 1u);
  EXPECT_EQ(whole.calls[0].name(), "now");
  config_.answer->tools = nullptr;
  EXPECT_TRUE(KeptTokens(*config_.answer, **tokenizer).empty());
}

}  // namespace
}  // namespace weir::server
