// The tools of a request, as far as answers need them: names, and what their arguments are.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace weir::text {

// Which kinds of JSON value a schema allows, as bits.
inline constexpr uint8_t kJsonString = 1;
inline constexpr uint8_t kJsonNumber = 2;
inline constexpr uint8_t kJsonBoolean = 4;
inline constexpr uint8_t kJsonNull = 8;
inline constexpr uint8_t kJsonObject = 16;
inline constexpr uint8_t kJsonArray = 32;
inline constexpr uint8_t kJsonAny = 63;  // also: not said

struct Tool {
  std::string name;
  // JSON schema of the arguments; an object without properties where the tool says none.
  std::string parameters;
  std::map<std::string, uint8_t, std::less<>> kinds;  // property -> kinds its schema allows

  // kJsonAny where the schema does not say.
  uint8_t KindsOf(std::string_view property) const;
};

// Reads tools as chat templates take them: {"type": "function", "function": {"name",
// "parameters"}}, or the inner object alone. What has no name is left out. Local references
// ("#/$defs/...") are followed.
std::vector<Tool> ReadTools(absl::Span<const std::string> tools_json);

// Null: none of that name.
const Tool* FindTool(const std::vector<Tool>& tools, std::string_view name);

}  // namespace weir::text
