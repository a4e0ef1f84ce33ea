#include "server/utf8.h"

#include <cstdint>

namespace weir::server {
namespace {

// Bytes of the well-formed character at the start of `text`; 0: there is none.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) -> uint8_t {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t b0 = byte(0), b1 = byte(1);
  if (b0 < 0x80) return text.empty() ? 0 : 1;
  if (b0 >= 0xC2 && b0 <= 0xDF) return continues(1) ? 2 : 0;
  if (b0 >= 0xE0 && b0 <= 0xEF) {
    if (!continues(1) || !continues(2)) return 0;
    if (b0 == 0xE0 && b1 < 0xA0) return 0;   // overlong
    if (b0 == 0xED && b1 >= 0xA0) return 0;  // surrogates
    return 3;
  }
  if (b0 >= 0xF0 && b0 <= 0xF4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    if (b0 == 0xF0 && b1 < 0x90) return 0;   // overlong
    if (b0 == 0xF4 && b1 >= 0x90) return 0;  // past U+10FFFF
    return 4;
  }
  return 0;
}

}  // namespace

std::optional<size_t> FirstInvalidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = CharacterBytes(text.substr(at));
    if (bytes == 0) return at;
    at += bytes;
  }
  return std::nullopt;
}

std::string ShortenedUtf8(std::string_view text, size_t max_bytes) {
  std::string out;
  size_t cut = 0;  // the longest prefix of whole characters that leaves room for "..."
  for (size_t at = 0; at < text.size() && out.size() <= max_bytes;) {
    const size_t bytes = CharacterBytes(text.substr(at));
    out.append(bytes == 0 ? "?" : text.substr(at, bytes));
    at += bytes == 0 ? 1 : bytes;
    if (out.size() + 3 <= max_bytes) cut = out.size();
  }
  if (out.size() <= max_bytes) return out;
  out.resize(cut);
  return out + "...";
}

}  // namespace weir::server
