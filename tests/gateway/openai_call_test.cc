// Requests of OpenAI's API: what is honoured arrives in weir.v1, what is not is refused by name.
#include "gateway/openai/call.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace weir::gateway {
namespace {

ModelFacts TinyFacts() {
  ModelFacts facts;
  facts.id = "tiny";
  facts.created_s = 1700000000;
  facts.model.set_name("tiny");
  facts.model.set_max_position(8192);
  facts.limits.set_max_choices(16);
  facts.model.set_tool_parser("hermes");
  facts.model.set_chat_template("{{ messages }}{{ enable_thinking }}");
  facts.model.add_eos_token_ids(1);
  return facts;
}

v1::GenerateRequest FromText(const std::string& text) {
  v1::GenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

void ExpectEqual(const v1::GenerateRequest& got, const std::string& want) {
  google::protobuf::util::MessageDifferencer differencer;
  std::string report;
  differencer.ReportDifferencesToString(&report);
  EXPECT_TRUE(differencer.Compare(FromText(want), got)) << report;
}

constexpr char kHi[] = R"("messages": [{"role": "user", "content": "hi"}])";
// What every chat request becomes.
constexpr char kHiRequest[] = R"(chat { messages { role: "user" content: "hi" } } sampling {}
                                 stopping {} )";
constexpr char kOutput[] = "output { text: true token_ids: false parse_answer: true } ";

struct Case {
  const char* fields;  // beside the messages
  std::string want;    // beside kHiRequest, or the whole where it begins with '='
};

TEST(ParseChatCompletion, EveryFieldThatIsHonouredArrives) {
  const std::vector<Case> cases = {
      {R"("model": "tiny")", kOutput},
      {R"("model": "", "temperature": null, "made_up": null)", kOutput},
      {R"("temperature": 0)", std::string(kOutput) + "sampling { temperature: 0 }"},
      {R"("top_p": 0.5, "top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5)",
       std::string(kOutput) +
           "sampling { top_p: 0.5 top_k: 7 min_p: 0.25 repetition_penalty: 1.5 }"},
      {R"("top_k": -1)", std::string(kOutput) + "sampling { top_k: 0 }"},
      {R"("presence_penalty": -1, "frequency_penalty": 1.5)",
       std::string(kOutput) + "sampling { presence_penalty: -1 frequency_penalty: 1.5 }"},
      {R"("seed": -1)", std::string(kOutput) + "sampling { seed: 18446744073709551615 }"},
      {R"("logit_bias": {"5": -100, "6": 1.5})",
       std::string(kOutput) +
           "sampling { logit_bias { key: 5 value: -100 } logit_bias { key: 6 value: 1.5 } }"},
      {R"("max_tokens": 9)", std::string(kOutput) + "stopping { max_tokens: 9 }"},
      {R"("max_completion_tokens": 9)", std::string(kOutput) + "stopping { max_tokens: 9 }"},
      {R"("max_tokens": 9, "max_completion_tokens": 9)",
       std::string(kOutput) + "stopping { max_tokens: 9 }"},
      {R"("stop": "a")", std::string(kOutput) + "stopping { stop_strings: 'a' }"},
      {R"("stop": ["a", "b"])",
       std::string(kOutput) + "stopping { stop_strings: 'a' stop_strings: 'b' }"},
      {R"("stop_token_ids": [3], "min_tokens": 2, "ignore_eos": true,
          "include_stop_str_in_output": true)",
       std::string(kOutput) +
           "stopping { stop_token_ids: 3 min_tokens: 2 ignore_eos: true include_stop: true }"},
      {R"("n": 3, "priority": -5)", std::string(kOutput) + "n: 3 priority: -5"},
      {R"("logprobs": true)",
       "output { text: true token_ids: false parse_answer: true logprobs: 0 "
       "pieces: true }"},
      {R"("logprobs": true, "top_logprobs": 4)",
       "output { text: true token_ids: false parse_answer: true logprobs: 4 pieces: true }"},
      {R"("prompt_logprobs": 1, "return_token_ids": true, "skip_special_tokens": false)",
       "output { text: true token_ids: true parse_answer: true prompt_logprobs: 1 pieces: true "
       "prompt_token_ids: true skip_special_tokens: false }"},
      {R"("response_format": {"type": "text"})", kOutput},
      {R"("response_format": {"type": "json_object"})",
       std::string(kOutput) + "constraint { json_object: true }"},
      {R"("response_format": {"type": "json_schema", "json_schema":
          {"name": "x", "description": "y", "strict": true, "schema": {"z": 1, "a": [2]}}})",
       std::string(kOutput) + R"(constraint { json_schema: '{"z":1,"a":[2]}' })"},
      {R"("guided_json": {"type": "integer"})",
       std::string(kOutput) + R"(constraint { json_schema: '{"type":"integer"}' })"},
      {R"("guided_regex": "a+")", std::string(kOutput) + "constraint { regex: 'a+' }"},
      {R"("guided_choice": ["a", "b"])",
       std::string(kOutput) + "constraint { choice { values: 'a' values: 'b' } }"},
      {R"("guided_grammar": "start: \"a\"")",
       std::string(kOutput) + "constraint { lark: 'start: \"a\"' }"},
      {R"("structured_outputs": {"regex": "b+"})",
       std::string(kOutput) + "constraint { regex: 'b+' }"},
      {R"("stream": true, "stream_options": {"include_usage": true, "include_obfuscation": true})",
       kOutput},
      {R"("user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
          "safety_identifier": "s", "prompt_cache_key": "k", "verbosity": "medium",
          "modalities": ["text"], "parallel_tool_calls": true, "tool_choice": "auto")",
       kOutput},
      {R"("reasoning_effort": "none")",
       std::string(kOutput) + R"(chat { template_kwargs: '{"enable_thinking":false}' })"},
      {R"("chat_template_kwargs": {"a": 1}, "add_generation_prompt": false,
          "continue_final_message": true)",
       std::string(kOutput) + R"(chat { template_kwargs: '{"a":1}' add_generation_prompt: false
                                        continue_final_message: true })"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.fields);
    const std::string body = std::string("{") + kHi + ", " + c.fields + "}";
    const auto parsed = ParseChatCompletion(body, TinyFacts());
    const auto* error = std::get_if<ApiError>(&parsed);
    ASSERT_EQ(error, nullptr) << error->message;
    const Call& call = std::get<Call>(parsed);
    ASSERT_EQ(call.prompts.size(), 1u);
    v1::GenerateRequest want = FromText(kHiRequest);
    want.MergeFrom(FromText(c.want));
    ExpectEqual(call.prompts[0], want.DebugString());
  }
}

