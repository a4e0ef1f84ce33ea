#include "server/wire.h"

#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/byte_buffer.h>

#include "core/error_details.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

grpc::ByteBuffer Buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// The bytes of a message with `bad` put in the place of every "XX".
std::string Spoil(const google::protobuf::Message& message) {
  std::string bytes = message.SerializeAsString();
  for (size_t at; (at = bytes.find("XX")) != std::string::npos;) bytes.replace(at, 2, "\xff\xfe");
  return bytes;
}

TEST(WireTest, GoodMessagesComeBack) {
  v1::GenerateRequest in, out;
  in.set_text("h\xc3\xa9llo");
  in.set_n(3);
  grpc::ByteBuffer buffer;
  SerializeMessage(in, &buffer);
  ASSERT_TRUE(ParseMessage(buffer, &out).ok());
  EXPECT_EQ(out.SerializeAsString(), in.SerializeAsString());
  EXPECT_TRUE(ParseMessage(Buffer(""), &out).ok());  // an empty message is one
}

TEST(WireTest, EveryStringThatIsNotUtf8IsNamed) {
  v1::GenerateRequest in, out;
  in.mutable_chat()->add_messages()->set_content("fine");
  v1::ChatMessage* message = in.mutable_chat()->add_messages();
  message->set_content("abcXX");
  message->add_tool_calls()->set_name("ok");
  message->add_tool_calls()->set_arguments("XX");
  in.mutable_stopping()->add_stop_strings("s");
  in.mutable_stopping()->add_stop_strings("tXX");
  (*in.mutable_sampling()->mutable_logit_bias())[3] = 1;
  const absl::Status status = ParseMessage(Buffer(Spoil(in)), &out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(GetErrorDetails(status).field_violations,
              ElementsAre(Pair("chat.messages[1].content", HasSubstr("byte 3")),
                          Pair("chat.messages[1].tool_calls[1].arguments", HasSubstr("byte 0")),
                          Pair("stopping.stop_strings[1]", HasSubstr("byte 1"))));
}

TEST(WireTest, GarbageIsRefused) {
  v1::GenerateRequest in, out;
  in.set_text("some text that is long enough to be cut");
  const std::string good = in.SerializeAsString();
  for (size_t keep = 1; keep + 1 < good.size(); ++keep) {
    const absl::Status status = ParseMessage(Buffer(good.substr(0, keep)), &out);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << keep;
    EXPECT_THAT(std::string(status.message()), HasSubstr("no valid weir.v1.GenerateRequest"));
  }
  uint32_t random = 1;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (int i = 0; i < 40; ++i) {
      random = random * 1664525u + 1013904223u;
      bytes.push_back(static_cast<char>(random >> 24));
    }
    const absl::Status status = ParseMessage(Buffer(bytes), &out);
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

}  // namespace
}  // namespace weir::server
