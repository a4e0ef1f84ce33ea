// Requests of OpenAI's API: what is honoured arrives in weir.v1, what is not is refused by name.
#include "gateway/openai/call.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace weir::gateway {
namespace {

ModelFacts TinyFacts() {
  ModelFacts facts;
  facts.id = "tiny";
  facts.created_s = 1700000000;
  facts.model.set_name("tiny");
  facts.model.set_max_position(8192);
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

}  // namespace
}  // namespace weir::gateway
