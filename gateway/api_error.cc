#include "gateway/api_error.h"

#include <grpcpp/support/status.h>

#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gateway/openai/json_text.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace weir::gateway {
namespace {

const char* TypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 408:
      return "timeout_error";
    case 429:
      return "rate_limit_error";
    case 499:
      return "cancelled";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* CodeOf(int status) {
  switch (status) {
    case 408:
      return "timeout";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_exceeded";
    case 499:
      return "cancelled";
    case 503:
      return "service_unavailable";
    default:
      return "";
  }
}

int StatusOf(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::OUT_OF_RANGE:
      return 400;
    case grpc::StatusCode::UNAUTHENTICATED:
      return 401;
    case grpc::StatusCode::PERMISSION_DENIED:
      return 403;
    case grpc::StatusCode::NOT_FOUND:
      return 404;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return 408;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      // What gRPC itself says of a message past the backend's limit.
      return absl::StrContains(status.error_message(), "larger than max") ? 413 : 429;
    case grpc::StatusCode::CANCELLED:
      return 499;
    case grpc::StatusCode::UNIMPLEMENTED:
      return 501;
    case grpc::StatusCode::UNAVAILABLE:
      return 503;
    default:
      return 500;
  }
}

// The request's name of a field of weir.v1.
std::string ParamOf(std::string_view field, const ParamNames& names) {
  const std::pair<const char*, std::string> kPrefixes[] = {
      {"chat.messages", "messages"},
      {"chat.tools", "tools"},
      {"chat.template_kwargs", "chat_template_kwargs"},
      {"chat.", ""},
      {"chat", "messages"},
      {"token_ids.ids", names.prompt},
      {"token_ids", names.prompt},
      {"text", names.prompt},
      {"sampling.", ""},
      {"stopping.max_tokens", names.max_tokens},
      {"stopping.stop_strings", "stop"},
      {"stopping.include_stop", "include_stop_str_in_output"},
      {"stopping.", ""},
      {"output.logprobs", names.chat ? "top_logprobs" : "logprobs"},
      {"output.", ""},
      {"constraint", names.constraint},
      {"tool_use", "tool_choice"},
  };
  for (const auto& [prefix, param] : kPrefixes) {
    if (!absl::StartsWith(absl::string_view(field.data(), field.size()), prefix)) continue;
    const std::string_view rest = field.substr(std::string_view(prefix).size());
    const std::string_view first(prefix);
    // A constraint is one field to the client; inside a message two names differ.
    if (first == "constraint" || first == "tool_use") return param;
    if (first != "chat.messages") return absl::StrCat(param, std::string(rest));
    return absl::StrCat(
        param, absl::StrReplaceAll(std::string(rest), {{"].reasoning", "].reasoning_content"},
                                                       {"].name", "].function.name"},
                                                       {"].arguments", "].function.arguments"}}));
  }
  return std::string(field);
}

// `param` and `message` from BadRequest.
void ReadViolations(const google::rpc::BadRequest& bad, const ParamNames& names, ApiError* error) {
  std::string message;
  for (const auto& violation : bad.field_violations()) {
    const std::string param = ParamOf(violation.field(), names);
    if (message.empty()) error->param = param;
    absl::StrAppend(&message, message.empty() ? "" : "; ", param, ": ", violation.description());
    if (absl::StrContains(violation.description(), "longest sequence served")) {
      error->code = "context_length_exceeded";
    }
  }
  if (!message.empty()) error->message = std::move(message);
}

void AppendField(const char* name, const std::string& value, std::string* out) {
  absl::StrAppend(out, ",\"", name, "\":");
  if (value.empty()) {
    out->append("null");
  } else {
    AppendJsonString(value, out);
  }
}

}  // namespace

std::string ErrorBody(const ApiError& error) {
  std::string out = "{\"error\":{\"message\":";
  AppendJsonString(error.message, &out);
  AppendField("type", error.type, &out);
  AppendField("param", error.param, &out);
  AppendField("code", error.code, &out);
  out.append("}}");
  return out;
}

ApiError HttpError(int status, std::string message, int64_t retry_after_ms) {
  ApiError error;
  error.status = status;
  error.type = TypeOf(status);
  error.code = CodeOf(status);
  error.message = std::move(message);
  error.retry_after_ms = retry_after_ms;
  return error;
}

ApiError InvalidRequest(std::string param, std::string message, std::string code) {
  ApiError error = HttpError(400, std::move(message));
  error.param = std::move(param);
  error.code = std::move(code);
  return error;
}

ApiError InvalidApiKey(std::string message) {
  ApiError error = HttpError(401, std::move(message));
  error.code = "invalid_api_key";
  return error;
}

ApiError UnknownPath(const std::string& method, const std::string& path) {
  ApiError error = HttpError(
      404, absl::StrCat("there is no ", method, " ", path,
                        " here; of OpenAI's API this server has POST /v1/chat/completions, "
                        "POST /v1/completions and GET /v1/models"));
  error.code = "unknown_url";
  return error;
}

ApiError UnknownModel(const std::string& asked, const std::string& served) {
  ApiError error = HttpError(
      404,
      absl::StrCat("the model `", asked, "` is not served here; this server has `", served, "`"));
  error.param = "model";
  error.code = "model_not_found";
  return error;
}

ApiError FromStatus(const grpc::Status& status, const ParamNames& names) {
  ApiError error = HttpError(StatusOf(status), status.error_message());
  if (error.status == 401) error.code = "invalid_api_key";
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return error;
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&bad)) {
      ReadViolations(bad, names, &error);
    } else if (any.UnpackTo(&retry)) {
      const auto& delay = retry.retry_delay();
      error.retry_after_ms = delay.seconds() * 1000 + delay.nanos() / 1'000'000;
    }
  }
  return error;
}

}  // namespace weir::gateway
