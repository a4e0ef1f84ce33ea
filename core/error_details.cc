#include "core/error_details.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace weir {
namespace {

// Payload texts: fields are separated by '\x1f', records by '\x1e'; neither occurs in field names,
// and descriptions lose them.
constexpr char kFields[] = "weir/field_violations";
constexpr char kResource[] = "weir/exhausted_resource";
constexpr char kRetry[] = "weir/retry_after_ms";

std::string Clean(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c == '\x1e' || c == '\x1f') c = ' ';
  }
  return out;
}

}  // namespace

absl::Status InvalidField(std::string_view field, std::string_view description) {
  return InvalidFields({{std::string(field), std::string(description)}});
}

absl::Status InvalidFields(const std::vector<std::pair<std::string, std::string>>& violations) {
  std::string message;
  std::string payload;
  for (const auto& [field, description] : violations) {
    absl::StrAppend(&message, message.empty() ? "" : "; ", field, ": ", description);
    absl::StrAppend(&payload, payload.empty() ? "" : "\x1e", Clean(field), "\x1f", Clean(description));
  }
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kFields, absl::Cord(payload));
  return status;
}

absl::Status Exhausted(std::string_view resource, std::string_view description,
                       int64_t retry_after_ms) {
  absl::Status status = absl::ResourceExhaustedError(
      absl::string_view(description.data(), description.size()));
  status.SetPayload(kResource, absl::Cord(Clean(resource)));
  status.SetPayload(kRetry, absl::Cord(absl::StrCat(retry_after_ms)));
  return status;
}

absl::Status Unavailable(std::string_view description, int64_t retry_after_ms) {
  absl::Status status =
      absl::UnavailableError(absl::string_view(description.data(), description.size()));
  status.SetPayload(kRetry, absl::Cord(absl::StrCat(retry_after_ms)));
  return status;
}

ErrorDetails GetErrorDetails(const absl::Status& status) {
  ErrorDetails details;
  if (auto payload = status.GetPayload(kFields)) {
    const std::string text(*payload);
    for (absl::string_view record : absl::StrSplit(text, '\x1e')) {
      const std::pair<std::string, std::string> parts = absl::StrSplit(record, absl::MaxSplits('\x1f', 1));
      details.field_violations.push_back(parts);
    }
  }
  if (auto payload = status.GetPayload(kResource)) details.exhausted_resource = std::string(*payload);
  if (auto payload = status.GetPayload(kRetry)) {
    int64_t ms = 0;
    if (absl::SimpleAtoi(std::string(*payload), &ms)) details.retry_after_ms = ms;
  }
  return details;
}

}  // namespace weir
