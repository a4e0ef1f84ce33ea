// Constrained answers as a client sees them, over a fake executor that chooses evenly from what is
// allowed: every token, and where the answer ends, is the constraint's doing.
#include "server/constraint.h"

#include <nlohmann/json.hpp>
#include <regex>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "server/violations.h"
#include "tests/server/test_model.h"
#include "tests/server/test_server.h"
#include "weir/v1/info.grpc.pb.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;

TestServer::Options DefaultOptions() {
  TestServer::Options options;
  options.model = TestModel();
  return options;
}

v1::GenerateRequest Request(int seed) {
  v1::GenerateRequest request;
  request.set_text("Q" + std::to_string(seed));
  request.mutable_stopping()->set_max_tokens(200);
  request.mutable_sampling()->set_seed(static_cast<uint64_t>(seed));
  return request;
}

void ExpectEnded(const Gathered& out) {
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  for (const Gathered::Choice& choice : out.choices) {
    EXPECT_EQ(choice.finished.reason(), v1::FINISH_REASON_STOP) << choice.text;
    EXPECT_EQ(choice.finished.stop_token_id(), kEndId);
  }
}

// The one field that is wrong, and why.
std::pair<std::string, std::string> Violation(const Gathered& out) {
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  google::rpc::BadRequest bad;
  EXPECT_TRUE(GetDetail(out.status, &bad));
  if (bad.field_violations_size() != 1) return {"", out.status.error_message()};
  return {bad.field_violations(0).field(), bad.field_violations(0).description()};
}

TEST(ConstraintServiceTest, EveryKindHolds) {
  TestServer server(DefaultOptions());
  for (int seed = 0; seed < 8; ++seed) {
    v1::GenerateRequest request = Request(seed);
    request.mutable_constraint()->set_regex("[a-c]{3}(x|yy)");
    Gathered out = server.Generate(request);
    ExpectEnded(out);
    EXPECT_TRUE(std::regex_match(out.choices[0].text, std::regex("[a-c]{3}(x|yy)")))
        << out.choices[0].text;

    auto* values = request.mutable_constraint()->mutable_choice()->mutable_values();
    values->Add("one");
    values->Add("other");
    out = server.Generate(request);
    ExpectEnded(out);
    EXPECT_TRUE(out.choices[0].text == "one" || out.choices[0].text == "other");

    request.mutable_constraint()->set_lark("start: \"(\" /[0-9]{2}/ \")\"");
    out = server.Generate(request);
    ExpectEnded(out);
    EXPECT_TRUE(std::regex_match(out.choices[0].text, std::regex("\\([0-9]{2}\\)")));

    request.mutable_constraint()->set_json_schema(R"({"type": "array", "maxItems": 3,
        "items": {"type": "object", "properties": {"id": {"type": "integer", "minimum": 3,
        "maximum": 12}}, "required": ["id"], "additionalProperties": false}})");
    out = server.Generate(request);
    ExpectEnded(out);
    const auto value = nlohmann::json::parse(out.choices[0].text, nullptr, false);
    ASSERT_TRUE(value.is_array()) << out.choices[0].text;
    for (const auto& item : value) {
      EXPECT_GE(item.at("id").get<int>(), 3);
      EXPECT_LE(item.at("id").get<int>(), 12);
    }
  }
  server.ExpectNothingHeld();
}

TEST(ConstraintServiceTest, JsonObjectIsOneAsFarAsItGoes) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = Request(1);
  request.mutable_constraint()->set_json_object(true);
  const Gathered out = server.Generate(request);
  ASSERT_TRUE(out.status.ok()) << out.status.error_message();
  EXPECT_EQ(out.choices[0].text.at(0), '{');
}

TEST(ConstraintServiceTest, ItGoesWithIdsChoicesBiasesAndLimits) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = Request(5);
  request.mutable_token_ids()->add_ids(65);
  request.set_n(3);
  request.mutable_sampling()->set_temperature(1.5);
  request.mutable_sampling()->set_presence_penalty(0.5);
  request.mutable_constraint()->set_regex("[ -~]{12}");
  request.mutable_stopping()->set_min_tokens(50);  // the answer is complete before
  request.mutable_output()->set_logprobs(2);
  const Gathered out = server.Generate(request);
  ExpectEnded(out);
  ASSERT_EQ(out.choices.size(), 3u);
  for (const Gathered::Choice& choice : out.choices) {
    EXPECT_TRUE(std::regex_match(choice.text, std::regex("[ -~]{12}"))) << choice.text;
    EXPECT_EQ(choice.ids.size(), 13u);
  }
  EXPECT_NE(out.choices[0].text, out.choices[1].text);
  // The same seed, the same answers.
  const Gathered again = server.Generate(request);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(again.choices[i].ids, out.choices[i].ids);

  request.mutable_stopping()->set_min_tokens(0);
  request.mutable_stopping()->set_max_tokens(2);
  const Gathered cut = server.Generate(request);
  ASSERT_TRUE(cut.status.ok());
  EXPECT_EQ(cut.choices[0].finished.reason(), v1::FINISH_REASON_LENGTH);
}

