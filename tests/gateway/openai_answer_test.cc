// Answers of OpenAI's API, byte for byte.
#include "gateway/openai/answer.h"

#include <google/protobuf/text_format.h>
#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

namespace weir::gateway {
namespace {

v1::GenerateEvent Event(const std::string& text) {
  v1::GenerateEvent event;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &event)) << text;
  return event;
}

class AnswerTest : public testing::Test {
 protected:
  AnswerTest() {
    facts_.id = "tiny";
    facts_.model.set_name("tiny");
    facts_.limits.set_max_choices(16);
    facts_.model.set_tool_parser("hermes");
    facts_.model.add_eos_token_ids(1);
  }
  Call Chat(const std::string& fields) {
    auto parsed = ParseChatCompletion(
        R"({"messages": [{"role": "user", "content": "hi"}])" + fields + "}", facts_);
    EXPECT_TRUE(std::holds_alternative<Call>(parsed));
    return std::get<Call>(parsed);
  }

  Call Completion(const std::string& fields) {
    auto parsed = ParseCompletion("{" + fields + "}", facts_);
    EXPECT_TRUE(std::holds_alternative<Call>(parsed));
    return std::get<Call>(parsed);
  }
  // The answer to events that come in this order, all of prompt 0.
  std::string Answered(const Call& call, const std::vector<const char*>& events) {
    Answer answer(call, facts_, call.chat ? "chatcmpl-1" : "cmpl-1", 7);
    std::string sse;
    for (const char* event : events) answer.OnEvent(0, Event(event), &sse);
    EXPECT_EQ(answer.OnEnd(0, grpc::Status::OK, &sse), std::nullopt);
    EXPECT_TRUE(answer.complete());
    if (call.stream) return sse;
    EXPECT_EQ(sse, "");
    return answer.Body();
  }

  ModelFacts facts_;
};

// One chunk's choices after another.
std::vector<nlohmann::json> Chunks(const std::string& sse) {
  std::vector<nlohmann::json> chunks;
  std::istringstream lines(sse);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line == "data: [DONE]") continue;
    EXPECT_EQ(line.substr(0, 6), "data: ");
    chunks.push_back(nlohmann::json::parse(line.substr(6)));
  }
  return chunks;
}

// What stands in every chunk before the choice.
constexpr char kHead[] =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"tiny",)"
    R"("system_fingerprint":"fp_)";

// Chunks without their head, whose fingerprint is not the tests' business.
std::string WithoutHeads(std::string sse) {
  for (size_t at = sse.find(kHead); at != std::string::npos; at = sse.find(kHead)) {
    const size_t end = sse.find("\"choices\"", at);
    sse.replace(at, end - at, "{");
  }
  return sse;
}

TEST_F(AnswerTest, AStreamedChatIsAsPublished) {
  const Call call = Chat(R"(,"stream": true, "stream_options": {"include_usage": true})");
  Answer answer(call, facts_, "chatcmpl-1", 7);
  std::string sse;
  answer.OnEvent(0, Event("accepted { prompt_tokens: 3 }"), &sse);
  EXPECT_EQ(sse, "");
  answer.OnEvent(0, Event("delta { text: 'a\"\\nb' }"), &sse);
  answer.OnEvent(0, Event("choice_finished { reason: FINISH_REASON_STOP }"), &sse);
  answer.OnEvent(0, Event("finished { usage { prompt_tokens: 3 completion_tokens: 2 } }"), &sse);
  EXPECT_EQ(answer.OnEnd(0, grpc::Status::OK, &sse), std::nullopt);
  EXPECT_EQ(WithoutHeads(sse),
            R"({"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,)"
            R"("finish_reason":null}],"usage":null})"
            "\n\n"
            R"({"choices":[{"index":0,"delta":{"content":"a\"\nb"},"logprobs":null,)"
            R"("finish_reason":null}],"usage":null})"
            "\n\n"
            R"({"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],)"
            R"("usage":null})"
            "\n\n"
            R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,)"
            R"("prompt_tokens_details":{"cached_tokens":0},)"
            R"("completion_tokens_details":{"reasoning_tokens":0}}})"
            "\n\ndata: [DONE]\n\n");
}

