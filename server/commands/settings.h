// Settings of a command: `--name VALUE` flags over a YAML file with the same names.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "server/options.h"

namespace CLI {
class App;
}

namespace weir::server {

class Settings {
 public:
  // One flag for each of `table`, but not for `positional`; and --config. This object outlives the
  // parsing.
  void AddFlags(CLI::App* command, const std::vector<OptionSpec>& table,
                const std::string& positional = "");
  // Sets in `table`, which has the names that AddFlags was given, what the file says now, then what
  // the flags say. INVALID_ARGUMENT or NOT_FOUND names the setting.
  absl::Status Apply(const std::vector<OptionSpec>& table) const;

 private:
  std::string config_;
  std::vector<std::pair<std::string, std::string>> given_;  // flags, in order
};

}  // namespace weir::server
