// Errors as OpenAI's clients expect them: an HTTP status and {"error": {message, type, param,
// code}}.
#pragma once

#include <cstdint>
#include <string>

namespace grpc {
class Status;
}

namespace weir::gateway {

struct ApiError {
  int status = 500;            // of HTTP
  std::string type;            // "invalid_request_error", "rate_limit_error", ...
  std::string code;            // "model_not_found", ...; empty: null
  std::string param;           // the request's field, "messages[2].content"; empty: null
  std::string message;         // a sentence for people
  int64_t retry_after_ms = 0;  // 0: none; else for Retry-After
};

// The JSON body. Valid UTF-8 whatever the fields hold.
std::string ErrorBody(const ApiError& error);

// 400, about one field of the request.
ApiError InvalidRequest(std::string param, std::string message, std::string code = "");
// 401; `message` says what is missing or wrong with the key.
ApiError InvalidApiKey(std::string message);
// 404: no such path, or a part of OpenAI's API that is not served ("/v1/embeddings").
ApiError UnknownPath(const std::string& method, const std::string& path);
// 404: the model asked for is not the one that is served.
ApiError UnknownModel(const std::string& asked, const std::string& served);
// An error of the gateway itself, with the type that goes with the status: 405, 408, 413, 429, 431,
// 499, 500, 503.
ApiError HttpError(int status, std::string message, int64_t retry_after_ms = 0);

// How the request of a call named what weir.v1 names otherwise.
struct ParamNames {
  bool chat = true;                            // messages and top_logprobs, or prompt and logprobs
  std::string max_tokens = "max_tokens";       // or max_completion_tokens
  std::string constraint = "response_format";  // or guided_json, ...
  std::string prompt = "prompt";               // or prompt[3]
};

// What a backend's status is to the client. BadRequest's fields become the request's (the first one
// is `param`, all of them are in the message), RetryInfo becomes retry_after_ms. REQUIRES: not OK.
ApiError FromStatus(const grpc::Status& status, const ParamNames& names = {});

}  // namespace weir::gateway
