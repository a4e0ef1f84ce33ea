#include "server/error_mapping.h"

#include <grpcpp/support/status.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/error_details.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/utf8.h"

namespace weir::server {
namespace {

constexpr char kPrecondition[] = "weir/precondition";
// The trailer also carries the message a second time, percent-encoded, and details as base64.
constexpr size_t kMaxMessageBytes = 1000;
constexpr size_t kMaxDescriptionBytes = 300;
constexpr size_t kMaxDetailBytes = 2500;

google::rpc::BadRequest ToBadRequest(
    const std::vector<std::pair<std::string, std::string>>& violations) {
  google::rpc::BadRequest bad_request;
  for (const auto& [field, description] : violations) {
    auto* violation = bad_request.add_field_violations();
    violation->set_field(ShortenedUtf8(field, kMaxDescriptionBytes));
    violation->set_description(ShortenedUtf8(description, kMaxDescriptionBytes));
    if (bad_request.ByteSizeLong() > kMaxDetailBytes) {
      bad_request.mutable_field_violations()->RemoveLast();
      break;
    }
  }
  return bad_request;
}

}  // namespace

absl::Status MissingPrecondition(std::string_view type, std::string_view model,
                                 std::string_view description) {
  absl::Status status =
      absl::FailedPreconditionError(absl::string_view(description.data(), description.size()));
  std::string payload(type);
  payload.push_back('\x1f');
  payload.append(model);
  status.SetPayload(kPrecondition, absl::Cord(payload));
  return status;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status wire;
  wire.set_code(static_cast<int>(status.code()));
  wire.set_message(ShortenedUtf8(std::string_view(status.message().data(), status.message().size()),
                                 kMaxMessageBytes));

  const ErrorDetails details = GetErrorDetails(status);
  if (!details.field_violations.empty()) {
    wire.add_details()->PackFrom(ToBadRequest(details.field_violations));
  }
  if (!details.exhausted_resource.empty()) {
    google::rpc::QuotaFailure quota;
    auto* violation = quota.add_violations();
    violation->set_subject(ShortenedUtf8(details.exhausted_resource, kMaxDescriptionBytes));
    violation->set_description(ShortenedUtf8(wire.message(), kMaxDescriptionBytes));
    wire.add_details()->PackFrom(quota);
  }
  if (details.retry_after_ms) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(*details.retry_after_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(*details.retry_after_ms % 1000 * 1'000'000));
    wire.add_details()->PackFrom(retry);
  }
  if (const auto payload = status.GetPayload(kPrecondition)) {
    const std::string text(*payload);
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(text, absl::MaxSplits('\x1f', 1));
    google::rpc::PreconditionFailure failure;
    auto* violation = failure.add_violations();
    violation->set_type(parts.first);
    violation->set_subject(ShortenedUtf8(parts.second, kMaxDescriptionBytes));
    violation->set_description(ShortenedUtf8(wire.message(), kMaxDescriptionBytes));
    wire.add_details()->PackFrom(failure);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(wire.code()), wire.message(),
                      wire.details_size() == 0 ? std::string() : wire.SerializeAsString());
}

}  // namespace weir::server
