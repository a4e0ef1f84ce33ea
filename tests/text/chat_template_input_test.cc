// What a folder, a request or a template may contain: found in the right place, or refused with a
// sentence; never an abort, never without end.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/text_test_support.h"
#include "text/chat_template.h"

namespace weir::text {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kMessages[] = R"([{"role":"user","content":"Hi"}])";

absl::StatusOr<std::string> Render(std::string_view source, ChatRequest request = {}) {
  if (request.messages_json.empty()) request.messages_json = kMessages;
  absl::StatusOr<ChatTemplate> chat = ChatTemplate::FromSource(source, nullptr);
  if (!chat.ok()) return chat.status();
  return chat->Render(request);
}

void ExpectRefused(const absl::StatusOr<std::string>& result, absl::StatusCode code,
                   const std::string& sentence) {
  EXPECT_EQ(result.status().code(), code) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(sentence));
}

TEST(ChatTemplateLoadTest, LooksInThePlacesInOrder) {
  const Folder folder;
  const auto tokenizer = TinyTokenizer(R"({"eos_token":"</s>"})");
  const auto rendered = [&](const std::string& name = "") -> std::string {
    absl::StatusOr<ChatTemplate> chat = ChatTemplate::Load(folder.path(), *tokenizer);
    if (!chat.ok()) return chat.status().ToString();
    ChatRequest request;
    request.messages_json = kMessages;
    request.template_name = name;
    return chat->Render(request).value_or("error");
  };
  absl::StatusOr<ChatTemplate> none = ChatTemplate::Load(folder.path(), *tokenizer);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  folder.Write("tokenizer_config.json", R"({"chat_template":null})");
  none = ChatTemplate::Load(folder.path(), *tokenizer);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);

  folder.Write("tokenizer_config.json", R"({"chat_template":"config{{ eos_token }}"})");
  EXPECT_EQ(rendered(), "config</s>");
  folder.Write("chat_template.json", R"({"chat_template":"json"})");
  EXPECT_EQ(rendered(), "json");
  folder.Write("chat_template.jinja", "jinja{{ messages[0].content }}\n");
  EXPECT_EQ(rendered(), "jinjaHi");
  folder.Write("additional_chat_templates/rag.jinja", "rag");
  folder.Write("additional_chat_templates/notes.txt", "{% broken");
  EXPECT_EQ(rendered(), "jinjaHi");
  EXPECT_EQ(rendered("rag"), "rag");

  const absl::StatusOr<ChatTemplate> chat = ChatTemplate::Load(folder.path(), *tokenizer);
  ASSERT_TRUE(chat.ok());
  EXPECT_THAT(chat->names(), ElementsAre("default", "rag"));
  EXPECT_EQ(chat->source(), "jinja{{ messages[0].content }}\n");
  EXPECT_EQ(chat->source("rag"), "rag");
  EXPECT_EQ(chat->source("nope"), "");
}

TEST(ChatTemplateLoadTest, NamedTemplates) {
  const Folder folder;
  folder.Write("tokenizer_config.json", R"({"chat_template":[
      {"name":"default","template":"plain"},{"name":"tool_use","template":"tools"},
      {"name":"rag","template":"rag"}]})");
  const absl::StatusOr<ChatTemplate> chat = ChatTemplate::Load(folder.path(), *TinyTokenizer("{}"));
  ASSERT_TRUE(chat.ok()) << chat.status();
  ChatRequest request;
  request.messages_json = kMessages;
  EXPECT_EQ(*chat->Render(request), "plain");
  request.tools_json = "null";
  EXPECT_EQ(*chat->Render(request), "plain");
  request.tools_json = "[]";
  EXPECT_EQ(*chat->Render(request), "tools");
  request.template_name = "rag";
  EXPECT_EQ(*chat->Render(request), "rag");
  request.template_name = "nope";
  ExpectRefused(chat->Render(request), absl::StatusCode::kNotFound, "default, tool_use, rag");
}

TEST(ChatTemplateLoadTest, BrokenFilesAreRefused) {
  const auto tokenizer = TinyTokenizer("{}");
  const struct {
    const char* file;
    const char* contents;
    const char* sentence;
  } cases[] = {
      {"tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON"},
      {"tokenizer_config.json", R"({"chat_template":7})", "must be a string or a list"},
      {"tokenizer_config.json", R"({"chat_template":[{"name":"x"}]})",
       "must be a string or a list"},
      {"tokenizer_config.json", R"({"chat_template":["x"]})", "must be a string or a list"},
      {"chat_template.json", "\"text\"x", "chat_template.json: not valid JSON"},
      {"chat_template.jinja", "one\ntwo\n{% if %}", "(line 3)"},
      {"chat_template.jinja", "{{ 1 +", "cannot be compiled"},
      {"chat_template.jinja", "{% for x in y %}", "cannot be compiled"},
      {"chat_template.jinja", "\xFF", "not valid UTF-8 at byte 0"},
      {"additional_chat_templates/a.jinja", "{% nope %}", "a.jinja: "},
  };
  for (const auto& c : cases) {
    const Folder folder;
    folder.Write(c.file, c.contents);
    const absl::StatusOr<ChatTemplate> chat = ChatTemplate::Load(folder.path(), *tokenizer);
    EXPECT_EQ(chat.status().code(), absl::StatusCode::kInvalidArgument) << c.contents;
    EXPECT_THAT(std::string(chat.status().message()), HasSubstr(c.sentence));
    EXPECT_THAT(std::string(chat.status().message()), HasSubstr(c.file));
  }
}

