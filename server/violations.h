// Collects what is wrong with a request, field by field, so that a client learns all of it at once.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/error_details.h"
#include "core/status.h"

namespace weir::server {

class Violations {
 public:
  // `field`: its path in the request, "chat.messages[2].role". Those past the first 20 are dropped.
  void Add(std::string field, std::string description) {
    if (fields_.size() < 20) fields_.emplace_back(std::move(field), std::move(description));
  }
  bool empty() const { return fields_.empty(); }
  // REQUIRES: not empty.
  absl::Status ToStatus() const { return InvalidFields(fields_); }

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};

}  // namespace weir::server
