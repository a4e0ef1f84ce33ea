// Answers of OpenAI's API, byte for byte.
#include "gateway/openai/answer.h"

#include <google/protobuf/text_format.h>
#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>

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
    facts_.model.set_tool_parser("hermes");
    facts_.model.add_eos_token_ids(1);
  }
  Call Chat(const std::string& fields) {
    auto parsed = ParseChatCompletion(
        R"({"messages": [{"role": "user", "content": "hi"}])" + fields + "}", facts_);
    EXPECT_TRUE(std::holds_alternative<Call>(parsed));
    return std::get<Call>(parsed);
  }

  ModelFacts facts_;
};

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

}  // namespace
}  // namespace weir::gateway
