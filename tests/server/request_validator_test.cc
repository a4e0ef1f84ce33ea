#include "server/request_validator.h"

#include <cmath>
#include <functional>

#include "absl/strings/str_cat.h"
#include "core/error_details.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/test_model.h"
#include "weir/v1/generate.pb.h"
#include "weir/v1/tokenize.pb.h"

namespace weir::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using weir::testing::IdsOnlyModel;
using weir::testing::kBotId;
using weir::testing::kEndId;
using weir::testing::kUserId;
using weir::testing::TestModel;

class ValidatorTest : public ::testing::Test {
 protected:
  absl::StatusOr<ValidRequest> Validate(const v1::GenerateRequest& request) {
    return ValidateGenerate(request, model_, limits_, /*random_seed=*/99);
  }
  // Validates, encodes, sets the prompt.
  absl::StatusOr<ValidRequest> Complete(const v1::GenerateRequest& request) {
    absl::StatusOr<ValidRequest> valid = Validate(request);
    if (!valid.ok()) return valid.status();
    std::vector<int32_t> prompt = valid->request.prompt;
    if (valid->source.text || valid->source.chat) {
      absl::StatusOr<std::vector<int32_t>> ids = EncodePrompt(valid->source, model_, nullptr);
      if (!ids.ok()) return ids.status();
      prompt = *ids;
    }
    const absl::Status set = SetPrompt(std::move(prompt), model_, limits_, &*valid);
    if (!set.ok()) return set;
    return valid;
  }
  v1::GenerateRequest Good() {
    v1::GenerateRequest request;
    request.set_text("hi");
    return request;
  }

  ServedModel model_ = TestModel();
  RequestLimits limits_;
};

TEST_F(ValidatorTest, DefaultsAreTheDocumentedOnes) {
  const absl::StatusOr<ValidRequest> valid = Complete(Good());
  ASSERT_TRUE(valid.ok()) << valid.status();
  const scheduler::Request& request = valid->request;
  EXPECT_THAT(request.prompt, ElementsAre('h', 'i'));
  EXPECT_EQ(request.num_choices, 1);
  EXPECT_EQ(request.sampling.temperature, 1.0f);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.top_p, 1.0f);
  EXPECT_EQ(request.sampling.min_p, 0.0f);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(request.sampling.seed, 99u);
  EXPECT_EQ(request.sampling.logprobs, -1);
  EXPECT_EQ(request.prompt_logprobs, -1);
  EXPECT_EQ(request.max_tokens, 254);  // what is left of 256, less than the default bound
  EXPECT_EQ(request.min_tokens, 0);
  EXPECT_THAT(request.stop_ids, ElementsAre(kEndId));
  EXPECT_EQ(request.priority, 0);
  EXPECT_TRUE(valid->stream.text);
  EXPECT_TRUE(valid->stream.token_ids);
  EXPECT_TRUE(valid->stream.skip_special_tokens);
  limits_.default_max_tokens = 7;
  EXPECT_EQ(Complete(Good())->request.max_tokens, 7);
}

TEST_F(ValidatorTest, TheModelsOwnDefaultsComeFirst) {
  model_.sampling = {
      .temperature = 0.6f, .top_k = 20, .top_p = 0.95f, .min_p = 0.1f, .repetition_penalty = 1.1f};
  v1::GenerateRequest request = Good();
  EXPECT_EQ(Validate(request)->request.sampling.temperature, 0.6f);
  EXPECT_EQ(Validate(request)->request.sampling.top_k, 20);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(0);
  request.mutable_sampling()->set_seed(5);
  const auto sampling = Validate(request)->request.sampling;
  EXPECT_EQ(sampling.temperature, 0.0f);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.top_p, 0.95f);
  EXPECT_EQ(sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(sampling.seed, 5u);
}

