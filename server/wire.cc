#include "server/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error_details.h"
#include "server/utf8.h"

namespace weir::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using Violations = std::vector<std::pair<std::string, std::string>>;

constexpr size_t kMaxViolations = 20;

// Collects the strings of one message that are not UTF-8. False: the bytes are cut or garbled. The
// depth is that of our message types, which do not nest in themselves.
bool FindInvalidStrings(const Descriptor& type, std::string_view bytes, const std::string& prefix,
                        Violations* violations) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  std::map<int, int> seen;  // field number -> entries so far
  while (const uint32_t tag = in.ReadTag()) {
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    const bool has_content =
        field != nullptr &&
        WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED &&
        (field->type() == FieldDescriptor::TYPE_STRING ||
         field->type() == FieldDescriptor::TYPE_MESSAGE);
    if (!has_content) {
      if (!WireFormatLite::SkipField(&in, tag)) return false;
      continue;
    }
    uint32_t size = 0;
    const int begin_of_size = in.CurrentPosition();
    if (!in.ReadVarint32(&size)) return false;
    const size_t begin = static_cast<size_t>(in.CurrentPosition());
    if (begin_of_size < 0 || size > bytes.size() - begin) return false;
    const std::string_view content = bytes.substr(begin, size);
    in.Skip(static_cast<int>(size));

    std::string path = prefix + field->name();
    const int index = seen[field->number()]++;
    if (field->is_repeated()) absl::StrAppend(&path, "[", index, "]");
    if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      if (!FindInvalidStrings(*field->message_type(), content, path + ".", violations)) {
        return false;
      }
    } else if (const std::optional<size_t> at = FirstInvalidUtf8(content)) {
      if (violations->size() < kMaxViolations) {
        violations->emplace_back(
            path, absl::StrCat("is not valid UTF-8: byte ", *at, " begins no character"));
      }
    }
  }
  return in.ConsumedEntireMessage();
}

}  // namespace

absl::Status ExplainParseFailure(const Descriptor& type, std::string_view bytes) {
  Violations violations;
  if (!FindInvalidStrings(type, bytes, "", &violations) || violations.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the request is no valid ", type.full_name(),
                                                   " message; is the client built "
                                                   "from this server's proto files?"));
  }
  return InvalidFields(violations);
}

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer copy(bytes);  // counts references; the reader wants it mutable
  if (copy.Valid()) {
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  }
  std::string flat;
  std::vector<grpc::Slice> slices;
  if (bytes.Valid() && bytes.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) {
      flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
  }
  return ExplainParseFailure(*message->GetDescriptor(), flat);
}

void SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* bytes) {
  std::string flat;
  WEIR_CHECK(message.SerializeToString(&flat)) << message.GetTypeName();
  const grpc::Slice slice(flat);
  *bytes = grpc::ByteBuffer(&slice, 1);
}

}  // namespace weir::server