ApiError ErrorOf(const std::variant<Call, ApiError>& parsed) {
  const auto* error = std::get_if<ApiError>(&parsed);
  if (error != nullptr) return *error;
  ApiError none;
  none.status = 200;
  return none;
}

TEST(ParseChatCompletion, WhatIsNotServedIsRefusedByName) {
  struct Refusal {
    const char* fields;
    const char* param;
    const char* words;
  };
  const Refusal cases[] = {
      {R"("made_up": 1)", "made_up", "no field that this server knows"},
      {R"("functions": [])", "functions", "use tools"},
      {R"("function_call": "auto")", "function_call", "use tool_choice"},
      {R"("audio": {})", "audio", "no audio"},
      {R"("modalities": ["text", "audio"])", "modalities", "only text"},
      {R"("moderation": {})", "moderation", "not served"},
      {R"("prediction": {})", "prediction", "not served"},
      {R"("prompt_cache_options": {})", "prompt_cache_options", "not served"},
      {R"("prompt_cache_retention": "24h")", "prompt_cache_retention", "not served"},
      {R"("web_search_options": {})", "web_search_options", "not served"},
      {R"("verbosity": "low")", "verbosity", "not served"},
      {R"("store": true)", "store", "must be false"},
      {R"("service_tier": "flex")", "service_tier", "one tier"},
      {R"("metadata": {"a": 1})", "metadata.a", "a string"},
      {R"("user": 5)", "user", "must be a string, is an integer"},
      {R"("best_of": 2)", "best_of", "knows"},
      {R"("model": 7)", "model", "must be a string"},
      {R"("temperature": "hot")", "temperature", "must be a number, is a string"},
      {R"("temperature": 1e99)", "temperature", "too large"},
      {R"("max_tokens": 1.5)", "max_tokens", "an integer, is a number with a fraction"},
      {R"("max_tokens": 99999999999)", "max_tokens", "between"},
      {R"("max_tokens": 1, "max_completion_tokens": 2)", "max_tokens", "contradicts"},
      {R"("seed": 18446744073709551615)", "seed", "between"},
      {R"("n": 0)", "n", "between 1"},
      {R"("n": 2000000000)", "n", "between 1 and 16"},
      {R"("top_k": -2)", "top_k", "between -1"},
      {R"("stop": 5)", "stop", "a string or an array"},
      {R"("stop": ["a", 5])", "stop[1]", "must be a string"},
      {R"("stop_token_ids": [-1])", "stop_token_ids[0]", "token id"},
      {R"("logit_bias": {"x": 1})", "logit_bias[x]", "token id"},
      {R"("logit_bias": {"1": 101})", "logit_bias[1]", "-100 and 100"},
      {R"("logit_bias": {"1": true})", "logit_bias[1]", "must be a number"},
      {R"("logit_bias": [1])", "logit_bias", "must be an object"},
      {R"("logprobs": 5)", "logprobs", "must be true or false"},
      {R"("top_logprobs": 5)", "top_logprobs", "only allowed when logprobs is true"},
      {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs", "between 0 and 20"},
      {R"("stream": "yes")", "stream", "true or false"},
      {R"("stream_options": {"include_usage": true})", "stream_options", "when stream is true"},
      {R"("stream": true, "stream_options": {"x": 1})", "stream_options.x", "knows"},
      {R"("stream": true, "prompt_logprobs": 1)", "prompt_logprobs", "not told in a stream"},
      {R"("response_format": {"type": "xml"})", "response_format.type", "json_schema"},
      {R"("response_format": {"type": "json_schema"})", "response_format.json_schema", "required"},
      {R"("response_format": {"type": "json_schema", "json_schema": {"schema": {}}})",
       "response_format.json_schema.name", "required"},
      {R"("response_format": {"type": "json_object"}, "guided_regex": "a")", "guided_regex",
       "cannot be joined with response_format.type"},
      {R"("guided_choice": [1])", "guided_choice[0]", "must be a string"},
      {R"("structured_outputs": {"x": 1})", "structured_outputs.x", "knows"},
      {R"("tool_choice": "required")", "tool_choice", "when tools are given"},
      {R"("tool_choice": "sometimes")", "tool_choice", "none, auto, required"},
      {R"("tool_choice": {"type": "custom", "custom": {"name": "x"}})", "tool_choice.type",
       "only functions"},
      {R"("tools": [{"type": "function", "function": {"name": 5}}], "tool_choice":
          {"type": "function", "function": {"name": "g"}})",
       "tools[0].function.name", "must be a string"},
      {R"("tool_choice": {"type": "allowed_tools"})", "tool_choice.allowed_tools", "required"},
      {R"("tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "never",
          "tools": [{"type": "function", "function": {"name": "f"}}]}})",
       "tool_choice.allowed_tools.mode", "auto or required"},
      {R"("tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice":
          {"type": "allowed_tools", "allowed_tools": {"mode": "auto",
          "tools": [{"type": "function", "function": {"name": "g"}}]}})",
       "tool_choice.allowed_tools.tools[0]", "none of the names"},
      {R"("tools": [{"type": "custom", "custom": {}}])", "tools[0].type", "only functions"},
      {R"("tools": [{"type": "function", "function": {}}])", "tools[0].function.name", "required"},
      {R"("tools": [{"type": "function", "function": {"name": "f", "x": 1}}])",
       "tools[0].function.x", "knows"},
      {R"("tools": [7])", "tools[0]", "must be an object"},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(c.fields);
    const ApiError error =
        ErrorOf(ParseChatCompletion(std::string("{") + kHi + ", " + c.fields + "}", TinyFacts()));
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.type, "invalid_request_error");
    EXPECT_EQ(error.param, c.param);
    EXPECT_NE(error.message.find(c.param), std::string::npos) << error.message;
    EXPECT_NE(error.message.find(c.words), std::string::npos) << error.message;
  }
  // A template that knows neither of the two ways to be told.
  ModelFacts plain = TinyFacts();
  plain.model.set_chat_template("{{ messages }}");
  EXPECT_EQ(ErrorOf(ParseChatCompletion(std::string("{") + kHi + R"(, "reasoning_effort": "low"})",
                                        plain))
                .param,
            "reasoning_effort");
}

