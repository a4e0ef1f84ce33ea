#include "server/commands/settings.h"

#include <algorithm>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"

namespace weir::server {

void Settings::AddFlags(CLI::App* command, const std::vector<OptionSpec>& table,
                        const std::string& positional) {
  command->add_option(
      "--config", config_,
      "YAML file with the same settings, \"name: value\" per line; flags come after it");
  for (const OptionSpec& spec : table) {
    if (spec.name == positional) continue;
    command
        ->add_option_function<std::string>(
            "--" + spec.name,
            [this, name = spec.name](const std::string& text) { given_.emplace_back(name, text); },
            absl::StrCat(spec.help, " [", spec.default_value.empty() ? "none" : spec.default_value,
                         "]"))
        ->type_name(spec.kind)
        ->take_last();
  }
}

absl::Status Settings::Apply(const std::vector<OptionSpec>& table) const {
  if (!config_.empty()) RETURN_IF_ERROR(ApplyYamlFile(config_, table));
  for (const auto& [name, text] : given_) {
    const auto spec = std::find_if(table.begin(), table.end(),
                                   [&name](const OptionSpec& each) { return each.name == name; });
    const absl::Status set = spec->set(text);
    if (!set.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--", name, ": ", set.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace weir::server