TEST_F(ValidatorTest, EverythingThatIsGivenArrives) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(1);
  request.mutable_token_ids()->add_ids(kEndId);
  auto* sampling = request.mutable_sampling();
  sampling->set_presence_penalty(1.5f);
  sampling->set_frequency_penalty(-0.5f);
  (*sampling->mutable_logit_bias())[9] = -100;
  (*sampling->mutable_logit_bias())[4] = 2;
  auto* stopping = request.mutable_stopping();
  stopping->set_max_tokens(20);
  stopping->set_min_tokens(3);
  stopping->add_stop_strings("END");
  stopping->add_stop_token_ids(7);
  stopping->add_stop_token_ids(7);
  stopping->set_include_stop(true);
  auto* output = request.mutable_output();
  output->set_logprobs(2);
  output->set_prompt_logprobs(0);
  output->set_skip_special_tokens(false);
  request.set_n(3);
  request.set_priority(-4);
  const absl::StatusOr<ValidRequest> valid = Complete(request);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_THAT(valid->request.prompt, ElementsAre(1, kEndId));
  EXPECT_THAT(valid->request.sampling.logit_bias, ElementsAre(Pair(4, 2.0f), Pair(9, -INFINITY)));
  EXPECT_EQ(valid->request.sampling.presence_penalty, 1.5f);
  EXPECT_EQ(valid->request.sampling.frequency_penalty, -0.5f);
  EXPECT_EQ(valid->request.sampling.logprobs, 2);
  EXPECT_EQ(valid->request.prompt_logprobs, 0);
  EXPECT_EQ(valid->request.max_tokens, 20);
  EXPECT_EQ(valid->request.min_tokens, 3);
  EXPECT_EQ(valid->request.num_choices, 3);
  EXPECT_EQ(valid->request.priority, -4);
  EXPECT_THAT(valid->request.stop_ids, ElementsAre(7, kEndId));
  EXPECT_THAT(valid->stream.stop_strings, ElementsAre("END"));
  EXPECT_TRUE(valid->stream.include_stop);
  EXPECT_FALSE(valid->stream.skip_special_tokens);
  stopping->set_ignore_eos(true);
  EXPECT_THAT(Complete(request)->request.stop_ids, ElementsAre(7));
}

// One bad field at a time: each is named, and the sentence says what is allowed.
struct BadCase {
  const char* field;
  const char* sentence;
  std::function<void(v1::GenerateRequest*)> spoil;
};

