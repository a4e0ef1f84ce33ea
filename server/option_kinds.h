// The kinds of settings: how a text becomes a value, and what is refused. The targets must outlive
// the specs; their values now are the defaults.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/options.h"

namespace weir::server {

OptionSpec Text(std::string name, std::string* target, std::string help);
OptionSpec Choice(std::string name, std::string* target, std::vector<std::string> allowed,
                  std::string help);
OptionSpec Bool(std::string name, bool* target, std::string help);
OptionSpec Integer(std::string name, int64_t* target, int64_t least, int64_t most,
                   std::string help);
OptionSpec Bytes(std::string name, int64_t* target, int64_t least, int64_t most, std::string help);
OptionSpec Duration(std::string name, int64_t* target, int64_t least_us, std::string help);

// "host:port"; INVALID_ARGUMENT that names the setting.
absl::Status CheckAddress(std::string_view name, const std::string& address);

}  // namespace weir::server
