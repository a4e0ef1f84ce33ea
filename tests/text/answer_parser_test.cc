#include "text/answer_parser.h"

#include <nlohmann/json.hpp>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/answer_parser_check.h"

namespace weir::text {
namespace {

constexpr char kTools[] =
    R"({"name":"add","parameters":{"type":"object","properties":{"a":{"type":"integer"},)"
    R"("b":{"type":"integer"},"note":{"type":"string"},"on":{"type":"boolean"},)"
    R"("list":{"type":"array"},"maybe":{"type":["string","null"]}}}})";

std::shared_ptr<const std::vector<Tool>> Tools() {
  return std::make_shared<const std::vector<Tool>>(
      ReadTools(std::vector<std::string>{kTools, R"({"name":"now"})"}));
}

struct Case {
  const char* answer;
  const char* events;  // R reasoning, T text, C call, A arguments
  bool in_reasoning = false;
};

AnswerStyle Thinks(ToolStyle tools) { return {ReasoningStyle::kThink, tools}; }

// Every cut into two pieces and into three, and single bytes.
void CheckEverySplit(const ParserSetup& setup, const std::string& answer) {
  std::vector<std::string> bytes;
  for (const char c : answer) bytes.emplace_back(1, c);
  ASSERT_EQ(CheckAnswer(setup, answer, bytes), "");
  const std::string whole = Fingerprint(ParseIn(setup, {answer}));
  for (size_t i = 0; i <= answer.size(); ++i) {
    ASSERT_EQ(Fingerprint(ParseIn(setup, {answer.substr(0, i), answer.substr(i)})), whole) << i;
    for (size_t j = i; j <= answer.size(); ++j) {
      const auto three = {answer.substr(0, i), answer.substr(i, j - i), answer.substr(j)};
      ASSERT_EQ(Fingerprint(ParseIn(setup, three)), whole) << i << " " << j;
    }
  }
}

// Each answer whole, in all cuts into two and three pieces, and byte by byte.
void Check(AnswerStyle style, const std::vector<Case>& cases) {
  for (const Case& one : cases) {
    SCOPED_TRACE(one.answer);
    const ParserSetup setup = {style, Tools(), one.in_reasoning};
    EXPECT_EQ(Render(ParseIn(setup, {one.answer})), one.events);
    CheckEverySplit(setup, one.answer);
  }
}

TEST(AnswerParserTest, PlainTextStaysAsItIs) {
  const std::vector<Case> cases = {
      {"", ""},
      {"hello", "T<hello>"},
      {" \n hello \n\n", "T< \n hello \n\n>"},
      {"a < b, a <tool, <tool_callx> </tool_call>", "T<a < b, a <tool, <tool_callx> </tool_call>>"},
      {"\n", "T<\n>"},
      {"gr\xc3\xbc\xc3\x9f <\xe2\x82\xac>", "T<gr\xc3\xbc\xc3\x9f <\xe2\x82\xac>>"}};
  for (const std::string& name : ToolStyleNames()) Check(Thinks(*ToolStyleFromName(name)), cases);
}

TEST(AnswerParserTest, ReasoningComesFirst) {
  Check(Thinks(ToolStyle::kHermes),
        {{"<think>\n2+2\n</think>\n\n4", "R<2+2>T<4>"},
         {"\n<think>a\n\nb</think>c", "R<a\n\nb>T<c>"},
         {"<think></think>x", "T<x>"},
         {"<think>\n\n</think>\n\nx", "T<x>"},
         {"<think>a <b </thin", "R<a <b </thin>"},
         {"<think>a\n", "R<a\n>"},
         {"<think", "T<<think>"},
         {"x <think>y</think>", "T<x <think>y</think>>"},  // only at the beginning
         {"a</think>b", "R<a>T<b>", true},
         {"<think>\na</think>\nb", "R<a>T<b>", true},
         {"a <tool_call>\n</think>b", "R<a <tool_call>>T<b>", true},
         {"never closed", "R<never closed>", true},
         {"\n", "", true},
         {"a</think>\n<think>b", "R<a>T<<think>b>", true}});
  Check({ReasoningStyle::kNone, ToolStyle::kHermes},
        {{"<think>a</think>b", "T<<think>a</think>b>"}});
}

TEST(AnswerParserTest, Hermes) {
  const std::string call =
      "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
  Check(Thinks(ToolStyle::kHermes),
        {{call.c_str(), "C<add>A<{\"a\": 1}>"},
         {("Let me see.\n" + call + "\n" + call).c_str(),
          "T<Let me see.>C<add>A<{\"a\": 1}>C<add>A<{\"a\": 1}>"},
         {("<think>\nhm\n</think>\n\n" + call).c_str(), "R<hm>C<add>A<{\"a\": 1}>"},
         {("a </think>\n" + call + " done").c_str(), "R<a>C<add>A<{\"a\": 1}>T<done>", true},
         {"<tool_call>{\"arguments\":{\"a\":[1,{}]},\"name\":\"x\\u0041\"}</tool_call>",
          "C<xA>A<{\"a\":[1,{}]}>"},
         {"<tool_call>{\"name\":\"now\"}</tool_call>", "C<now>A<{}>"},
         {"<tool_call>{\"name\":\"now\",\"arguments\":null}</tool_call>", "C<now>A<{}>"},
         {"<tool_call>{\"id\":\"7\",\"type\":\"function\",\"name\":\"now\",\"parameters\":{}}"
          "</tool_call>",
          "C<now>A<{}>"},
         {"<tool_call>{\"name\":\"add\",\"arguments\":{\"a\":1},\"id\":\"c\",\"index\":0}</"
          "tool_call>x",
          "C<add>A<{\"a\":1}>T<x>"},
         {"<tool_call>{\"name\":\"add\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>",
          "C<add>A<{\"a\": 1}>"},
         // Several in one pair of tags, or a list of them.
         {"<tool_call>\n{\"name\":\"now\",\"arguments\":{}}\n{\"name\":\"add\",\"arguments\":{}}\n"
          "</tool_call>",
          "C<now>A<{}>C<add>A<{}>"},
         {"<tool_call>[{\"name\":\"now\",\"arguments\":{}}, {\"name\":\"add\",\"arguments\":{}}]"
          "</tool_call>",
          "C<now>A<{}>C<add>A<{}>"},
         // A closing tag or a brace that is missing, or one too many.
         {"<tool_call>{\"name\":\"now\",\"arguments\":{}}<tool_call>{\"name\":\"now\"}</tool_call>",
          "C<now>A<{}>C<now>A<{}>"},
         {"<tool_call>{\"name\":\"now\",\"arguments\":{}\n</tool_call>", "C<now>A<{}>"},
         {"<tool_call>{\"name\":\"now\",\"arguments\":{}}}\n</tool_call>", "C<now>A<{}>"}});
}

TEST(AnswerParserTest, WhatIsNoCallIsText) {
  Check(Thinks(ToolStyle::kHermes),
        {{"<tool_call>\nadd 1\n</tool_call>", "T<<tool_call>\nadd 1\n</tool_call>>"},
         {"a <tool_call> {\"name\": 7}", "T<a <tool_call> {\"name\": 7}>"},
         {"<tool_call>{}</tool_call>", "T<<tool_call>{}</tool_call>>"},
         {"<tool_call>{\"name\":\"\",\"arguments\":{}}",
          "T<<tool_call>{\"name\":\"\",\"arguments\":{}}>"},
         {"<tool_call>{\"tool\":\"x\"}", "T<<tool_call>{\"tool\":\"x\"}>"},
         {"<tool_call>{\"name\":\"x\",\"arguments\":[1]}",
          "T<<tool_call>{\"name\":\"x\",\"arguments\":[1]}>"},
         {"<tool_call><tool_call>{\"name\":\"now\"}</tool_call>", "T<<tool_call>>C<now>A<{}>"},
         {"<tool_call>\n{\"name\": \"ad", "T<<tool_call>\n{\"name\": \"ad>"},  // cut off
         // A second call that is none.
         {"<tool_call>{\"name\":\"now\",\"arguments\":{}}\n{\"nam", "C<now>A<{}>T<{\"nam>"}});
}

TEST(AnswerParserTest, ArgumentsBreakOffWhereTheyMust) {
  Check(
      Thinks(ToolStyle::kHermes),
      {{"<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b", "C<add>A<{\"a\": 1, \"b>"},
       {"<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"x\\", "C<add>A<{\"a\": \"x\\>"},
       {"<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_c",
        "C<add>A<{\"a\": 1}>"},
       {"<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1,}}\n</tool_call>",
        "C<add>A<{\"a\": 1,>T<}}\n</tool_call>>"},
       {"<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 01}}", "C<add>A<{\"a\": 0>T<1}}>"}});
}

TEST(AnswerParserTest, StringsAreMended) {
  Check(Thinks(ToolStyle::kHermes),
        {{"<tool_call>{\"name\":\"add\",\"arguments\":{\"note\":\"a\nb\tc\x01\"}}</tool_call>",
          "C<add>A<{\"note\":\"a\\nb\\tc\\u0001\"}>"},
         {"<tool_call>{\"name\":\"add\",\"arguments\":{\"note\":\"\\d\\'\\u12\\ud83dx\\u00e9\"}}",
          "C<add>A<{\"note\":\"\\\\d\\\\'\\\\u12\\ufffdx\\u00e9\"}>"},
         {"<tool_call>{\"name\":\"add\",\"arguments\":{\"note\":"
          "\"\\ud83d\\ude00\\ud83d\\n\\udE00\"}}",
          "C<add>A<{\"note\":\"\\ud83d\\ude00\\ufffd\\n\\ufffd\"}>"}});
}

TEST(AnswerParserTest, Qwen3Coder) {
  Check(
      Thinks(ToolStyle::kQwen3Coder),
      {{"I add.\n\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=note>\n"
        "two\nlines \"q\"\n</parameter>\n</function>\n</tool_call>",
        "T<I add.>C<add>A<{\"a\": 1, \"note\": \"two\\nlines \\\"q\\\"\"}>"},
       {"<tool_call>\n<function=now>\n</function>\n</tool_call>", "C<now>A<{}>"},
       {"<tool_call><function=now></function></tool_call>x", "C<now>A<{}>T<x>"},
       // Strings stay strings; the rest is read as what it stands for.
       {"<tool_call><function=add><parameter=note>5</parameter><parameter=on>True</parameter>"
        "<parameter=list>[1, \"x\"]</parameter><parameter=maybe>null</parameter>"
        "<parameter=b>about 3</parameter></function></tool_call>",
        "C<add>A<{\"note\": \"5\", \"on\": true, \"list\": [1, \"x\"], \"maybe\": null, "
        "\"b\": \"about 3\"}>"},
       {"<tool_call><function=add><parameter=maybe>7</parameter><parameter=else>7</parameter>"
        "<parameter=any>x y</parameter></function></tool_call>",
        "C<add>A<{\"maybe\": \"7\", \"else\": 7, \"any\": \"x y\"}>"},
       {"<tool_call><function=add><parameter=note>\n\n<b></p\n\n</parameter></function></"
        "tool_call>",
        "C<add>A<{\"note\": \"\\n<b></p\\n\"}>"},
       // The outer tags are often forgotten.
       {"<function=now>\n</function>", "C<now>A<{}>"},
       {"<function=unknown>\n", "T<<function=unknown>\n>"},
       {"<tool_call>\n<function=now>\n</tool_call>", "C<now>A<{}>"},
       {"<tool_call><function=now></function>\n<function=add></function></tool_call>",
        "C<now>A<{}>C<add>A<{}>"},
       // Cut off.
       {"<tool_call><function=ad", "T<<tool_call><function=ad>"},
       {"<tool_call><function=add><para", "C<add>"},
       {"<tool_call><function=add><parameter=a>1", "C<add>A<{\"a\": 1>"},
       {"<tool_call><function=add><parameter=note>x\n</param", "C<add>A<{\"note\": \"x>"},
       {"<tool_call><function=add><parameter=any>x", "C<add>A<{\"any\": \"x>"},
       // No call.
       {"<tool_call>\n{\"name\": \"add\"}", "T<<tool_call>\n{\"name\": \"add\"}>"},
       {"<tool_call><function=add>oops</function>", "C<add>T<oops</function>>"}});
}

TEST(AnswerParserTest, Glm) {
  Check(
      Thinks(ToolStyle::kGlm),
      {{"<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>note</arg_key>\n"
        "<arg_value>x y</arg_value>\n</tool_call>",
        "C<add>A<{\"a\": 1, \"note\": \"x y\"}>"},
       {"<tool_call>now</tool_call>", "C<now>A<{}>"},
       {"<tool_call>now\n</tool_call>", "C<now>A<{}>"},
       {"<tool_call>other\n</tool_call>", "T<<tool_call>other\n</tool_call>>"},
       {"<tool_call>now<b>", "C<now>T<<b>>"}});
}

TEST(AnswerParserTest, LlamaJson) {
  Check(
      Thinks(ToolStyle::kLlamaJson),
      {{"{\"name\": \"add\", \"parameters\": {\"a\": 1}}", "C<add>A<{\"a\": 1}>"},
       {"<|python_tag|>{\"name\": \"now\", \"parameters\": {}}", "C<now>A<{}>"},
       {"{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}", "C<now>A<{}>"},
       {"{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"add\", \"parameters\": {\"a\": 2}}",
        "C<now>A<{}>C<add>A<{\"a\": 2}>"},
       {"[{\"name\": \"now\", \"parameters\": {}}, {\"name\": \"now\", \"parameters\": {}}]",
        "C<now>A<{}>C<now>A<{}>"},
       {"{\"name\": \"Bob\", \"parameters\": {}}", "T<{\"name\": \"Bob\", \"parameters\": {}}>"},
       {"{\"answer\": 1}", "T<{\"answer\": 1}>"},
       {"[1] x", "T<[1] x>"},
       {"So: {\"name\": \"now\"}", "T<So: {\"name\": \"now\"}>"},  // the whole answer or none
       {"x</think>{\"name\": \"now\"}", "R<x>C<now>A<{}>", true},
       {"{\"name\": \"now\"} and", "C<now>A<{}>T<and>"}});
}

TEST(AnswerParserTest, OtherJsonForms) {
  const char* list =
      "[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {}}]";
  const char* events = "T<a>C<now>A<{}>C<f>A<{}>T<b>";
  const auto wrap = [&](const char* begin, const char* end) {
    return std::string("a") + begin + list + end + " b";
  };
  Check(Thinks(ToolStyle::kGranite), {{wrap("<|tool_call|>", "").c_str(), events}});
  Check(Thinks(ToolStyle::kMistral), {{wrap("[TOOL_CALLS]", "").c_str(), events}});
  Check(Thinks(ToolStyle::kNemotron), {{wrap("<TOOLCALL>", "</TOOLCALL>").c_str(), events}});
  Check(Thinks(ToolStyle::kJamba), {{wrap("<tool_calls>", "</tool_calls>").c_str(), events}});
  Check(Thinks(ToolStyle::kMinimax),
        {{"<tool_calls>\n{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"f\", \"arguments\": "
          "{}}\n</tool_calls>",
          "C<now>A<{}>C<f>A<{}>"}});
}

TEST(AnswerParserTest, Kimi) {
  Check(
      Thinks(ToolStyle::kKimi),
      {{"On it.<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
        "<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|><|tool_call_begin|>functions.now:1 "
        "<|tool_call_argument_begin|> {}<|tool_call_end|><|tool_calls_section_end|>",
        "T<On it.>C<add=functions.add:0>A<{\"a\": 1}>C<now=functions.now:1>A<{}>"},
       // Its tags end the reasoning too.
       {"hm<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_"
        "begin|>"
        "{}<|tool_call_end|><|tool_calls_section_end|>",
        "R<hm>C<now=functions.now:0>A<{}>", true},
       {"hm<|tool_calls_section_begin|>no</think>x", "R<hm<|tool_calls_section_begin|>no>T<x>",
        true},
       {"<|tool_calls_section_begin|><|tool_calls_section_end|>", ""},
       {"<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0",
        "T<<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0>"}});
}

TEST(AnswerParserTest, WithoutToolsThereAreNoCalls) {
  const char* answer = "<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>";
  const std::string text = std::string("T<") + answer + ">";
  EXPECT_EQ(Render(ParseIn({Thinks(ToolStyle::kHermes), nullptr, false}, {answer})), text);
  const auto none = std::make_shared<const std::vector<Tool>>();
  EXPECT_EQ(Render(ParseIn({Thinks(ToolStyle::kHermes), none, false}, {answer})), text);
  EXPECT_EQ(Render(ParseIn({Thinks(ToolStyle::kNone), Tools(), false}, {answer})), text);
}

// What every single byte lets out at once.
TEST(AnswerParserTest, NothingIsHeldLongerThanItMustBe) {
  const auto steps = [](ToolStyle style, const std::string& answer) {
    AnswerParser parser(Thinks(style), Tools(), false);
    std::string out;
    for (const char c : answer) {
      std::vector<AnswerEvent> events;
      parser.Feed(std::string_view(&c, 1), &events);
      out += Render(events, /*markup=*/false) + "|";
    }
    return out;
  };
  EXPECT_EQ(steps(ToolStyle::kHermes, "ab c<t>"), "T<a>|T<b>||T< c>|||T<<t>>|");
  const std::string head = "<tool_call>{\"name\":\"now\",\"arguments\":";
  EXPECT_EQ(steps(ToolStyle::kHermes, head + "{\"a\":1}"),
            std::string(head.size(), '|') + "C<now>A<{>|A<\">|A<a>|A<\">|A<:>|A<1>|A<}>|");
  const std::string xml = "<tool_call><function=add";
  EXPECT_EQ(steps(ToolStyle::kQwen3Coder, xml + "><parameter=note>a\nb<"),
            std::string(xml.size(), '|') + "C<add>|" + std::string(15, '|') +
                "A<{\"note\": \">|A<a>||A<\\nb>||");
}

TEST(AnswerParserTest, ReasoningIsCountedInBytes) {
  const auto bytes = [](const std::string& answer, bool in_reasoning, bool finish) {
    AnswerParser parser(Thinks(ToolStyle::kHermes), Tools(), in_reasoning);
    std::vector<AnswerEvent> events;
    parser.Feed(answer, &events);
    const bool open = parser.reasoning_open();
    if (finish) parser.Finish(&events);
    return std::make_pair(parser.reasoning_bytes(), open);
  };
  using Pair = std::pair<int64_t, bool>;
  EXPECT_EQ(bytes("", false, false), Pair(0, true));
  EXPECT_EQ(bytes("<thi", false, false), Pair(0, true));
  EXPECT_EQ(bytes("x", false, false), Pair(0, false));
  EXPECT_EQ(bytes("<think>a", false, false), Pair(8, true));
  EXPECT_EQ(bytes("<think>a \n", false, false), Pair(8, true));
  EXPECT_EQ(bytes("<think>a \n", false, true), Pair(10, true));
  EXPECT_EQ(bytes("<think>a </think>\n\nb", false, false), Pair(17, false));
  EXPECT_EQ(bytes("a</think>b", true, true), Pair(9, false));
}

// Answers put together from the pieces that matter, and mutated: every property of the header must
// hold, whatever comes.
TEST(AnswerParserTest, RandomAnswersAddUpInRandomPieces) {
  const std::vector<std::string> words = AnswerWords();
  std::mt19937 random(20260727);
  for (int round = 0; round < 20000; ++round) {
    const ParserSetup setup = {
        Thinks(*ToolStyleFromName(ToolStyleNames()[random() % ToolStyleNames().size()])), Tools(),
        random() % 4 == 0};
    std::string answer;
    for (size_t i = random() % 24; i > 0; --i) answer += words[random() % words.size()];
    for (size_t i = random() % 3; i > 0 && !answer.empty(); --i) {
      const size_t at = random() % answer.size();
      if (random() % 2 == 0) {
        answer.erase(at, 1);
      } else {
        answer[at] = static_cast<char>(random() % 96 + 32);
      }
    }
    std::vector<std::string> pieces;
    for (size_t at = 0; at < answer.size();) {
      const size_t n = std::min(answer.size() - at, size_t{1} + random() % 9);
      pieces.push_back(answer.substr(at, n));
      at += n;
    }
    const std::string problem = CheckAnswer(setup, answer, pieces);
    ASSERT_EQ(problem, "") << answer;
  }
}

}  // namespace
}  // namespace weir::text
