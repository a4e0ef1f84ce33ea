#include "gateway/openai/json_text.h"

#include <array>
#include <charconv>
#include <cmath>

namespace weir::gateway {
namespace {

// Bytes that stand for themselves inside a JSON string.
constexpr std::array<bool, 256> kPlain = [] {
  std::array<bool, 256> plain{};
  for (size_t c = 0x20; c < 0x80; ++c) plain[c] = c != '"' && c != '\\' && c != 0x7F;
  return plain;
}();

// Bytes of the well-formed character (RFC 3629) at the start of `text`, which begins with a byte
// past ASCII; 0: there is none.
size_t CharacterBytes(std::string_view text) {
  const auto byte = [&](size_t i) -> uint8_t {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t b0 = byte(0), b1 = byte(1);
  if (b0 >= 0xC2 && b0 <= 0xDF) return continues(1) ? 2 : 0;
  if (b0 >= 0xE0 && b0 <= 0xEF) {
    if (!continues(1) || !continues(2)) return 0;
    const bool overlong = b0 == 0xE0 && b1 < 0xA0;
    const bool surrogate = b0 == 0xED && b1 >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (b0 >= 0xF0 && b0 <= 0xF4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    const bool overlong = b0 == 0xF0 && b1 < 0x90;
    const bool too_large = b0 == 0xF4 && b1 >= 0x90;
    return overlong || too_large ? 0 : 4;
  }
  return 0;
}

void AppendControl(char c, std::string* out) {
  switch (c) {
    case '"':
      out->append("\\\"");
      return;
    case '\\':
      out->append("\\\\");
      return;
    case '\n':
      out->append("\\n");
      return;
    case '\r':
      out->append("\\r");
      return;
    case '\t':
      out->append("\\t");
      return;
    case '\b':
      out->append("\\b");
      return;
    case '\f':
      out->append("\\f");
      return;
    default: {
      constexpr char kHex[] = "0123456789abcdef";
      const auto byte = static_cast<uint8_t>(c);
      out->append("\\u00");
      out->push_back(kHex[byte >> 4]);
      out->push_back(kHex[byte & 15]);
    }
  }
}

}  // namespace

void AppendJsonEscaped(std::string_view text, std::string* out) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t begin = at;
    while (at < text.size() && kPlain[static_cast<uint8_t>(text[at])]) ++at;
    out->append(text, begin, at - begin);
    if (at == text.size()) return;
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      AppendControl(text[at++], out);
      continue;
    }
    const std::string_view rest = text.substr(at);
    const size_t bytes = CharacterBytes(rest);
    if (bytes == 0) {
      out->append("\xEF\xBF\xBD");
    } else if (rest.starts_with("\xE2\x80\xA8")) {
      out->append("\\u2028");
    } else if (rest.starts_with("\xE2\x80\xA9")) {
      out->append("\\u2029");
    } else {
      out->append(rest, 0, bytes);
    }
    at += bytes == 0 ? 1 : bytes;
  }
}

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  AppendJsonEscaped(text, out);
  out->push_back('"');
}

void AppendJsonFloat(float value, std::string* out) {
  if (!std::isfinite(value)) value = -9999.0f;
  char digits[32];
  const std::to_chars_result end = std::to_chars(digits, digits + sizeof(digits), value);
  out->append(digits, end.ptr);
}

void AppendJsonInt(int64_t value, std::string* out) {
  char digits[24];
  const std::to_chars_result end = std::to_chars(digits, digits + sizeof(digits), value);
  out->append(digits, end.ptr);
}

void AppendJsonBytes(std::string_view bytes, std::string* out) {
  out->push_back('[');
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendJsonInt(static_cast<uint8_t>(bytes[i]), out);
  }
  out->push_back(']');
}

}  // namespace weir::gateway
