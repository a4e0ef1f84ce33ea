// JSON written straight into a string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weir::gateway {

// `text` as a JSON string with its quotes. Bytes that are no UTF-8 become U+FFFD; U+2028 and U+2029
// are escaped, which ends lines for some readers.
void AppendJsonString(std::string_view text, std::string* out);
// The inside of it, without quotes.
void AppendJsonEscaped(std::string_view text, std::string* out);
// The shortest decimal that reads back as the same float; -9999 for what JSON cannot say (-inf).
void AppendJsonFloat(float value, std::string* out);
void AppendJsonInt(int64_t value, std::string* out);
// `bytes` as an array of numbers.
void AppendJsonBytes(std::string_view bytes, std::string* out);

}  // namespace weir::gateway