TEST(ParseChatCompletion, AllProblemsAreToldAtOnceAndTheFirstIsTheParam) {
  const ApiError error = ErrorOf(
      ParseChatCompletion(R"({"messages": [], "temperature": "x", "foo": 1})", TinyFacts()));
  EXPECT_EQ(error.param, "messages");
  EXPECT_EQ(error.message,
            "messages must hold at least one message; temperature must be a number, is a string; "
            "foo is no field that this server knows");
}

TEST(ParseChatCompletion, AnotherModelIsNotFound) {
  const ApiError error =
      ErrorOf(ParseChatCompletion(R"({"model": "gpt-4o", "nonsense": 1})", TinyFacts()));
  EXPECT_EQ(error.status, 404);
  EXPECT_EQ(error.code, "model_not_found");
  EXPECT_EQ(error.param, "model");
}

TEST(ParseChatCompletion, EveryKindOfMessageArrives) {
  const char* body = R"({"messages": [
    {"role": "developer", "content": "be kind", "name": "dev"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
     "function_call": null, "reasoning_content": "hm", "tool_calls": [
      {"id": "c1", "type": "function", "index": 0,
       "function": {"name": "f", "arguments": "{\"x\": 1}", "parsed_arguments": {"x": 1}}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "7"},
    {"role": "assistant", "content": null, "refusal": "no"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "strict": true, "description": null,
      "parameters": {"type": "object", "properties": {"x": {}, "a": {}}}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false})";
  const auto parsed = ParseChatCompletion(body, TinyFacts());
  ASSERT_TRUE(std::holds_alternative<Call>(parsed)) << std::get<ApiError>(parsed).message;
  v1::GenerateRequest want = FromText(R"(
    chat {
      messages { role: "system" content: "be kind" name: "dev" }
      messages { role: "user" content: "a\nb" }
      messages { role: "assistant" reasoning: "hm"
                 tool_calls { id: "c1" name: "f" arguments: '{"x": 1}' } }
      messages { role: "tool" tool_call_id: "c1" content: "7" }
      messages { role: "assistant" content: "no" }
      messages { role: "assistant" content: "never" }
    }
    tool_use { mode: MODE_NAMED name: "f" parallel: false }
    output { text: true token_ids: false parse_answer: true } sampling {} stopping {})");
  want.mutable_chat()->add_tools(
      R"({"type":"function","function":{"name":"f","parameters":{"type":"object",)"
      R"("properties":{"x":{},"a":{}}}}})");
  ExpectEqual(std::get<Call>(parsed).prompts[0], want.DebugString());
}

TEST(ParseChatCompletion, AllowedToolsAreTheOnesShown) {
  const auto parsed = ParseChatCompletion(
      std::string("{") + kHi + R"(, "tools": [{"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"name": "g"}}], "tool_choice": {"type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function":
        {"name": "g"}}]}}})",
      TinyFacts());
  ASSERT_TRUE(std::holds_alternative<Call>(parsed)) << std::get<ApiError>(parsed).message;
  v1::GenerateRequest want = FromText(kHiRequest);
  want.MergeFrom(FromText(std::string(kOutput) + R"(
      chat { tools: '{"type":"function","function":{"name":"g"}}' }
      tool_use { mode: MODE_REQUIRED })"));
  ExpectEqual(std::get<Call>(parsed).prompts[0], want.DebugString());
}

