// The YAML half of options.h.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/options.h"

namespace weir::server {
namespace {

// Edit distance, for "did you mean".
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string UnknownKey(const std::string& key, const std::vector<OptionSpec>& table) {
  const OptionSpec* nearest = nullptr;
  size_t best = std::max<size_t>(2, key.size() / 3) + 1;
  for (const OptionSpec& spec : table) {
    const size_t distance = Distance(key, spec.name);
    if (distance < best) {
      best = distance;
      nearest = &spec;
    }
  }
  return absl::StrCat(
      "unknown key \"", key, "\"",
      nearest == nullptr ? "" : absl::StrCat("; did you mean \"", nearest->name, "\"?"));
}

// Where a node stands, for messages.
std::string At(const std::string& path, const YAML::Mark& mark) {
  return mark.is_null() ? path : absl::StrCat(path, ":", mark.line + 1);
}

absl::Status ApplyMap(const std::string& path, const YAML::Node& root,
                      const std::vector<OptionSpec>& table) {
  std::vector<std::string> problems;
  std::map<std::string, int> lines;  // key -> where it stood
  for (const auto& entry : root) {
    const std::string where = At(path, entry.first.Mark());
    if (!entry.first.IsScalar()) {
      problems.push_back(absl::StrCat(where, ": a key must be a plain name"));
      continue;
    }
    const std::string key = entry.first.Scalar();
    const auto spec = std::find_if(table.begin(), table.end(),
                                   [&](const OptionSpec& s) { return s.name == key; });
    if (spec == table.end()) {
      problems.push_back(absl::StrCat(where, ": ", UnknownKey(key, table)));
      continue;
    }
    const auto [seen, first] = lines.emplace(key, entry.first.Mark().line + 1);
    if (!first) {
      problems.push_back(absl::StrCat(where, ": ", key, ": already set on line ", seen->second));
      continue;
    }
    if (!entry.second.IsScalar()) {
      const char* is = entry.second.IsMap()        ? "a map"
                       : entry.second.IsSequence() ? "a list"
                                                   : "nothing";
      problems.push_back(
          absl::StrCat(where, ": ", key, ": must be one value (", spec->kind, "), is ", is));
      continue;
    }
    const absl::Status set = spec->set(entry.second.Scalar());
    if (!set.ok()) problems.push_back(absl::StrCat(where, ": ", key, ": ", set.message()));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

}  // namespace

absl::Status ApplyYamlFile(const std::string& path, const std::vector<OptionSpec>& table) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  // Reading a folder opens and then fails.
  if (!file || !(text << file.rdbuf())) {
    if (file.is_open() && file.peek() == std::ifstream::traits_type::eof() && !file.bad() &&
        text.str().empty()) {
      return absl::OkStatus();  // an empty file sets nothing
    }
    return absl::NotFoundError(absl::StrCat("cannot read the configuration file ", path));
  }
  try {
    const YAML::Node root = YAML::Load(text.str());
    if (root.IsNull()) return absl::OkStatus();
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(absl::StrCat(
          At(path, root.Mark()), ": the file must be a map, \"name: value\" per line"));
    }
    return ApplyMap(path, root, table);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(At(path, error.mark), ": no valid YAML: ", error.msg));
  }
}

}  // namespace weir::server
