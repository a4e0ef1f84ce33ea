// Small files, read whole.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace weir {

// The contents of a file. NotFound where it does not exist; InvalidArgument where it is no regular
// file, cannot be read, or is larger than max_bytes. The message names the file.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

// The same, but a file that does not exist is empty.
absl::StatusOr<std::string> ReadFileIfPresent(const std::string& path, size_t max_bytes);

}  // namespace weir