std::vector<BadCase> BadCases() {
  using R = v1::GenerateRequest;
  return {
      {"input", "one of text, token_ids and chat", [](R* r) { r->clear_input(); }},
      {"text", "empty", [](R* r) { r->set_text(""); }},
      {"token_ids.ids", "empty", [](R* r) { r->mutable_token_ids(); }},
      {"token_ids.ids[1]", "0 to 263",
       [](R* r) {
         r->mutable_token_ids()->add_ids(3);
         r->mutable_token_ids()->add_ids(264);
       }},
      {"token_ids.ids[0]", "token id -1", [](R* r) { r->mutable_token_ids()->add_ids(-1); }},
      {"add_special_tokens", "only goes with text",
       [](R* r) {
         r->mutable_token_ids()->add_ids(3);
         r->set_add_special_tokens(true);
       }},
      {"sampling.temperature", "-0.1; allowed: 0 to 100",
       [](R* r) { r->mutable_sampling()->set_temperature(-0.1f); }},
      {"sampling.temperature", "101", [](R* r) { r->mutable_sampling()->set_temperature(101); }},
      {"sampling.temperature", "nan", [](R* r) { r->mutable_sampling()->set_temperature(NAN); }},
      {"sampling.temperature", "inf",
       [](R* r) { r->mutable_sampling()->set_temperature(INFINITY); }},
      {"sampling.top_k", "-1", [](R* r) { r->mutable_sampling()->set_top_k(-1); }},
      {"sampling.top_p", "above 0 to 1", [](R* r) { r->mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", "1.5", [](R* r) { r->mutable_sampling()->set_top_p(1.5f); }},
      {"sampling.min_p", "allowed: 0 to 1", [](R* r) { r->mutable_sampling()->set_min_p(2); }},
      {"sampling.min_p", "-1", [](R* r) { r->mutable_sampling()->set_min_p(-1); }},
      {"sampling.repetition_penalty", "above 0",
       [](R* r) { r->mutable_sampling()->set_repetition_penalty(0); }},
      {"sampling.presence_penalty", "-100 to 100",
       [](R* r) { r->mutable_sampling()->set_presence_penalty(-101); }},
      {"sampling.frequency_penalty", "-100 to 100",
       [](R* r) { r->mutable_sampling()->set_frequency_penalty(NAN); }},
      {"sampling.logit_bias[264]", "out of range",
       [](R* r) { (*r->mutable_sampling()->mutable_logit_bias())[264] = 1; }},
      {"sampling.logit_bias[3]", "-100 to 100",
       [](R* r) { (*r->mutable_sampling()->mutable_logit_bias())[3] = 101; }},
      {"stopping.max_tokens", "at least 1", [](R* r) { r->mutable_stopping()->set_max_tokens(0); }},
      {"stopping.max_tokens", "at least 1",
       [](R* r) { r->mutable_stopping()->set_max_tokens(-7); }},
      {"stopping.min_tokens", "0 and above",
       [](R* r) { r->mutable_stopping()->set_min_tokens(-1); }},
      {"stopping.min_tokens", "more than max_tokens, 3",
       [](R* r) {
         r->mutable_stopping()->set_max_tokens(3);
         r->mutable_stopping()->set_min_tokens(4);
       }},
      {"stopping.stop_strings[0]", "empty",
       [](R* r) { r->mutable_stopping()->add_stop_strings(""); }},
      {"stopping.stop_strings[0]", "1025 bytes",
       [](R* r) { r->mutable_stopping()->add_stop_strings(std::string(1025, 'x')); }},
      {"stopping.stop_strings", "at most 16",
       [](R* r) {
         for (int i = 0; i < 17; ++i) r->mutable_stopping()->add_stop_strings("s");
       }},
      {"stopping.stop_token_ids[0]", "out of range",
       [](R* r) { r->mutable_stopping()->add_stop_token_ids(-5); }},
      {"stopping.stop_token_ids", "at most 64",
       [](R* r) {
         for (int i = 0; i < 65; ++i) r->mutable_stopping()->add_stop_token_ids(i);
       }},
      {"output", "both off",
       [](R* r) {
         r->mutable_output()->set_text(false);
         r->mutable_output()->set_token_ids(false);
       }},
      {"output.logprobs", "0 to 20", [](R* r) { r->mutable_output()->set_logprobs(21); }},
      {"output.logprobs", "-1", [](R* r) { r->mutable_output()->set_logprobs(-1); }},
      {"output.prompt_logprobs", "0 to 20",
       [](R* r) { r->mutable_output()->set_prompt_logprobs(21); }},
      {"n", "1 to 16", [](R* r) { r->set_n(0); }},
      {"n", "1 to 16", [](R* r) { r->set_n(17); }},
      {"n", "at temperature 0",
       [](R* r) {
         r->set_n(2);
         r->mutable_sampling()->set_temperature(0);
       }},
      {"priority", "-1000 to 1000", [](R* r) { r->set_priority(1001); }},
      {"chat.messages", "at least one", [](R* r) { r->mutable_chat(); }},
      {"chat.messages[0].role", "required",
       [](R* r) { r->mutable_chat()->add_messages()->set_content("x"); }},
      {"chat.messages[0].content", "required",
       [](R* r) { r->mutable_chat()->add_messages()->set_role("user"); }},
  };
}

TEST_F(ValidatorTest, EachBadFieldIsNamed) {
  for (const BadCase& bad : BadCases()) {
    v1::GenerateRequest request = Good();
    bad.spoil(&request);
    const absl::StatusOr<ValidRequest> valid = Validate(request);
    ASSERT_EQ(valid.status().code(), absl::StatusCode::kInvalidArgument) << bad.field;
    EXPECT_THAT(GetErrorDetails(valid.status()).field_violations,
                ElementsAre(Pair(bad.field, HasSubstr(bad.sentence))));
  }
}

TEST_F(ValidatorTest, BadChatFieldsAreNamed) {
  const auto fields = [this](const std::function<void(v1::Chat*)>& spoil) {
    v1::GenerateRequest request;
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content("hi");
    spoil(request.mutable_chat());
    return GetErrorDetails(Validate(request).status()).field_violations;
  };
  EXPECT_THAT(fields([](v1::Chat*) {}), IsEmpty());
  EXPECT_THAT(fields([](v1::Chat* c) { c->add_tools("{bad"); }),
              ElementsAre(Pair("chat.tools[0]", HasSubstr("no valid JSON"))));
  const auto nested = [](size_t levels) {
    return "{\"a\": " + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "}";
  };
  EXPECT_THAT(fields([&](v1::Chat* c) { c->add_tools(nested(60)); }), IsEmpty());
  for (const size_t levels : {size_t{70}, size_t{2'000'000}}) {
    EXPECT_THAT(fields([&](v1::Chat* c) { c->add_tools(nested(levels)); }),
                ElementsAre(Pair("chat.tools[0]", HasSubstr("deeper than 64"))));
    EXPECT_THAT(fields([&](v1::Chat* c) { c->set_template_kwargs(nested(levels)); }),
                ElementsAre(Pair("chat.template_kwargs", HasSubstr("deeper than 64"))));
    EXPECT_THAT(
        fields([&](v1::Chat* c) {
          v1::ToolCall* call = c->mutable_messages(0)->add_tool_calls();
          call->set_name("f");
          call->set_arguments(nested(levels));
        }),
        ElementsAre(Pair("chat.messages[0].tool_calls[0].arguments", HasSubstr("deeper than 64"))));
  }
  std::string many = "{";
  for (int i = 0; i < 300'000; ++i) many += absl::StrCat("\"k", i, "\":0,");
  EXPECT_THAT(fields([&](v1::Chat* c) { c->add_tools(many + "\"k\":0}"); }),
              ElementsAre(Pair("chat.tools[0]", HasSubstr("more than 10000 fields"))));
  EXPECT_THAT(fields([](v1::Chat* c) { c->add_tools("[1]"); }),
              ElementsAre(Pair("chat.tools[0]", HasSubstr("is array"))));
  EXPECT_THAT(fields([](v1::Chat* c) { c->set_template_kwargs("3"); }),
              ElementsAre(Pair("chat.template_kwargs", HasSubstr("is number"))));
  EXPECT_THAT(fields([](v1::Chat* c) { c->set_template_kwargs("{\"messages\": []}"); }),
              ElementsAre(Pair("chat.template_kwargs", HasSubstr("must not set messages"))));
  EXPECT_THAT(fields([](v1::Chat* c) { c->set_template_kwargs("{\"documents\": 1}"); }),
              ElementsAre(Pair("chat.template_kwargs", HasSubstr("documents must be an array"))));
  EXPECT_THAT(fields([](v1::Chat* c) { c->set_template_name("nope"); }),
              ElementsAre(Pair("chat.template_name", HasSubstr("default"))));
  EXPECT_THAT(fields([](v1::Chat* c) {
                c->set_continue_final_message(true);
                c->set_add_generation_prompt(true);
              }),
              ElementsAre(Pair("chat.continue_final_message", HasSubstr("contradicts"))));
  EXPECT_THAT(
      fields(
          [](v1::Chat* c) { c->mutable_messages(0)->add_tool_calls()->set_arguments("\"text\""); }),
      ElementsAre(Pair("chat.messages[0].tool_calls[0].name", HasSubstr("required")),
                  Pair("chat.messages[0].tool_calls[0].arguments", HasSubstr("is string"))));
}

TEST_F(ValidatorTest, AllViolationsAreToldAtOnce) {
  v1::GenerateRequest request;
  request.set_n(-1);
  request.mutable_sampling()->set_top_p(7);
  request.mutable_stopping()->set_max_tokens(0);
  request.mutable_output()->set_logprobs(-3);
  EXPECT_THAT(GetErrorDetails(Validate(request).status()).field_violations,
              ElementsAre(Pair("input", ::testing::_), Pair("sampling.top_p", ::testing::_),
                          Pair("stopping.max_tokens", ::testing::_),
                          Pair("output.logprobs", ::testing::_), Pair("n", ::testing::_)));
}

TEST_F(ValidatorTest, LengthsAreToldWithNumbers) {
  v1::GenerateRequest request;
  request.set_text(std::string(256, 'x'));
  const std::string too_long(Complete(request).status().message());
  EXPECT_THAT(too_long, HasSubstr("text: the prompt has 256 tokens"));
  request.set_text(std::string(200, 'x'));
  request.mutable_stopping()->set_max_tokens(57);
  const std::string too_much(Complete(request).status().message());
  EXPECT_THAT(too_much, HasSubstr("stopping.max_tokens: is 57"));
  EXPECT_THAT(too_much, HasSubstr("at most 56 fit"));
  request.mutable_stopping()->set_max_tokens(56);
  EXPECT_TRUE(Complete(request).ok());
  request.mutable_stopping()->clear_max_tokens();
  request.mutable_stopping()->set_min_tokens(57);
  EXPECT_THAT(std::string(Complete(request).status().message()), HasSubstr("stopping.min_tokens"));
}

TEST_F(ValidatorTest, IdsTheModelDoesNotKnowAreRefusedAlsoFromText) {
  model_.limits.vocab_size = 'i';  // the embedding is smaller than the tokenizer
  EXPECT_TRUE(absl::IsInvalidArgument(Complete(Good()).status()));
  EXPECT_THAT(std::string(Complete(Good()).status().message()), HasSubstr("text[1]: token id 105"));
}

TEST_F(ValidatorTest, ChatsAreRendered) {
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("a<|end|>");
  const absl::StatusOr<ValidRequest> valid = Complete(request);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_THAT(valid->request.prompt, ElementsAre(kUserId, 'a', kEndId, kEndId, kBotId));
  request.mutable_chat()->set_add_generation_prompt(false);
  EXPECT_EQ(Complete(request)->request.prompt.back(), kEndId);
}

TEST_F(ValidatorTest, WithoutATokenizerOnlyIdsGo) {
  model_ = IdsOnlyModel();
  v1::GenerateRequest ids;
  ids.mutable_token_ids()->add_ids(1);
  const absl::StatusOr<ValidRequest> valid = Complete(ids);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_FALSE(valid->stream.text);

  v1::GenerateRequest chat;
  chat.mutable_chat();
  v1::GenerateRequest stops = ids;
  stops.mutable_stopping()->add_stop_strings("x");
  v1::GenerateRequest text_out = ids;
  text_out.mutable_output()->set_text(true);
  for (const v1::GenerateRequest& request : {Good(), chat, stops, text_out}) {
    const absl::Status status = Validate(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("token ids"));
  }
}

TEST_F(ValidatorTest, WithoutATemplateThereIsNoChat) {
  model_.chat_template = nullptr;
  v1::GenerateRequest chat;
  chat.mutable_chat();
  EXPECT_EQ(Validate(chat).status().code(), absl::StatusCode::kFailedPrecondition);
  v1::TokenizeRequest tokenize;
  tokenize.mutable_chat();
  EXPECT_EQ(ValidateTokenize(tokenize, model_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace weir::server