TEST(ParseChatCompletion, BadMessagesAreRefusedByTheirPlace) {
  struct Refusal {
    const char* message;
    const char* param;
    const char* words;
  };
  const Refusal cases[] = {
      {R"(7)", "messages[1]", "must be an object"},
      {R"({})", "messages[1].role", "required"},
      {R"({"role": "king", "content": "x"})", "messages[1].role", "one of"},
      {R"({"role": "function", "content": "x"})", "messages[1].role", "role tool"},
      {R"({"role": "user"})", "messages[1].content", "required"},
      {R"({"role": "assistant"})", "messages[1].content", "required"},
      {R"({"role": "user", "content": 5})", "messages[1].content", "a string or an array"},
      {R"({"role": "user", "content": "x", "tool_calls": []})", "messages[1].tool_calls", "knows"},
      {R"({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})",
       "messages[1].content[0]", "image_url"},
      {R"({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]})",
       "messages[1].content[0]", "input_audio"},
      {R"({"role": "user", "content": [{"type": "file", "file": {}}]})", "messages[1].content[0]",
       "only text"},
      {R"({"role": "user", "content": ["x"]})", "messages[1].content[0]", "an object with a type"},
      {R"({"role": "user", "content": [{"type": "text"}]})", "messages[1].content[0].text",
       "required"},
      {R"({"role": "assistant", "content": "", "function_call": {}})", "messages[1].function_call",
       "tool_calls"},
      {R"({"role": "assistant", "content": "", "audio": {}})", "messages[1].audio", "no audio"},
      {R"({"role": "assistant", "tool_calls": [{"type": "function"}]})",
       "messages[1].tool_calls[0].function", "required"},
      {R"({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 7}}]})",
       "messages[1].tool_calls[0].function.arguments", "JSON object"},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(c.message);
    const ApiError error = ErrorOf(ParseChatCompletion(
        std::string(R"({"messages": [{"role": "user", "content": "a"}, )") + c.message + "]}",
        TinyFacts()));
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.param, c.param);
    EXPECT_NE(error.message.find(c.words), std::string::npos) << error.message;
  }
}

