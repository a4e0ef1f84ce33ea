#include "core/bytes.h"

#include <array>
#include <cctype>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace weir {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr std::array<Unit, 17> kUnits = {{{"", 1},
                                          {"b", 1},
                                          {"k", 0x1p10},
                                          {"kib", 0x1p10},
                                          {"kb", 1e3},
                                          {"m", 0x1p20},
                                          {"mib", 0x1p20},
                                          {"mb", 1e6},
                                          {"g", 0x1p30},
                                          {"gib", 0x1p30},
                                          {"gb", 1e9},
                                          {"t", 0x1p40},
                                          {"tib", 0x1p40},
                                          {"tb", 1e12},
                                          {"byte", 1},
                                          {"bytes", 1},
                                          {"ki", 0x1p10}}};

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  const std::string copy(text);
  const auto bad = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", copy, "\" is no amount of memory; write for example 24GiB, 512MiB or 2GB"));
  };
  char* end = nullptr;
  const double value = std::strtod(copy.c_str(), &end);
  if (end == copy.c_str() || !(value >= 0)) return bad();
  std::string unit;
  for (; *end != '\0'; ++end) {
    if (!std::isspace(static_cast<unsigned char>(*end))) {
      unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*end)));
    }
  }
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    const double bytes = value * known.bytes;
    if (bytes > 0x1p60) return bad();
    return static_cast<int64_t>(bytes);
  }
  return bad();
}

std::string FormatBytes(int64_t bytes) {
  static constexpr const char* kNames[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return absl::StrCat(bytes, " B");
  const int digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  return absl::StrFormat("%.*f %s", digits, value, kNames[unit]);
}

}  // namespace weir
