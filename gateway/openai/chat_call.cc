#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "gateway/openai/call.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {
namespace {

void ReadMaxTokens(Fields* fields, Call* call, v1::StoppingOptions* stopping) {
  const auto older = fields->Int("max_tokens");
  const auto newer = fields->Int("max_completion_tokens");
  if (older && newer && *older != *newer) {
    fields->Problem("max_tokens", "contradicts max_completion_tokens; give one of them");
  }
  if (newer) call->names.max_tokens = "max_completion_tokens";
  if (older || newer) stopping->set_max_tokens(static_cast<int32_t>(newer ? *newer : *older));
}

void ReadLogprobs(Fields* fields, Call* call, v1::OutputOptions* output) {
  const bool logprobs = fields->Bool("logprobs").value_or(false);
  const auto top = fields->Int("top_logprobs", 0, 20);
  if (top.value_or(0) > 0 && !logprobs) {
    fields->Problem("top_logprobs", "is only allowed when logprobs is true");
  }
  if (!logprobs) return;
  call->logprobs = static_cast<int32_t>(top.value_or(0));
  output->set_logprobs(call->logprobs);
}

void ReadVerbosity(Fields* fields) {
  fields->Only("verbosity", "medium", "is not served; leave it out");
  const Json* modalities = fields->Array("modalities");
  if (modalities != nullptr && *modalities != Json::array({"text"})) {
    fields->Problem("modalities", "must be [\"text\"]: this model gives only text");
  }
}

void RefuseUnserved(Fields* fields) {
  fields->Refuse("audio", "is not served: this model gives no audio");
  fields->Refuse("functions", "is not served any more; use tools");
  fields->Refuse("function_call", "is not served any more; use tool_choice");
  fields->Refuse("moderation", "is not served");
  fields->Refuse("prediction", "is not served");
  fields->Refuse("prompt_cache_options", "is not served");
  fields->Refuse("prompt_cache_retention", "is not served");
  fields->Refuse("web_search_options", "is not served: nothing is looked up on the web");
}

}  // namespace

std::variant<Call, ApiError> ParseChatCompletion(std::string_view body, const ModelFacts& facts) {
  Json root;
  if (auto error = ParseObject(body, &root)) return *std::move(error);
  Problems problems;
  Fields fields(root, "", &problems);
  if (auto error = CheckModel(&fields, facts)) return *std::move(error);

  Call call;
  call.chat = true;
  v1::GenerateRequest request;
  ReadMessages(&fields, facts, request.mutable_chat());
  ReadTools(&fields, request.mutable_chat());
  ReadToolChoice(&fields, &request);
  ReadTemplate(&fields, facts, request.mutable_chat());
  ReadCommon(&fields, facts, &call, &request);
  ReadMaxTokens(&fields, &call, request.mutable_stopping());
  ReadLogprobs(&fields, &call, request.mutable_output());
  ReadConstraint(&fields, &call, &request);
  ReadVerbosity(&fields);
  RefuseUnserved(&fields);
  fields.RefuseUnknown();
  if (!problems.empty()) return problems.ToError();

  v1::OutputOptions* output = request.mutable_output();
  if (!facts.model.tool_parser().empty() || !facts.model.reasoning_parser().empty()) {
    output->set_parse_answer(true);
  }
  if (call.logprobs >= 0 || call.prompt_logprobs) output->set_pieces(true);
  if (call.return_token_ids) output->set_prompt_token_ids(true);
  call.prompts.push_back(std::move(request));
  return call;
}

}  // namespace weir::gateway