TEST(ParseCompletion, PromptsOfEveryKind) {
  struct Prompt {
    const char* json;
    std::vector<std::string> want;
  };
  const Prompt cases[] = {
      {R"("a")", {"text: 'a'"}},
      {R"(["a", "b"])", {"text: 'a'", "text: 'b'"}},
      {R"([1, 2])", {"token_ids { ids: 1 ids: 2 }"}},
      {R"([[1], [2, 3]])", {"token_ids { ids: 1 }", "token_ids { ids: 2 ids: 3 }"}},
      {R"(["a", [3]])", {"text: 'a'", "token_ids { ids: 3 }"}},
  };
  for (const Prompt& c : cases) {
    SCOPED_TRACE(c.json);
    const auto parsed = ParseCompletion(
        std::string(R"({"prompt": )") + c.json + ", \"n\": 2, \"best_of\": 2}", TinyFacts());
    ASSERT_TRUE(std::holds_alternative<Call>(parsed)) << std::get<ApiError>(parsed).message;
    const Call& call = std::get<Call>(parsed);
    ASSERT_EQ(call.prompts.size(), c.want.size());
    for (size_t i = 0; i < c.want.size(); ++i) {
      v1::GenerateRequest want = FromText(
          "n: 2 sampling {} stopping { max_tokens: 16 } output { text: true token_ids: false }");
      want.MergeFrom(FromText(c.want[i]));
      ExpectEqual(call.prompts[i], want.DebugString());
    }
  }
  for (const char* bad :
       {R"("")", "[]", "7", "[-1]", R"(["a", 7])", R"([1, "a"])", R"([[]])", "null", "{}"}) {
    const ApiError error =
        ErrorOf(ParseCompletion(std::string(R"({"prompt": )") + bad + "}", TinyFacts()));
    EXPECT_EQ(error.status, 400) << bad;
    EXPECT_EQ(error.param.substr(0, 6), "prompt") << bad;
  }
}

