#include "gateway/api_error.h"

#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace weir::gateway {
namespace {

grpc::Status Invalid(const std::vector<std::pair<std::string, std::string>>& violations) {
  google::rpc::BadRequest bad;
  for (const auto& [field, description] : violations) {
    auto* violation = bad.add_field_violations();
    violation->set_field(field);
    violation->set_description(description);
  }
  google::rpc::Status details;
  details.add_details()->PackFrom(bad);
  return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "raw", details.SerializeAsString());
}

TEST(FromStatus, CodesBecomeStatuses) {
  using grpc::StatusCode;
  const std::pair<StatusCode, int> cases[] = {
      {StatusCode::INVALID_ARGUMENT, 400},  {StatusCode::FAILED_PRECONDITION, 400},
      {StatusCode::OUT_OF_RANGE, 400},      {StatusCode::UNAUTHENTICATED, 401},
      {StatusCode::PERMISSION_DENIED, 403}, {StatusCode::NOT_FOUND, 404},
      {StatusCode::DEADLINE_EXCEEDED, 408}, {StatusCode::RESOURCE_EXHAUSTED, 429},
      {StatusCode::CANCELLED, 499},         {StatusCode::INTERNAL, 500},
      {StatusCode::UNKNOWN, 500},           {StatusCode::DATA_LOSS, 500},
      {StatusCode::UNIMPLEMENTED, 501},     {StatusCode::UNAVAILABLE, 503},
  };
  for (const auto& [code, status] : cases) {
    const ApiError error = FromStatus(grpc::Status(code, "why"));
    EXPECT_EQ(error.status, status) << code;
    EXPECT_EQ(error.message, "why");
    EXPECT_FALSE(error.type.empty());
  }
  EXPECT_EQ(FromStatus(grpc::Status(StatusCode::RESOURCE_EXHAUSTED,
                                    "Received message larger than max (9 vs. 4)"))
                .status,
            413);
}

TEST(FromStatus, FieldsBecomeParams) {
  ParamNames names;
  names.max_tokens = "max_completion_tokens";
  names.constraint = "response_format.json_schema.schema";
  names.prompt = "prompt[2]";
  const std::pair<const char*, const char*> cases[] = {
      {"chat", "messages"},
      {"chat.messages", "messages"},
      {"chat.messages[3].content", "messages[3].content"},
      {"chat.messages[3].reasoning", "messages[3].reasoning_content"},
      {"chat.messages[1].tool_calls[0].name", "messages[1].tool_calls[0].function.name"},
      {"chat.messages[1].tool_calls[0].arguments", "messages[1].tool_calls[0].function.arguments"},
      {"chat.tools[4]", "tools[4]"},
      {"chat.template_kwargs", "chat_template_kwargs"},
      {"chat.continue_final_message", "continue_final_message"},
      {"text", "prompt[2]"},
      {"token_ids.ids[5]", "prompt[2][5]"},
      {"sampling.temperature", "temperature"},
      {"sampling.logit_bias[7]", "logit_bias[7]"},
      {"stopping.max_tokens", "max_completion_tokens"},
      {"stopping.min_tokens", "min_tokens"},
      {"stopping.stop_strings[1]", "stop[1]"},
      {"stopping.stop_token_ids[1]", "stop_token_ids[1]"},
      {"stopping.include_stop", "include_stop_str_in_output"},
      {"output.logprobs", "top_logprobs"},
      {"output.prompt_logprobs", "prompt_logprobs"},
      {"constraint.json_schema", "response_format.json_schema.schema"},
      {"tool_use.name", "tool_choice"},
      {"n", "n"},
      {"priority", "priority"},
  };
  for (const auto& [field, param] : cases) {
    const ApiError error = FromStatus(Invalid({{field, "is bad"}}), names);
    EXPECT_EQ(error.param, param);
    EXPECT_EQ(error.message, std::string(param) + ": is bad");
    EXPECT_EQ(error.type, "invalid_request_error");
  }
  names.chat = false;
  EXPECT_EQ(FromStatus(Invalid({{"output.logprobs", "x"}}), names).param, "logprobs");
  const ApiError both = FromStatus(Invalid({{"n", "is 0"}, {"sampling.top_p", "is 2"}}));
  EXPECT_EQ(both.param, "n");
  EXPECT_EQ(both.message, "n: is 0; top_p: is 2");
}

TEST(FromStatus, RetryInfoIsKept) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(2);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  google::rpc::Status details;
  details.add_details()->PackFrom(retry);
  const ApiError error = FromStatus(
      grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", details.SerializeAsString()));
  EXPECT_EQ(error.retry_after_ms, 2500);
  EXPECT_EQ(error.code, "rate_limit_exceeded");
}

TEST(FromStatus, GarbageDetailsAreNoHarm) {
  EXPECT_EQ(FromStatus(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xff\xff\xff")).message, "x");
}

TEST(ErrorBody, IsOpenAIsObjectAndAlwaysValidJson) {
  ApiError error = InvalidRequest("messages[0]", "is \"bad\"\n\xff");
  EXPECT_EQ(ErrorBody(error),
            "{\"error\":{\"message\":\"is \\\"bad\\\"\\n\xEF\xBF\xBD\","
            "\"type\":\"invalid_request_error\",\"param\":\"messages[0]\",\"code\":null}}");
  EXPECT_EQ(nlohmann::json::parse(ErrorBody(HttpError(500, "")))["error"]["type"], "server_error");
  EXPECT_EQ(UnknownPath("POST", "/v1/embeddings").status, 404);
  EXPECT_EQ(InvalidApiKey("no").code, "invalid_api_key");
}

}  // namespace
}  // namespace weir::gateway
