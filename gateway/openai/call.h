// Requests of OpenAI's HTTP API -> calls of weir.v1.
//
// Pure functions, any thread. Every field of the published API is either honoured or refused by
// name, and so is every field that nobody knows (docs/openai-api.md lists them); null counts as
// absent. What the server checks better, ranges for one, is left to it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "gateway/api_error.h"
#include "weir/v1/generate.pb.h"
#include "weir/v1/info.pb.h"
#include "weir/v1/tokenize.pb.h"

namespace weir::gateway {

// What the gateway knows of the model behind it.
struct ModelFacts {
  std::string id;  // the name that requests use
  v1::ModelInfo model;
  v1::ServerLimits limits;
  int64_t created_s = 0;  // Unix time
};

// One POST of chat/completions or completions.
struct Call {
  // One Generate call each; a chat has one, completions may have several prompts. Choice c of
  // prompt p has index p * n + c in the answer.
  std::vector<v1::GenerateRequest> prompts;
  int32_t n = 1;  // choices of a prompt

  bool chat = false;
  bool stream = false;
  bool include_usage = false;  // a last chunk with the usage

  int32_t logprobs = -1;  // best tokens told beside each of the answer's; -1: no logprobs
  bool prompt_logprobs = false;
  bool echo = false;  // completions: the text begins with the prompt's
  bool return_token_ids = false;
  std::string service_tier;  // as asked for; empty: not
  ParamNames names;          // for FromStatus
};

std::variant<Call, ApiError> ParseChatCompletion(std::string_view body, const ModelFacts& facts);
std::variant<Call, ApiError> ParseCompletion(std::string_view body, const ModelFacts& facts);

struct TokenizeCall {
  v1::TokenizeRequest request;
  bool return_token_strs = false;
};
std::variant<TokenizeCall, ApiError> ParseTokenize(std::string_view body, const ModelFacts& facts);
std::variant<v1::DetokenizeRequest, ApiError> ParseDetokenize(std::string_view body,
                                                              const ModelFacts& facts);

}  // namespace weir::gateway