TEST(ConstraintServiceTest, WhatIsWrongIsNamedWithTheReason) {
  TestServer::Options options = DefaultOptions();
  options.server.max_constraint_bytes = 100;
  TestServer server(options);
  v1::GenerateRequest request = Request(1);
  request.mutable_constraint();
  EXPECT_EQ(Violation(server.Generate(request)).first, "constraint.kind");
  request.mutable_constraint()->set_json_object(false);
  EXPECT_EQ(Violation(server.Generate(request)).first, "constraint.json_object");
  request.mutable_constraint()->mutable_choice();
  EXPECT_EQ(Violation(server.Generate(request)).first, "constraint.choice.values");
  request.mutable_constraint()->mutable_choice()->add_values("");
  EXPECT_EQ(Violation(server.Generate(request)).first, "constraint.choice.values[0]");
  request.mutable_constraint()->set_lark("");
  EXPECT_EQ(Violation(server.Generate(request)).first, "constraint.lark");
  request.mutable_constraint()->set_regex("[");
  auto [field, why] = Violation(server.Generate(request));
  EXPECT_EQ(field, "constraint.regex");
  EXPECT_THAT(why, HasSubstr("unclosed character class"));
  request.mutable_constraint()->set_json_schema(R"({"not": {"type": "string"}})");
  std::tie(field, why) = Violation(server.Generate(request));
  EXPECT_EQ(field, "constraint.json_schema");
  EXPECT_THAT(why, HasSubstr("not"));
  request.mutable_constraint()->set_regex(std::string(101, 'a'));
  std::tie(field, why) = Violation(server.Generate(request));
  EXPECT_EQ(field, "constraint.regex");
  EXPECT_THAT(why, HasSubstr("at most 100"));
  request.mutable_constraint()->set_regex("a");
  request.mutable_stopping()->set_ignore_eos(true);
  EXPECT_EQ(Violation(server.Generate(request)).first, "stopping.ignore_eos");
  request.mutable_stopping()->set_ignore_eos(false);
  ExpectEnded(server.Generate(request));  // it goes on serving
}

TEST(ConstraintSpecTest, WhatTheCompilerWouldUnrollIsBounded) {
  const auto problem = [](const char* kind, const std::string& text) {
    v1::Constraint constraint;
    if (std::string_view(kind) == "lark") {
      constraint.set_lark(text);
    } else {
      constraint.set_json_schema(text);
    }
    server::Violations violations;
    const bool fits = server::ToConstraintSpec(constraint, 1 << 20, &violations).has_value();
    EXPECT_EQ(fits, violations.empty());
    return fits ? "" : std::string(violations.ToStatus().message());
  };
  EXPECT_EQ(problem("json", R"({"type":"array","minItems":9000,"maxItems":10000})"), "");
  EXPECT_EQ(problem("json", R"({"minimum":100000000})"), "");
  EXPECT_THAT(problem("json", R"({"type":"array","minItems":100000000})"),
              HasSubstr("has arrays of 1e+08 values"));
  EXPECT_THAT(problem("json", R"({"a":[{"maxItems":15000},{"max\u0049tems":1.5e4}]})"),
              HasSubstr("has arrays of 30000 values"));
  EXPECT_THAT(problem("lark", "start: \"%json\" x\nx: %json {\"minItems\":100000000}\n"),
              HasSubstr("has arrays of"));
  std::string fields;
  for (int i = 0; i < 2001; ++i) fields += absl::StrCat(i == 0 ? "" : ",", "\"p", i, "\":{}");
  EXPECT_THAT(problem("json", absl::StrCat("{\"properties\":{", fields, "}}")),
              HasSubstr("more than 2000 fields"));
}

TEST(ConstraintServiceTest, OneThatGetsTooComplexEndsTheAnswerWithTheReason) {
  TestServer server(DefaultOptions());
  v1::GenerateRequest request = Request(1);
  nlohmann::json properties;
  for (int i = 0; i < 600; ++i) properties["p" + std::to_string(i)] = {{"type", "integer"}};
  request.mutable_constraint()->set_json_schema(
      nlohmann::json({{"type", "object"}, {"properties", properties}}).dump());
  const Gathered out = server.Generate(request);
  const auto [field, why] = Violation(out);
  EXPECT_EQ(field, "constraint");
  EXPECT_THAT(why, HasSubstr("could not be continued"));
  ASSERT_EQ(out.choices.size(), 1u);
  EXPECT_EQ(out.choices[0].finished.reason(), v1::FINISH_REASON_ERROR);
  server.ExpectNothingHeld();
}

TEST(ConstraintServiceTest, AModelThatCannotSaysSo) {
  TestServer::Options options;
  options.model = IdsOnlyModel();
  v1::GenerateRequest request = IdsRequest({1}, 5);
  request.mutable_stopping()->set_ignore_eos(false);
  request.mutable_constraint()->set_regex("a");
  {
    TestServer server(options);
    const Gathered out = server.Generate(request);
    EXPECT_EQ(out.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(out.status.error_message(), HasSubstr("tokenizer"));
  }
  options.model = TestModel();
  options.model.eos_ids.clear();
  TestServer server(options);
  const Gathered out = server.Generate(request);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(out.status.error_message(), HasSubstr("end token"));
}

TEST(ConstraintServiceTest, CompiledConstraintsAreCountedAndTheModelTells) {
  TestServer server(DefaultOptions());
  for (int i = 0; i < 5; ++i) {
    v1::GenerateRequest request = Request(i);
    request.mutable_constraint()->set_regex(i < 3 ? "ab?" : "cd?");
    ExpectEnded(server.Generate(request));
  }
  const std::string text = server.registry().Serialize();
  EXPECT_THAT(text, HasSubstr("weir_constraint_cache_lookups_total{result=\"hit\"} 3"));
  EXPECT_THAT(text, HasSubstr("weir_constraint_cache_lookups_total{result=\"miss\"} 2"));
  EXPECT_THAT(text, HasSubstr("weir_constraint_compile_seconds_count 2"));

  const auto stub = v1::ModelService::NewStub(server.channel());
  v1::GetModelResponse model;
  grpc::ClientContext rpc;
  ASSERT_TRUE(stub->GetModel(&rpc, {}, &model).ok());
  EXPECT_TRUE(model.model().constraints());
}

}  // namespace
}  // namespace weir::testing