TEST_F(AnswerTest, AWholeChatIsAsPublished) {
  const std::string body =
      Answered(Chat(R"(,"service_tier": "auto")"),
               {"accepted { prompt_tokens: 3 }", "delta { reasoning: 'h' }",
                "delta { reasoning: 'm' text: 'a' }", "delta { text: 'b\t\u00e9' }",
                "choice_finished { reason: FINISH_REASON_LENGTH reasoning_tokens: 2 }",
                "finished { usage { prompt_tokens: 3 completion_tokens: 5 cached_tokens: 1 } }"});
  const size_t at = body.find("fp_");
  std::string known = body;
  known.replace(at + 3, 10, "0123456789");
  EXPECT_EQ(
      known,
      R"({"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"tiny",)"
      R"("service_tier":"default","system_fingerprint":"fp_0123456789","choices":[{"index":0,)"
      R"("message":{"role":"assistant","content":"ab\té","refusal":null,)"
      R"("reasoning_content":"hm"},"logprobs":null,"finish_reason":"length"}],)"
      R"("usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,)"
      R"("prompt_tokens_details":{"cached_tokens":1},)"
      R"("completion_tokens_details":{"reasoning_tokens":2}}})");
}

TEST_F(AnswerTest, ToolCallsStreamAsPublished) {
  const std::string sse = Answered(
      Chat(R"(,"stream": true)"), {"delta { tool_calls { index: 0 id: 'c0' name: 'f' } }",
                                   "delta { tool_calls { index: 0 arguments: '{\"a\"' } }",
                                   "delta { tool_calls { index: 0 arguments: ':1}' } tool_calls { "
                                   "index: 1 id: 'c1' name: 'g' } "
                                   "}",
                                   "choice_finished { reason: FINISH_REASON_STOP tool_calls: 2 }"});
  const std::string start = R"({"choices":[{"index":0,"delta":)";
  const std::string rest = R"(,"logprobs":null,"finish_reason":null}]})"
                           "\n\n";
  EXPECT_EQ(
      WithoutHeads(sse),
      start + R"({"role":"assistant","content":""})" + rest + start +
          R"({"tool_calls":[{"index":0,"id":"c0","type":"function",)" +
          R"("function":{"name":"f","arguments":""}}]})" + rest + start +
          R"({"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]})" + rest + start +
          R"({"tool_calls":[{"index":0,"function":{"arguments":":1}"}},{"index":1,"id":"c1",)" +
          R"("type":"function","function":{"name":"g","arguments":""}}]})" + rest + start +
          R"({},"logprobs":null,"finish_reason":"tool_calls"}]})" + "\n\ndata: [DONE]\n\n");
}

TEST_F(AnswerTest, WholeToolCallsHaveNullContent) {
  const auto body = nlohmann::json::parse(
      Answered(Chat(""), {"delta { tool_calls { index: 0 id: 'c0' name: 'f' arguments: '{}' } }",
                          "delta { tool_calls { index: 1 id: 'c1' name: 'g' } }",
                          "delta { tool_calls { index: 1 arguments: '{\"x\":2}' } }",
                          "choice_finished { reason: FINISH_REASON_STOP tool_calls: 2 }"}));
  const auto& choice = body["choices"][0];
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["tool_calls"].dump(),
            R"([{"function":{"arguments":"{}","name":"f"},"id":"c0","type":"function"},)"
            R"({"function":{"arguments":"{\"x\":2}","name":"g"},"id":"c1","type":"function"}])");
}

constexpr char kLogprobs[] =
    "delta { text: 'a' logprobs { token_ids: 5 logprobs: -0.5 top_n: 2 top_token_ids: 5 "
    "top_token_ids: 6 top_logprobs: -0.5 top_logprobs: -inf pieces: 'a' top_pieces: 'a' "
    "top_pieces: '\\303' } }";
