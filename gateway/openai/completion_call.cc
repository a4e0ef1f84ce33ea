#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/openai/call.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {
namespace {

// Prompts of one call: each is a call of its own to the backend.
constexpr size_t kMaxPrompts = 256;
// What all prompts have in common goes along with each: schemas, biases.
constexpr size_t kMaxRepeatedBytes = 16 << 20;
// The API's own default.
constexpr int32_t kDefaultMaxTokens = 16;

// A list of token ids; false: it is none, and `path` was told why.
bool ReadIds(const Json& given, const std::string& path, Problems* problems, v1::TokenIds* ids) {
  for (size_t i = 0; i < given.size(); ++i) {
    const Json& id = given[i];
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      problems->Add(absl::StrCat(path, "[", i, "]"), "must be a token id");
      return false;
    }
    ids->add_ids(id.get<int32_t>());
  }
  return true;
}

void AddPrompt(const Json& given, const std::string& path, Problems* problems, Call* call) {
  v1::GenerateRequest& request = call->prompts.emplace_back();
  if (given.is_string()) {
    request.set_text(given.get_ref<const std::string&>());
    if (request.text().empty()) problems->Add(path, "is empty");
  } else if (given.is_array()) {
    if (given.empty()) problems->Add(path, "is empty");
    ReadIds(given, path, problems, request.mutable_token_ids());
  } else {
    problems->Add(path,
                  absl::StrCat("must be a string or an array of token ids, is ", Kind(given)));
  }
}

// One prompt as a string or token ids, or several of them in a list.
void ReadPrompts(Fields* fields, Call* call) {
  const Json* prompt = fields->Take("prompt");
  if (prompt == nullptr) {
    fields->Problem("prompt", "is required");
    return;
  }
  const bool several = prompt->is_array() && !prompt->empty() &&
                       (prompt->front().is_string() || prompt->front().is_array());
  if (!several) {
    AddPrompt(*prompt, "prompt", fields->problems(), call);
    return;
  }
  if (prompt->size() > kMaxPrompts) {
    fields->Problem("prompt", absl::StrCat("has ", prompt->size(), " entries; at most ",
                                           kMaxPrompts, " are allowed"));
    return;
  }
  for (size_t i = 0; i < prompt->size(); ++i) {
    AddPrompt((*prompt)[i], absl::StrCat("prompt[", i, "]"), fields->problems(), call);
  }
}

}  // namespace

std::variant<Call, ApiError> ParseCompletion(std::string_view body, const ModelFacts& facts) {
  Json root;
  if (auto error = ParseObject(body, &root)) return *std::move(error);
  Problems problems;
  Fields fields(root, "", &problems);
  if (auto error = CheckModel(&fields, facts)) return *std::move(error);

  Call call;
  call.names.chat = false;
  call.names.constraint = "structured_outputs";
  v1::GenerateRequest options;  // of all prompts
  ReadPrompts(&fields, &call);
  ReadCommon(&fields, facts, &call, &options);
  ReadConstraint(&fields, &call, &options);
  options.mutable_stopping()->set_max_tokens(
      static_cast<int32_t>(fields.Int("max_tokens").value_or(kDefaultMaxTokens)));
  if (const auto value = fields.Int("logprobs", 0)) {
    call.logprobs = static_cast<int32_t>(*value);
    options.mutable_output()->set_logprobs(call.logprobs);
  }
  call.echo = fields.Bool("echo").value_or(false);
  const auto special = fields.Bool("add_special_tokens");
  const auto best_of = fields.Int("best_of");
  if (best_of && *best_of != call.n) {
    fields.Problem("best_of", "must equal n: every answer is given, none is picked");
  }
  fields.Refuse("suffix", "is not served: this model only continues");
  fields.RefuseUnknown();
  if (!problems.empty()) return problems.ToError();

  v1::OutputOptions* output = options.mutable_output();
  if (call.echo && call.logprobs >= 0) output->set_prompt_logprobs(call.logprobs);
  if (call.logprobs >= 0 || call.prompt_logprobs) output->set_pieces(true);
  if (call.echo) {
    output->set_pieces(true);
    output->set_prompt_token_ids(true);
  }
  if (call.return_token_ids) output->set_prompt_token_ids(true);
  if (options.ByteSizeLong() * call.prompts.size() > kMaxRepeatedBytes && call.prompts.size() > 1) {
    return InvalidRequest(
        "prompt", absl::StrCat("prompt has ", call.prompts.size(), " entries, and the fields that ",
                               "go along with each have ", options.ByteSizeLong(),
                               " bytes; send fewer at once"));
  }
  size_t echoed = 0;  // bytes, of all choices
  for (const v1::GenerateRequest& prompt : call.prompts) {
    echoed += prompt.ByteSizeLong() * static_cast<size_t>(call.n);
  }
  if (call.echo && echoed > kMaxRepeatedBytes) {
    return InvalidRequest(
        "echo", absl::StrCat("would repeat ", echoed, " bytes of prompts, n times each; at most ",
                             kMaxRepeatedBytes, " are repeated"));
  }
  for (v1::GenerateRequest& prompt : call.prompts) {
    if (special && prompt.has_text()) prompt.set_add_special_tokens(*special);
    prompt.MergeFrom(options);
  }
  return call;
}

}  // namespace weir::gateway