TEST(ChatTemplateInputTest, BadRequestsAreRefused) {
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  const std::string source = "{{ messages[0].content }}";
  for (const char* messages : {"{", "[1", "\xFF\xFE"}) {
    ExpectRefused(Render(source, {.messages_json = messages}), invalid, "messages: not valid JSON");
  }
  ExpectRefused(Render(source, {.messages_json = "[]"}), invalid, "at least one message");
  ExpectRefused(Render(source, {.messages_json = "{}"}), invalid, "array of objects");
  ExpectRefused(Render(source, {.messages_json = "null"}), invalid, "array of objects");
  ExpectRefused(Render(source, {.messages_json = R"([{"role":"user"},"x"])"}), invalid,
                "messages[1] must be a JSON object");
  ExpectRefused(Render(source, {.tools_json = "7"}), invalid, "tools must be a JSON array");
  ExpectRefused(Render(source, {.tools_json = "[7]"}), invalid, "tools[0]");
  ExpectRefused(Render(source, {.documents_json = "[[]]"}), invalid, "documents[0]");
  ExpectRefused(Render(source, {.kwargs_json = "[]"}), invalid, "must be a JSON object");
  for (const char* name : {"messages", "tools", "documents", "add_generation_prompt"}) {
    ExpectRefused(Render(source, {.kwargs_json = std::string("{\"") + name + "\":1}"}), invalid,
                  "has a field of its own");
  }
  // JSON that is nested too deep for any reader.
  const std::string deep = "[{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}]";
  ExpectRefused(Render(source, {.messages_json = deep}), invalid, "recursion limit");
}

TEST(ChatTemplateInputTest, ContinuingTheFinalMessage) {
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  const std::string source =
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}";
  const std::string messages =
      R"([{"role":"user","content":"Count"},{"role":"assistant","content":"one, two, "}])";
  EXPECT_EQ(*Render(source, {.messages_json = messages,
                             .add_generation_prompt = false,
                             .continue_final_message = true}),
            "<user>Count</user><assistant>one, two, ");
  const std::string trimmed =
      "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}";
  EXPECT_EQ(*Render(trimmed, {.messages_json = messages,
                              .add_generation_prompt = false,
                              .continue_final_message = true}),
            "<user>Count</user><assistant>one, two,");
  ExpectRefused(Render(source, {.messages_json = messages,
                                .add_generation_prompt = true,
                                .continue_final_message = true}),
                invalid, "exclude each other");
  ExpectRefused(Render(source, {.messages_json = R"([{"role":"assistant","content":null}])",
                                .add_generation_prompt = false,
                                .continue_final_message = true}),
                invalid, "no text to continue");
  ExpectRefused(Render("fixed", {.messages_json = messages,
                                 .add_generation_prompt = false,
                                 .continue_final_message = true}),
                invalid, "does not use");
  ExpectRefused(Render("{{ messages[0].content }}", {.messages_json = messages,
                                                     .add_generation_prompt = false,
                                                     .continue_final_message = true}),
                invalid, "does not show the last message");
}

TEST(ChatTemplateInputTest, TheTemplatesOwnWordsReachTheClient) {
  ExpectRefused(Render("{{ raise_exception('Roles must alternate: ' ~ messages[0].role) }}"),
                absl::StatusCode::kInvalidArgument,
                "refuses these messages: Roles must alternate: user");
  ExpectRefused(Render("a\nb{{ nope.deep }}"), absl::StatusCode::kInvalidArgument, "(line 2)");
}