// The token that ends the answer.
constexpr char kEndLogprobs[] =
    "delta { logprobs { token_ids: 1 logprobs: 0 top_n: 2 top_token_ids: 1 top_token_ids: 6 "
    "top_logprobs: 0 top_logprobs: -3 pieces: '<e>' top_pieces: '<e>' top_pieces: 'b' } }";
constexpr char kStopped[] = "choice_finished { reason: FINISH_REASON_STOP }";

TEST_F(AnswerTest, LogprobsHaveTextAndBytesAndLeaveTheEndOut) {
  const std::string entry =
      "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],\"top_logprobs\":["
      "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]},"
      "{\"token\":\"\xEF\xBF\xBD\",\"logprob\":-9999,\"bytes\":[195]}]}";
  const std::string fields = R"(,"logprobs": true, "top_logprobs": 2)";
  const std::string body = Answered(Chat(fields), {kLogprobs, kEndLogprobs, kStopped});
  EXPECT_NE(body.find("\"logprobs\":{\"content\":[" + entry + "],\"refusal\":null}"),
            std::string::npos)
      << body;
  const std::string sse =
      Answered(Chat(fields + R"(,"stream": true)"), {kLogprobs, kEndLogprobs, kStopped});
  EXPECT_NE(sse.find("\"delta\":{\"content\":\"a\"},\"logprobs\":{\"content\":[" + entry +
                     "],\"refusal\":null}"),
            std::string::npos)
      << sse;
  EXPECT_EQ(Chunks(sse).size(), 3u);  // none for the end token
  // When it is part of the text it is told of.
  const std::string kept = Answered(Chat(fields + R"(,"include_stop_str_in_output": true)"),
                                    {kLogprobs, kEndLogprobs, kStopped});
  EXPECT_NE(kept.find("<e>"), std::string::npos);
}

TEST_F(AnswerTest, CompletionsEchoAndScoreThePrompt) {
  const std::vector<const char*> events = {
      "accepted { prompt_tokens: 2 prompt_token_ids: 8 prompt_token_ids: 9 prompt_pieces: 'x' "
      "prompt_pieces: '\303\266' }",
      "prompt_logprobs { token_ids: 9 logprobs: -1 top_n: 1 top_token_ids: 9 top_logprobs: -1 "
      "pieces: '\303\266' top_pieces: '\303\266' }",
      kLogprobs, kStopped};
  const std::string want = R"("logprobs":{"tokens":["x","ö","a"],"token_logprobs":[null,-1,-0.5],)"
                           R"("top_logprobs":[null,{"ö":-1},{"a":-0.5,")"
                           "\xEF\xBF\xBD"
                           R"(":-9999}],"text_offset":[0,1,2]})";
  for (const char* prompt : {R"("xö")", "[8, 9]"}) {
    const std::string fields = std::string(R"("prompt": )") + prompt + R"(, "echo": true)";
    const std::string body = Answered(Completion(fields + R"(, "logprobs": 2)"), events);
    EXPECT_NE(body.find(R"("text":"xöa",)" + want), std::string::npos) << body;
    EXPECT_EQ(nlohmann::json::parse(Answered(Completion(fields), events))["choices"][0]["text"],
              "xöa");
    const auto chunks =
        Chunks(Answered(Completion(fields + R"(, "logprobs": 2, "stream": true)"), events));
    ASSERT_EQ(chunks.size(), 3u);
    EXPECT_EQ(chunks[0]["choices"][0]["text"], "xö");
    EXPECT_EQ(chunks[0]["choices"][0]["logprobs"]["text_offset"].dump(), "[0,1]");
    EXPECT_EQ(chunks[1]["choices"][0]["text"], "a");
    EXPECT_EQ(chunks[1]["choices"][0]["logprobs"]["text_offset"].dump(), "[2]");
    EXPECT_EQ(chunks[2]["choices"][0]["finish_reason"], "stop");
  }
}