TEST(ParseCompletion, ItsOwnFields) {
  const auto parsed = ParseCompletion(
      R"({"prompt": "a", "echo": true, "logprobs": 2, "add_special_tokens": false})", TinyFacts());
  ASSERT_TRUE(std::holds_alternative<Call>(parsed));
  ExpectEqual(std::get<Call>(parsed).prompts[0],
              "text: 'a' add_special_tokens: false sampling {} stopping { max_tokens: 16 } output {"
              " text: true token_ids: false logprobs: 2 prompt_logprobs: 2 pieces: true "
              " prompt_token_ids: true }");
  EXPECT_EQ(std::get<Call>(parsed).names.chat, false);
  for (const auto& [fields, param] :
       {std::pair(R"("suffix": "x")", "suffix"), std::pair(R"("best_of": 2)", "best_of"),
        std::pair(R"("logprobs": true)", "logprobs"), std::pair(R"("tools": [])", "tools"),
        std::pair(R"("messages": [])", "messages"),
        std::pair(R"("max_completion_tokens": 5)", "max_completion_tokens")}) {
    const ApiError error =
        ErrorOf(ParseCompletion(std::string(R"({"prompt": "a", )") + fields + "}", TinyFacts()));
    EXPECT_EQ(error.param, param);
  }
}

// Every choice repeats an echoed prompt.
TEST(ParseCompletion, WhatIsEchoedIsBounded) {
  const std::string prompt(3 << 20, 'a');
  const auto body = [&](int n, const char* echo) {
    return absl::StrCat(R"({"prompt": ")", prompt, R"(", "n": )", n, R"(, "echo": )", echo, "}");
  };
  EXPECT_TRUE(std::holds_alternative<Call>(ParseCompletion(body(4, "true"), TinyFacts())));
  EXPECT_TRUE(std::holds_alternative<Call>(ParseCompletion(body(8, "false"), TinyFacts())));
  const ApiError error = ErrorOf(ParseCompletion(body(8, "true"), TinyFacts()));
  EXPECT_EQ(error.status, 400);
  EXPECT_EQ(error.param, "echo");
}

TEST(ParseTokenize, TextOrChat) {
  const auto text = ParseTokenize(
      R"({"prompt": "a", "add_special_tokens": false, "return_token_strs": true})", TinyFacts());
  ASSERT_TRUE(std::holds_alternative<TokenizeCall>(text));
  EXPECT_EQ(std::get<TokenizeCall>(text).request.text(), "a");
  EXPECT_TRUE(std::get<TokenizeCall>(text).request.pieces());
  const auto chat = ParseTokenize(std::string("{") + kHi + "}", TinyFacts());
  ASSERT_TRUE(std::holds_alternative<TokenizeCall>(chat));
  EXPECT_EQ(std::get<TokenizeCall>(chat).request.chat().messages(0).content(), "hi");
  EXPECT_TRUE(std::holds_alternative<ApiError>(ParseTokenize("{}", TinyFacts())));
  EXPECT_TRUE(std::holds_alternative<ApiError>(
      ParseTokenize(std::string(R"({"prompt": "a", )") + kHi + "}", TinyFacts())));

  const auto ids = ParseDetokenize(R"({"model": "tiny", "tokens": [1, 2]})", TinyFacts());
  ASSERT_TRUE(std::holds_alternative<v1::DetokenizeRequest>(ids));
  EXPECT_EQ(std::get<v1::DetokenizeRequest>(ids).ids_size(), 2);
  EXPECT_FALSE(std::get<v1::DetokenizeRequest>(ids).skip_special_tokens());
  EXPECT_TRUE(
      std::holds_alternative<ApiError>(ParseDetokenize(R"({"tokens": ["a"]})", TinyFacts())));
}