TEST(ChatTemplateInputTest, EndlessTemplatesAreStopped) {
  const absl::StatusCode exhausted = absl::StatusCode::kResourceExhausted;
  const std::string loops =
      "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor "
      "%}";
  ExpectRefused(Render(loops), exhausted, "does not come to an end");
  const std::string text =
      "{% set s = 'x' * 1000000 %}{% for a in range(9999) %}{{ s }}{% endfor %}";
  ExpectRefused(Render(text), exhausted, "64 MiB");
  // Calls without end meet the recursion limit.
  EXPECT_FALSE(Render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").ok());
  EXPECT_FALSE(Render("{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}").ok());
}

TEST(ChatTemplateInputTest, DeepExpressionsAndOddSourcesNeverAbort) {
  const std::vector<std::string> sources = {
      "",
      std::string("\0", 1),
      "{",
      "{{",
      "{%",
      "{#",
      "{% generation",
      "{% raw %}",
      "{% endgeneration %}",
      "{{ " + std::string(100000, '(') + " }}",
      "{{ " + std::string(100000, '[') + " }}",
      "{{ " + std::string(100000, '-') + "1 }}",
      "{{ 'a'" + std::string(5000, '|') + "upper }}",
      "{{ 9999999999999999999999999999999999999999999 * 9999999999999999999999 }}",
      "{{ 'x'.ljust(99999999999) }}{{ 'x' | center(99999999999) }}",
      "{{ {} | tojson(indent=99999999999) }}",
      "{{ 'x' * 99999999999 }}",
      "{{ range(99999999999) | list }}",
      "{{ strftime_now('%9999999d') }}",
      "{{ strftime_now('\\u0000') }}",
      "{{ ''.count('') }}{{ 'abc'.split('') }}",
      "{{ 'é'.find('x') }}{{ 'é'[0:99999999999:99999999999] }}",
      "{% include 'default' %}",
      "{% extends 'default' %}",
      "{% import 'default' as d %}{{ d }}",
  };
  for (const std::string& source : sources) {
    const absl::StatusOr<std::string> result = Render(source);
    EXPECT_NE(result.status().code(), absl::StatusCode::kInternal)
        << source.substr(0, 60) << " " << result.status();
  }
  std::string nested;
  for (int i = 0; i < 3000; ++i) nested += "{% if true %}";
  EXPECT_FALSE(Render(nested).ok());
  ExpectRefused(Render(std::string(2 << 20, 'x')), absl::StatusCode::kInvalidArgument, "1048576");
}

// As long as a template may be, of everything that the compiler takes apart by recursion.
TEST(ChatTemplateInputTest, TheLongestChainsCompileOrAreRefused) {
  const auto repeat = [](const std::string& part) {
    std::string out;
    while (out.size() + part.size() < 1000000) out += part;
    return out;
  };
  for (const char* part : {"-", "not ", "(", "[", "{1:", "1+", "1~", "1 and ", "1 if 1 else ", "a.",
                           "1 in ", "a(", "a[", "1**", "1|d("}) {
    (void)Render("{{ " + repeat(part) + "1 }}");
  }
  for (const char* part : {"|d", ".a", "[0]", "()", " is true", " 'a'", "+1", "==1", "[::]"}) {
    (void)Render("{{ a" + repeat(part) + " }}");
  }
  ExpectRefused(Render("a\n{{ 1" + repeat("+1") + " }}"), absl::StatusCode::kInvalidArgument,
                "in line 2; at most 8192");
  EXPECT_EQ(Render("{{ '" + std::string(100000, 'x') + "' | length }}").value_or(""), "100000");
  (void)Render("{% if 0 %}" + repeat("{% elif 0 %}") + "{% endif %}");
  (void)Render(repeat("{% for x in [1] %}"));
  (void)Render(repeat("{% macro f() %}"));
  (void)Render(repeat("{% set x %}"));
}

// A value that nests as deep as the bound on instructions lets it.
TEST(ChatTemplateInputTest, DeepValuesArePrintedAndFreed) {
  for (const char* grow : {"[ns.v]", "{'a': ns.v}", "dict(a=ns.v)", "ns.v * 1"}) {
    const std::string loop =
        std::string(
            "{% set ns = namespace(v=[1]) %}{% for a in range(4) %}{% for b in range(20000) %}"
            "{% set ns.v = ") +
        grow + " %}{% endfor %}{% endfor %}";
    EXPECT_EQ(Render(loop + "done").value_or("refused"), "done") << grow;
    (void)Render(loop + "{{ ns.v }}");
    (void)Render(loop + "{{ ns.v ~ '' }}");
    (void)Render(loop + "{{ ns.v | tojson }}");
    (void)Render(loop + "{{ ns.v == ns.v }}");
  }
}

TEST(ChatTemplateInputTest, KeysKeepTheirOrderAndNumbersTheirForm) {
  const char* tools =
      R"([{"z":1,"a":{"y":[1.0,18446744073709551615,-1,0.1,1e22],"b":null},"0":"\u0000\ud83d\ude00"}])";
  EXPECT_EQ(*Render("{{ tools | tojson }}", {.tools_json = tools}),
            R"([{"z": 1, "a": {"y": [1.0, 18446744073709551615, -1, 0.1, 1e+22], "b": null}, )"
            "\"0\": \"\\u0000\U0001F600\"}]");
  ExpectRefused(Render("x", {.tools_json = R"([{"a":"\ud83d"}])"}),
                absl::StatusCode::kInvalidArgument, "tools: not valid JSON");
}

}  // namespace
}  // namespace weir::text
