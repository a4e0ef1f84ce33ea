// Messages to bytes and back, at the edge: requests are parsed here, not by gRPC, so that bytes
// that are no message get INVALID_ARGUMENT and the name of the field.
#pragma once

#include <string_view>

#include "core/status.h"

namespace google::protobuf {
class Descriptor;
class Message;
}  // namespace google::protobuf
namespace grpc {
class ByteBuffer;
}

namespace weir::server {

// INVALID_ARGUMENT: strings that are not UTF-8, each with its field path
// ("chat.messages[2].content") and the offset of the first bad byte; or the bytes are no such
// message at all.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

void SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* bytes);

// Why a parser refused `bytes` as a `type`; never OK.
absl::Status ExplainParseFailure(const google::protobuf::Descriptor& type, std::string_view bytes);

}  // namespace weir::server
