#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/openai/answer.h"
#include "gateway/openai/call.h"
#include "gateway/openai/json_text.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {

std::variant<TokenizeCall, ApiError> ParseTokenize(std::string_view body, const ModelFacts& facts) {
  Json root;
  if (auto error = ParseObject(body, &root)) return *std::move(error);
  Problems problems;
  Fields fields(root, "", &problems);
  if (auto error = CheckModel(&fields, facts)) return *std::move(error);

  TokenizeCall call;
  call.return_token_strs = fields.Bool("return_token_strs").value_or(false);
  call.request.set_pieces(call.return_token_strs);
  const std::string* prompt = fields.String("prompt");
  const auto special = fields.Bool("add_special_tokens");
  if (special) call.request.set_add_special_tokens(*special);
  if (prompt != nullptr) {
    call.request.set_text(*prompt);
    fields.Refuse("messages", "cannot be joined with prompt");
  } else if (fields.Take("messages") != nullptr) {
    v1::Chat* chat = call.request.mutable_chat();
    ReadMessages(&fields, facts, chat);
    ReadTools(&fields, chat);
    ReadTemplate(&fields, facts, chat);
  } else {
    fields.Problem("prompt", "is required, or messages");
  }
  fields.RefuseUnknown();
  if (!problems.empty()) return problems.ToError();
  return call;
}

std::variant<v1::DetokenizeRequest, ApiError> ParseDetokenize(std::string_view body,
                                                              const ModelFacts& facts) {
  Json root;
  if (auto error = ParseObject(body, &root)) return *std::move(error);
  Problems problems;
  Fields fields(root, "", &problems);
  if (auto error = CheckModel(&fields, facts)) return *std::move(error);

  v1::DetokenizeRequest request;
  const Json* tokens = fields.Array("tokens");
  if (tokens == nullptr) {
    fields.Problem("tokens", "is required: an array of token ids");
  } else {
    for (size_t i = 0; i < tokens->size(); ++i) {
      const Json& id = (*tokens)[i];
      if (id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX) {
        request.add_ids(id.get<int32_t>());
      } else {
        fields.Problem(absl::StrCat("tokens[", i, "]"), "must be a token id");
      }
    }
  }
  // Here every token shows: the text is to give the same tokens again.
  request.set_skip_special_tokens(fields.Bool("skip_special_tokens").value_or(false));
  fields.RefuseUnknown();
  if (!problems.empty()) return problems.ToError();
  return request;
}

std::string TokenizeBody(const TokenizeCall& call, const v1::TokenizeResponse& response,
                         const ModelFacts& facts) {
  std::string out = "{\"count\":";
  AppendJsonInt(response.ids_size(), &out);
  out.append(",\"max_model_len\":");
  AppendJsonInt(facts.model.max_position(), &out);
  out.append(",\"tokens\":[");
  for (int i = 0; i < response.ids_size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonInt(response.ids(i), &out);
  }
  out.append("],\"token_strs\":");
  if (!call.return_token_strs) {
    out.append("null}");
    return out;
  }
  out.push_back('[');
  for (int i = 0; i < response.pieces_size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonString(response.pieces(i), &out);
  }
  out.append("]}");
  return out;
}

std::string DetokenizeBody(const v1::DetokenizeResponse& response) {
  std::string out = "{\"prompt\":";
  AppendJsonString(response.text(), &out);
  out.push_back('}');
  return out;
}

}  // namespace weir::gateway
