// Amounts of memory as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/status.h"

namespace weir {

// "24GiB", "512 MiB", "1.5G" (binary), "2GB" (decimal), "1000" (bytes) -> bytes. INVALID_ARGUMENT for
// anything else, negative or larger than 2^60.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);

// Three significant digits in binary units: "1.46 GiB", "205 KiB", "17 B".
std::string FormatBytes(int64_t bytes);

}  // namespace weir