TEST_F(AnswerTest, PromptsAndChoicesAreNumberedThrough) {
  for (const char* stream :
       {"", R"(, "stream": true, "stream_options": {"include_usage": true})"}) {
    const Call call = Completion(std::string(R"("prompt": ["p", "q"], "n": 2)") + stream);
    Answer answer(call, facts_, "cmpl-1", 7);
    std::string sse;
    for (size_t prompt : {1u, 0u}) {
      for (int choice : {1, 0}) {
        v1::GenerateEvent event = Event("delta { text: 't' }");
        event.mutable_delta()->set_choice(choice);
        event.mutable_delta()->set_text(std::string(1, "abcd"[prompt * 2 + choice]));
        answer.OnEvent(prompt, event, &sse);
        event = Event(kStopped);
        event.mutable_choice_finished()->set_choice(choice);
        answer.OnEvent(prompt, event, &sse);
      }
      answer.OnEvent(prompt, Event("accepted { prompt_tokens: 5 }"), &sse);
      answer.OnEvent(prompt, Event("finished { usage { completion_tokens: 4 } }"), &sse);
      EXPECT_FALSE(answer.complete());
      EXPECT_EQ(answer.OnEnd(prompt, grpc::Status::OK, &sse), std::nullopt);
    }
    EXPECT_TRUE(answer.complete());
    EXPECT_EQ(answer.prompt_tokens(), 10);
    EXPECT_EQ(answer.completion_tokens(), 8);
    std::string texts(4, '?');
    if (call.stream) {
      for (const auto& chunk : Chunks(sse)) {
        for (const auto& choice : chunk["choices"]) {
          const std::string text = choice["text"];
          if (!text.empty()) texts[choice["index"]] = text[0];
        }
      }
      EXPECT_EQ(Chunks(sse).back()["usage"]["total_tokens"], 18);
      EXPECT_TRUE(sse.ends_with("data: [DONE]\n\n"));
      EXPECT_EQ(sse.find("[DONE]"), sse.size() - 8);
    } else {
      const auto body = nlohmann::json::parse(answer.Body());
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(body["choices"][i]["index"], i);
        texts[i] = body["choices"][i]["text"].get<std::string>()[0];
      }
    }
    EXPECT_EQ(texts, "abcd");
  }
}

TEST_F(AnswerTest, AnErrorEndsTheAnswer) {
  const grpc::Status broken(grpc::StatusCode::UNAVAILABLE, "it drains");
  const Call call = Completion(R"("prompt": ["p", "q"], "stream": true)");
  Answer answer(call, facts_, "cmpl-1", 7);
  std::string sse;
  answer.OnEvent(0, Event("delta { text: 'a' }"), &sse);
  sse.clear();
  answer.OnEvent(0, Event("choice_finished { reason: FINISH_REASON_DRAINED }"), &sse);
  EXPECT_EQ(sse, "");  // the error says it
  const std::optional<ApiError> error = answer.OnEnd(0, broken, &sse);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->status, 503);
  EXPECT_EQ(sse,
            "data: {\"error\":{\"message\":\"it drains\",\"type\":\"overloaded_error\","
            "\"param\":null,\"code\":\"service_unavailable\"}}\n\n");
  sse.clear();
  answer.OnEvent(1, Event("delta { text: 'b' }"), &sse);
  EXPECT_EQ(answer.OnEnd(1, grpc::Status::CANCELLED, &sse), std::nullopt);
  EXPECT_EQ(sse, "");
  EXPECT_FALSE(answer.complete());
}

