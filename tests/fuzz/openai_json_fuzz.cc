// Bodies of any bytes to OpenAI's paths: each is a call or an error with a sentence; what is made
// of either is JSON.
#include <grpcpp/support/status.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "gateway/openai/answer.h"
#include "gateway/openai/call.h"
#include "gateway/openai/json_text.h"

using namespace weir::gateway;

namespace {

// What a byte past ASCII stands for, so that whole fields are found soon.
const std::vector<std::string>& Words() {
  static const auto* words =
      new std::vector<std::string>{"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],",
                                   "{\"prompt\":\"a\",",
                                   "{\"tokens\":[1],",
                                   "\"model\":",
                                   "\"prompt\":",
                                   "\"messages\":",
                                   "\"role\":\"assistant\",",
                                   "\"role\":\"tool\",",
                                   "\"content\":",
                                   "\"reasoning_content\":",
                                   "\"tool_calls\":",
                                   "\"tool_call_id\":",
                                   "\"type\":\"function\",",
                                   "\"function\":",
                                   "\"name\":\"f\",",
                                   "\"arguments\":",
                                   "\"tools\":",
                                   "\"tool_choice\":",
                                   "\"parallel_tool_calls\":",
                                   "\"type\":\"allowed_tools\",\"allowed_tools\":",
                                   "\"mode\":\"auto\",",
                                   "\"temperature\":",
                                   "\"top_k\":",
                                   "\"seed\":",
                                   "\"stop\":",
                                   "\"stop_token_ids\":",
                                   "\"logit_bias\":",
                                   "\"logprobs\":",
                                   "\"top_logprobs\":",
                                   "\"prompt_logprobs\":",
                                   "\"n\":",
                                   "\"max_tokens\":",
                                   "\"max_completion_tokens\":",
                                   "\"stream\":true,",
                                   "\"stream_options\":",
                                   "\"include_usage\":true",
                                   "\"response_format\":",
                                   "\"type\":\"json_schema\",",
                                   "\"json_schema\":",
                                   "\"schema\":",
                                   "\"structured_outputs\":",
                                   "\"guided_json\":",
                                   "\"guided_choice\":",
                                   "\"chat_template_kwargs\":",
                                   "\"reasoning_effort\":\"low\",",
                                   "\"metadata\":",
                                   "\"echo\":true,",
                                   "\"best_of\":",
                                   "\"return_token_ids\":true,",
                                   "null",
                                   "true",
                                   "\"\\u00e9\\ud83d\\ude00\"",
                                   "\"\\ud800\"",
                                   "\"text\"",
                                   "\"type\":\"text\",\"text\":",
                                   "-1",
                                   "99999999999999999999",
                                   "1e999",
                                   "[[[[[[[[[[[[[[[[",
                                   "{\"a\":"};
  return *words;
}

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void CheckError(const ApiError& error) {
  Require(error.status == 400 || error.status == 404, "a status that is none of ours");
  Require(!error.message.empty(), "an error without a sentence");
  Require(nlohmann::json::accept(ErrorBody(error)), "an error that is no JSON");
}

// An answer to the call, with `text` in every place.
void CheckAnswer(const Call& call, const ModelFacts& facts, const std::string& text) {
  Answer answer(call, facts, "id-" + text, 1);
  std::string sse;
  weir::v1::GenerateEvent events[3];
  events[0].mutable_accepted()->add_prompt_token_ids(1);
  events[0].mutable_accepted()->add_prompt_pieces(text);
  weir::v1::Delta* delta = events[1].mutable_delta();
  delta->set_text(text);
  delta->add_token_ids(7);
  delta->mutable_logprobs()->add_token_ids(7);
  delta->mutable_logprobs()->add_logprobs(-1);
  delta->mutable_logprobs()->add_pieces(text);
  delta->add_tool_calls()->set_arguments(text);
  events[2].mutable_choice_finished()->set_reason(weir::v1::FINISH_REASON_STOP);
  for (size_t prompt = 0; prompt < call.prompts.size(); ++prompt) {
    for (const weir::v1::GenerateEvent& event : events) answer.OnEvent(prompt, event, &sse);
    answer.OnEnd(prompt, grpc::Status::OK, &sse);
  }
  Require(answer.complete(), "an answer without an end");
  if (!call.stream) return Require(nlohmann::json::accept(answer.Body()), "a body that is no JSON");
  for (size_t at = 0; at < sse.size();) {
    const size_t end = sse.find("\n\n", at);
    Require(end != std::string::npos && sse.compare(at, 6, "data: ") == 0, "a broken event");
    const std::string data = sse.substr(at + 6, end - at - 6);
    Require(data == "[DONE]" || nlohmann::json::accept(data), "a chunk that is no JSON");
    at = end + 2;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* facts = [] {
    auto* made = new ModelFacts;
    made->id = "m";
    made->limits.set_max_choices(16);
    made->model.set_tool_parser("hermes");
    made->model.set_chat_template("enable_thinking");
    return made;
  }();
  if (size == 0) return 0;
  std::string body;
  for (size_t i = 1; i < size; ++i) {
    const size_t word = data[i] & 0x7f;
    if ((data[0] & 4) == 0 && data[i] >= 0x80 && word < Words().size()) {
      body += Words()[word];
    } else {
      body += static_cast<char>(data[i]);
    }
  }
  std::string quoted;
  AppendJsonString(body, &quoted);
  Require(nlohmann::json::accept(quoted), "a string that is no JSON");
  const auto error = [](const auto& parsed) {
    const auto* found = std::get_if<ApiError>(&parsed);
    if (found != nullptr) CheckError(*found);
    return found != nullptr;
  };
  if ((data[0] & 3) < 2) {
    const auto parsed =
        (data[0] & 3) == 0 ? ParseChatCompletion(body, *facts) : ParseCompletion(body, *facts);
    if (error(parsed)) return 0;
    const Call& call = std::get<Call>(parsed);
    Require(!call.prompts.empty() && call.n >= 1, "a call without a prompt");
    CheckAnswer(call, *facts, body.substr(0, 40));
  } else if ((data[0] & 3) == 2) {
    error(ParseTokenize(body, *facts));
  } else {
    error(ParseDetokenize(body, *facts));
  }
  return 0;
}
