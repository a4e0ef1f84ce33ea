// The text of grammars for forced tool calls. That they compile, and what they let through, is
// tested with the compiler.
#include "text/tool_grammar.h"

#include "gmock/gmock.h"
#include "tests/text/text_test_support.h"

namespace weir::text {
namespace {

using ::testing::HasSubstr;

constexpr char kSeparators[] =
    R"("x-guidance":{"item_separator":", ","key_separator":": ","whitespace_flexible":false})";

std::vector<Tool> Tools() {
  return ReadTools(std::vector<std::string>{
      R"({"type":"function","function":{"name":"add","parameters":{"type":"object",)"
      R"("properties":{"a":{"type":"integer"}},"required":["a"]}}})",
      R"({"name":"now"})"});
}

std::string Grammar(const std::vector<Tool>& tools, ToolGrammarOptions options,
                    const Tokenizer* tokenizer = nullptr) {
  const auto grammar = ToolCallGrammar(tools, options, tokenizer);
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  return grammar.value_or("");
}

ToolGrammarOptions Style(ToolStyle style, ReasoningStart reasoning = ReasoningStart::kNone) {
  ToolGrammarOptions options;
  options.style = {ReasoningStyle::kThink, style};
  options.reasoning = reasoning;
  return options;
}

TEST(ToolGrammarTest, HermesWritesTheSchemaIn) {
  EXPECT_EQ(
      Grammar(Tools(), Style(ToolStyle::kHermes)),
      std::string("start: calls\n"
                  "calls: call (\"\\n\"? call)*\n"
                  "call: call_0 | call_1\n"
                  "call_0: \"<tool_call>\" \"\\n{\\\"name\\\": \\\"add\\\", \\\"arguments\\\": \" "
                  "args_0 \"}\\n\" \"</tool_call>\"\n"
                  "args_0: %json {\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}"
                  ",\"required\":[\"a\"],") +
          kSeparators +
          "}\n"
          "call_1: \"<tool_call>\" \"\\n{\\\"name\\\": \\\"now\\\", \\\"arguments\\\": \" "
          "args_1 \"}\\n\" \"</tool_call>\"\n"
          "args_1: %json {\"type\":\"object\",\"properties\":{},\"additionalProperties\":false," +
          kSeparators + "}\n");
}

TEST(ToolGrammarTest, OneCallWhereSeveralAreNotWanted) {
  ToolGrammarOptions options = Style(ToolStyle::kHermes);
  options.parallel = false;
  EXPECT_THAT(Grammar(Tools(), options), HasSubstr("calls: call\n"));
  options.style.tools = ToolStyle::kNemotron;
  EXPECT_THAT(Grammar(Tools(), options),
              HasSubstr("calls: \"<TOOLCALL>\" \"[\" call \"]\" \"</TOOLCALL>\"\n"));
  options.parallel = true;
  EXPECT_THAT(Grammar(Tools(), options),
              HasSubstr("calls: \"<TOOLCALL>\" \"[\" call (\", \" call)* \"]\" \"</TOOLCALL>\"\n"));
}

TEST(ToolGrammarTest, ReasoningComesFirstWhereItMay) {
  EXPECT_THAT(Grammar(Tools(), Style(ToolStyle::kHermes, ReasoningStart::kOpen)),
              HasSubstr("start: thoughts calls\n"
                        "thoughts: thought gap\n"
                        "thought[lazy]: /(.|\\n)*<\\/think>/\n"
                        "gap: /[ \\n]{0,4}/\n"));
  EXPECT_THAT(Grammar(Tools(), Style(ToolStyle::kHermes, ReasoningStart::kMayOpen)),
              HasSubstr("start: reasoning? calls\n"
                        "reasoning: \"<think>\" thoughts\n"));
  EXPECT_EQ(ReasoningThen("@answer", ReasoningStart::kNone, nullptr), "start: @answer\n");
  EXPECT_THAT(ReasoningThen("@answer", ReasoningStart::kOpen, nullptr),
              HasSubstr("start: thoughts @answer\n"));
}

TEST(ToolGrammarTest, SpecialTokensAreTokens) {
  const auto tokenizer = Tokenizer::FromJson(
      R"({"version":"1.0","added_tokens":[)"
      R"({"id":1,"content":"<|tool_call|>","special":true,"normalized":false,"lstrip":false,)"
      R"("rstrip":false,"single_word":false},)"
      R"({"id":2,"content":"</think>","special":true,"normalized":false,"lstrip":false,)"
      R"("rstrip":false,"single_word":false},)"
      R"({"id":3,"content":"<think>","special":false,"normalized":false,"lstrip":false,)"
      R"("rstrip":false,"single_word":false}],)"
      R"("model":{"type":"WordLevel","vocab":{"<unk>":0},"unk_token":"<unk>"}})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string grammar =
      Grammar(Tools(), Style(ToolStyle::kGranite, ReasoningStart::kMayOpen), tokenizer->get());
  EXPECT_THAT(grammar, HasSubstr("calls: <[1]> \"[\" call"));
  EXPECT_THAT(grammar, HasSubstr("thoughts: /(.|\\n)*/ <[2]> gap\n"));
  EXPECT_THAT(grammar, HasSubstr("reasoning: \"<think>\" thoughts\n"));  // not a special one
}

TEST(ToolGrammarTest, KimiNumbersItsCalls) {
  EXPECT_THAT(Grammar(Tools(), Style(ToolStyle::kKimi)),
              HasSubstr("call_1: \"<|tool_call_begin|>\" \"functions.now:\" /[0-9]{1,4}/ "
                        "\"<|tool_call_argument_begin|>\" args_1 \"<|tool_call_end|>\"\n"));
}

TEST(ToolGrammarTest, XmlValuesFitTheirSchemas) {
  const auto tools = ReadTools(std::vector<std::string>{
      R"({"name":"f","parameters":{"type":"object","properties":{)"
      R"("text":{"type":"string"},"short":{"type":"string","maxLength":9},)"
      R"("n":{"type":"integer"},"unit":{"enum":["c","f"]},)"
      R"("zip":{"type":"string","pattern":"^[0-9/]+$"},)"
      R"("at":{"$ref":"#/$defs/p"}},"required":["text"],"$defs":{"p":{"type":"object"}}}})"});
  const std::string grammar = Grammar(tools, Style(ToolStyle::kQwen3Coder));
  EXPECT_THAT(grammar,
              HasSubstr("call_0: \"<tool_call>\" \"\\n<function=f>\\n\" arg_0_0 arg_0_1? arg_0_2? "
                        "arg_0_3? arg_0_4? arg_0_5? \"</function>\\n\" \"</tool_call>\"\n"));
  EXPECT_THAT(grammar, HasSubstr("arg_0_0: \"<parameter=text>\\n\" arg_0_0_value\n"
                                 "arg_0_0_value: arg_0_0_value_text \"\\n\"\n"
                                 "arg_0_0_value_text[lazy]: /(.|\\n)*<\\/parameter>/\n"));
  EXPECT_THAT(grammar, HasSubstr("arg_0_1_value_text[lazy]: /(.|\\n){0,9}\\n<\\/parameter>/\n"));
  EXPECT_THAT(grammar, HasSubstr("arg_0_2_value: arg_0_2_value_json \"\\n</parameter>\\n\"\n"
                                 "arg_0_2_value_json: %json {\"type\":\"integer\","));
  EXPECT_THAT(grammar, HasSubstr("arg_0_3_value: (\"c\" | \"f\") \"\\n</parameter>\\n\"\n"));
  EXPECT_THAT(grammar, HasSubstr("arg_0_4_value: /([0-9\\/]+)/ \"\\n</parameter>\\n\"\n"));
  EXPECT_THAT(grammar, HasSubstr("%json {\"$ref\":\"#/$defs/p\",\"$defs\":{\"p\":"));
  EXPECT_THAT(Grammar(tools, Style(ToolStyle::kGlm)),
              HasSubstr("\"<tool_call>\" \"f\\n\" arg_0_0"));
}

TEST(ToolGrammarTest, WhatCannotBeForcedIsRefusedWithTheReason) {
  const auto refused = [](const std::vector<Tool>& tools, ToolStyle style) {
    const auto grammar = ToolCallGrammar(tools, Style(style), nullptr);
    EXPECT_FALSE(grammar.ok());
    return std::string(grammar.status().message());
  };
  EXPECT_THAT(refused({}, ToolStyle::kHermes), HasSubstr("no tool"));
  EXPECT_THAT(refused(Tools(), ToolStyle::kNone), HasSubstr("tool-parser"));
  const auto any_of = ReadTools(
      std::vector<std::string>{R"({"name":"f","parameters":{"anyOf":[{"type":"object"}]}})"});
  EXPECT_THAT(refused(any_of, ToolStyle::kQwen3Coder), HasSubstr("tool f use anyOf"));
  const auto absent =
      ReadTools(std::vector<std::string>{R"({"name":"f","parameters":{"required":["x"]}})"});
  EXPECT_THAT(refused(absent, ToolStyle::kGlm), HasSubstr("require \"x\""));
}

TEST(ToolsTest, KindsComeFromAnySchema) {
  const auto tools = ReadTools(std::vector<std::string>{
      "no json", R"({"type":"function"})",
      R"({"name":"f","parameters":{"properties":{"s":{"type":"string"},"n":{"type":"number"},)"
      R"("u":{"type":["integer","null"]},"e":{"enum":["a",1]},"c":{"const":true},"x":{},)"
      R"("r":{"$ref":"#/$defs/t"},"o":{"anyOf":[{"type":"array"},{"type":"null"}]},)"
      R"("loop":{"$ref":"#/properties/loop"},"lost":{"$ref":"#/nowhere"}},)"
      R"("$defs":{"t":{"type":"object"}}}})"});
  ASSERT_EQ(tools.size(), 1u);
  const Tool& tool = *FindTool(tools, "f");
  EXPECT_EQ(FindTool(tools, "g"), nullptr);
  EXPECT_EQ(tool.KindsOf("s"), kJsonString);
  EXPECT_EQ(tool.KindsOf("n"), kJsonNumber);
  EXPECT_EQ(tool.KindsOf("u"), kJsonNumber | kJsonNull);
  EXPECT_EQ(tool.KindsOf("e"), kJsonString | kJsonNumber);
  EXPECT_EQ(tool.KindsOf("c"), kJsonBoolean);
  EXPECT_EQ(tool.KindsOf("r"), kJsonObject);
  EXPECT_EQ(tool.KindsOf("o"), kJsonArray | kJsonNull);
  for (const char* any : {"x", "loop", "lost", "absent"}) EXPECT_EQ(tool.KindsOf(any), kJsonAny);
}

TEST(AnswerStyleTest, TheTemplateShowsIt) {
  const auto style = [](std::string_view source) {
    const AnswerStyle found = DetectAnswerStyle(source, nullptr);
    return std::string(ToolStyleName(found.tools)) + "/" +
           std::string(ReasoningStyleName(found.reasoning));
  };
  EXPECT_EQ(style("{{ messages }}"), "none/none");
  EXPECT_EQ(style("<tool_call>\n{\"name\": "), "hermes/none");
  EXPECT_EQ(style("'<think>\n' <tool_call>\n<function=' + name"), "qwen3_coder/think");
  EXPECT_EQ(style("<tool_call>{{ name }}\n<arg_key>"), "glm/none");
  EXPECT_EQ(style("split('</think>')[-1] <TOOLCALL>["), "nemotron/think");
  EXPECT_EQ(style("<|tool_calls_section_begin|>"), "kimi/none");
  EXPECT_EQ(style("<|bom|> <tool_calls>"), "jamba/none");
  EXPECT_EQ(style("<tool_calls>\n"), "minimax/none");
  EXPECT_EQ(style("[TOOL_CALLS]"), "mistral/none");
  EXPECT_EQ(style("Environment: ipython"), "llama_json/none");
}

TEST(AnswerStyleTest, OrTheTokenizer) {
  const auto tokenizer = LoadTokenizer(WEIR_SOURCE_DIR "/models/weir-tiny");
  const AnswerStyle with_tools = DetectAnswerStyle("{{ tools }}", tokenizer.get());
  EXPECT_EQ(with_tools.tools, ToolStyle::kHermes);
  EXPECT_EQ(with_tools.reasoning, ReasoningStyle::kThink);
  EXPECT_EQ(DetectAnswerStyle("{{ messages }}", tokenizer.get()).tools, ToolStyle::kNone);
}

TEST(AnswerStyleTest, NamesAreTheirOwnInverse) {
  for (const std::string& name : ToolStyleNames()) {
    EXPECT_EQ(ToolStyleName(*ToolStyleFromName(name)), name);
  }
  for (const std::string& name : ReasoningStyleNames()) {
    EXPECT_EQ(ReasoningStyleName(*ReasoningStyleFromName(name)), name);
  }
  EXPECT_THAT(ToolStyleFromName("xml").status().message(), HasSubstr("none of none, hermes"));
  EXPECT_FALSE(ReasoningStyleFromName("").ok());
}

}  // namespace
}  // namespace weir::text
