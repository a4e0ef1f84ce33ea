// Typed details of an error status, without a wire format: the server turns them into google.rpc
// messages (BadRequest, QuotaFailure, RetryInfo, ResourceInfo).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"

namespace weir {

// INVALID_ARGUMENT that names the field ("sampling.temperature") and says what is wrong with it.
absl::Status InvalidField(std::string_view field, std::string_view description);
// INVALID_ARGUMENT with several fields at once. REQUIRES: not empty.
absl::Status InvalidFields(const std::vector<std::pair<std::string, std::string>>& violations);
// RESOURCE_EXHAUSTED that names the resource ("queue", "slots", "kv_pages") and when to try again.
absl::Status Exhausted(std::string_view resource, std::string_view description,
                       int64_t retry_after_ms);
// UNAVAILABLE (starting, draining) with a retry hint.
absl::Status Unavailable(std::string_view description, int64_t retry_after_ms);

struct ErrorDetails {
  std::vector<std::pair<std::string, std::string>> field_violations;  // field, description
  std::string exhausted_resource;                                     // empty: none
  std::optional<int64_t> retry_after_ms;
};
// The details that the functions above attached; empty details for any other status.
ErrorDetails GetErrorDetails(const absl::Status& status);

}  // namespace weir
