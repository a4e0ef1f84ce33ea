// UTF-8 at the edge of the process.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace weir::server {

// Offset of the first byte that begins no well-formed character (RFC 3629: no surrogates, no
// overlong forms); nullopt: all of it is valid.
std::optional<size_t> FirstInvalidUtf8(std::string_view text);

// Valid UTF-8 of at most `max_bytes`, ending in "..." when something was cut; bytes that form no
// character become '?'. REQUIRES: max_bytes >= 3.
std::string ShortenedUtf8(std::string_view text, size_t max_bytes);

}  // namespace weir::server