TEST(ParseCompletion, WhatGoesAlongWithManyPromptsIsBounded) {
  const auto error_of = [](int prompts) {
    std::string body = R"({"max_tokens": 1, "guided_json": {"description": ")" +
                       std::string(1 << 20, 'x') + R"("}, "prompt": ["a")";
    for (int i = 1; i < prompts; ++i) body += R"(, "a")";
    const auto parsed = ParseCompletion(body + "]}", TinyFacts());
    const auto* error = std::get_if<ApiError>(&parsed);
    return error == nullptr ? "" : error->param;
  };
  EXPECT_EQ(error_of(8), "");
  EXPECT_EQ(error_of(200), "prompt");
}

TEST(ParseObject, HostileBodiesAreRefusedQuickly) {
  std::string keys = "{";
  for (int i = 0; i < 400'000; ++i) keys += "\"k" + std::to_string(i) + "\":0,";
  keys += "\"k\":0}";
  std::string values = R"({"prompt":[0)";
  for (int i = 0; i < 1'000'001; ++i) values += ",0";
  struct Hostile {
    std::string body;
    const char* words;
  };
  const Hostile cases[] = {
      {"", "byte"},
      {"null", "must be a JSON object, is null"},
      {"[]", "must be a JSON object, is an array"},
      {"{\"a\": 1", "no valid JSON"},
      {"{\"a\": 1} x", "no valid JSON"},
      {"{\"a\": \"\xff\"}", "no valid JSON"},
      {"{\"a\": \"\xed\xa0\x80\"}", "no valid JSON"},
      {R"({"a": "\ud800"})", "no valid JSON"},
      {R"({"a": 1e999})", "no valid JSON"},
      {R"({"a": NaN})", "no valid JSON"},
      {R"({"b": 1, "a": 1, "b": 2})", "field \"b\" twice"},
      {std::string(100'000, '['), "deeper than 64"},
      {"{\"a\":" + std::string(100'000, '['), "deeper than 64"},
      {[] {
         std::string deep;
         for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
         return deep;
       }(),
       "deeper than 64"},
      {keys, "k0 is no field"},
      {values + "]}", "more than 1000000"},
  };
  for (const Hostile& c : cases) {
    SCOPED_TRACE(c.body.substr(0, 40));
    const ApiError error = ErrorOf(ParseCompletion(c.body, TinyFacts()));
    EXPECT_EQ(error.status, 400);
    EXPECT_NE(error.message.find(c.words), std::string::npos) << error.message;
    EXPECT_LT(error.message.size(), 4000u);
  }
  const ApiError tool = ErrorOf(ParseChatCompletion(
      std::string("{") + kHi + R"(, "tools": [{"type": "function", "function": )" + keys + "}]}",
      TinyFacts()));
  EXPECT_EQ(tool.param, "tools[0].function.name");
}

TEST(ParseObject, DepthUpToTheLimitIsFine) {
  const std::string open(60, '['), close(60, ']');
  const std::string body =
      std::string("{") + kHi + R"(, "chat_template_kwargs": {"a": )" + open + close + "}}";
  EXPECT_TRUE(std::holds_alternative<Call>(ParseChatCompletion(body, TinyFacts())));
}

}  // namespace
}  // namespace weir::gateway