TEST_F(AnswerTest, ExtensionsShowIdsAndThePromptsLogprobs) {
  const std::vector<const char*> events = {
      "accepted { prompt_tokens: 2 prompt_token_ids: 8 prompt_token_ids: 9 }",
      "prompt_logprobs { token_ids: 9 logprobs: -1 top_n: 1 top_token_ids: 7 top_logprobs: -0.25 "
      "pieces: 'p' top_pieces: 't' }",
      "delta { text: 'a' token_ids: 4 token_ids: 5 }", kStopped};
  const std::string scored = R"("prompt_logprobs":[null,{"9":{"logprob":-1,"decoded_token":"p"},)"
                             R"("7":{"logprob":-0.25,"decoded_token":"t"}}])";
  const std::string chat =
      Answered(Chat(R"(,"return_token_ids": true, "prompt_logprobs": 1)"), events);
  EXPECT_NE(chat.find(R"("token_ids":[4,5],"finish_reason")"), std::string::npos) << chat;
  EXPECT_TRUE(chat.ends_with("," + scored + R"(,"prompt_token_ids":[8,9]})")) << chat;
  const std::string completion = Answered(
      Completion(R"("prompt": "x", "return_token_ids": true, "prompt_logprobs": 1)"), events);
  EXPECT_NE(completion.find(scored + R"(,"prompt_token_ids":[8,9],"token_ids":[4,5],)"),
            std::string::npos)
      << completion;
  const auto chunks =
      Chunks(Answered(Chat(R"(,"return_token_ids": true, "stream": true)"), events));
  EXPECT_EQ(chunks[0]["choices"][0]["prompt_token_ids"].dump(), "[8,9]");
  EXPECT_EQ(chunks[1]["choices"][0]["token_ids"].dump(), "[4,5]");
}

TEST_F(AnswerTest, TextOfEveryKindSurvives) {
  std::string text;
  for (int c = 0; c < 128; ++c) text.push_back(static_cast<char>(c));
  text += "\xC3\xB6\xE2\x82\xAC\xF0\x9F\x98\x80\xE2\x80\xA8\xE2\x80\xA9";
  v1::GenerateEvent event;
  event.mutable_delta()->set_text(text);
  for (const char* stream : {"", R"(,"stream": true)"}) {
    const Call call = Chat(stream);
    Answer answer(call, facts_, "chatcmpl-1", 7);
    std::string sse;
    answer.OnEvent(0, event, &sse);
    answer.OnEvent(0, Event(kStopped), &sse);
    EXPECT_EQ(answer.OnEnd(0, grpc::Status::OK, &sse), std::nullopt);
    const std::string out = call.stream ? sse : answer.Body();
    EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), call.stream ? 8 : 0);
    EXPECT_EQ(out.find("\xE2\x80\xA8"), std::string::npos);
    const nlohmann::json got = call.stream
                                   ? Chunks(out)[1]["choices"][0]["delta"]["content"]
                                   : nlohmann::json::parse(out)["choices"][0]["message"]["content"];
    EXPECT_EQ(got, text);
  }
}

TEST_F(AnswerTest, ABackendsNonsenseIsNoHarm) {
  const std::string body =
      Answered(Chat(""), {"delta { choice: 7 text: 'x' }", "delta { choice: -1 text: 'x' }",
                          "choice_finished { choice: 9 }",
                          "delta { tool_calls { index: 2000000000 arguments: '{}' } }",
                          "delta { tool_calls { index: -5 arguments: '{}' } }", kStopped});
  EXPECT_EQ(nlohmann::json::parse(body)["choices"].size(), 1u);
}

TEST_F(AnswerTest, ModelsAndTokens) {
  facts_.created_s = 5;
  facts_.model.set_max_position(99);
  EXPECT_EQ(ModelListBody(facts_),
            R"({"object":"list","data":[{"id":"tiny","object":"model","created":5,)"
            R"("owned_by":"weir","max_model_len":99}]})");
  v1::TokenizeResponse tokens;
  tokens.add_ids(4);
  tokens.add_ids(5);
  tokens.add_pieces("a");
  tokens.add_pieces("\xC3");
  EXPECT_EQ(TokenizeBody(TokenizeCall{}, tokens, facts_),
            R"({"count":2,"max_model_len":99,"tokens":[4,5],"token_strs":null})");
  TokenizeCall with_pieces;
  with_pieces.return_token_strs = true;
  EXPECT_EQ(TokenizeBody(with_pieces, tokens, facts_),
            "{\"count\":2,\"max_model_len\":99,\"tokens\":[4,5],\"token_strs\":[\"a\","
            "\"\xEF\xBF\xBD\"]}");
  v1::DetokenizeResponse text;
  text.set_text("\"");
  EXPECT_EQ(DetokenizeBody(text), R"({"prompt":"\""})");
}

}  // namespace
}  // namespace weir::gateway
