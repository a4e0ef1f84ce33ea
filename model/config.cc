#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace weir::model {

using Json = nlohmann::json;

namespace internal {
struct JsonState {
  Json root;
  std::string document;
  std::vector<std::string> complaints;
  std::map<const void*, std::set<std::string>> read;  // keys asked for, per object
};
}  // namespace internal

namespace {

const Json& AsJson(const void* node) { return *static_cast<const Json*>(node); }

const Json& EmptyObject() {
  static const Json empty = Json::object();
  return empty;
}

// The value as JSON, cut where it is long.
std::string Show(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 57), "...");
  return text;
}

std::string Bounds(double min, double max) {
  if (std::isinf(max)) return absl::StrCat("at least ", min);
  return absl::StrCat("from ", min, " to ", max);
}

// Deepest nesting of brackets outside strings. Printing and copying JSON recurses.
int Depth(absl::string_view text) {
  int depth = 0, deepest = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '\\') {
      ++i;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && (c == '{' || c == '[')) {
      deepest = std::max(deepest, ++depth);
    } else if (!quoted && (c == '}' || c == ']')) {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

absl::StatusOr<Fields> Fields::Parse(absl::string_view text, std::string document) {
  constexpr int kMaxDepth = 64;
  if (Depth(text) > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(document, " nests brackets deeper than ", kMaxDepth, " levels"));
  }
  auto state = std::make_shared<internal::JsonState>();
  try {
    state->root = Json::parse(text);
  } catch (const Json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(document, " is not valid JSON: ", e.what()));
  }
  if (!state->root.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(document, " holds ", state->root.type_name(), ", not an object"));
  }
  state->document = std::move(document);
  const void* root = &state->root;
  return Fields(std::move(state), root, "");
}

std::string Fields::Name(absl::string_view key) const {
  return path_.empty() ? std::string(key) : absl::StrCat(path_, ".", key);
}

void Fields::Complain(absl::string_view key, absl::string_view what) const {
  state_->complaints.push_back(absl::StrCat(Name(key), " ", what));
}

const void* Fields::Find(absl::string_view key) const {
  state_->read[node_].insert(std::string(key));
  const Json& node = AsJson(node_);
  const auto it = node.find(std::string(key));
  if (it == node.end() || it->is_null()) return nullptr;
  return &*it;
}

bool Fields::Has(absl::string_view key) const { return Find(key) != nullptr; }

bool Fields::IsNull(absl::string_view key) const {
  if (Find(key) != nullptr) return false;
  return AsJson(node_).contains(std::string(key));
}

bool Fields::IsObject(absl::string_view key) const {
  const void* value = Find(key);
  return value != nullptr && AsJson(value).is_object();
}

bool Fields::IsArray(absl::string_view key) const {
  const void* value = Find(key);
  return value != nullptr && AsJson(value).is_array();
}

int64_t Fields::Int(absl::string_view key, int64_t min, int64_t max,
                    std::optional<int64_t> fallback) const {
  const void* found = Find(key);
  if (found == nullptr) {
    if (!fallback) Complain(key, "is missing");
    return fallback.value_or(min);
  }
  const Json& value = AsJson(found);
  if (!value.is_number_integer()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be an integer"));
    return fallback.value_or(min);
  }
  const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX};
  const int64_t number = too_large ? INT64_MAX : value.get<int64_t>();
  if (too_large || number < min || number > max) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be from ", min, " to ", max));
    return fallback.value_or(min);
  }
  return number;
}

double Fields::Number(absl::string_view key, double min, double max,
                      std::optional<double> fallback) const {
  const void* found = Find(key);
  if (found == nullptr) {
    if (!fallback) Complain(key, "is missing");
    return fallback.value_or(min);
  }
  const Json& value = AsJson(found);
  if (!value.is_number()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be a number"));
    return fallback.value_or(min);
  }
  const double number = value.get<double>();
  if (!(number >= min && number <= max)) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be ", Bounds(min, max)));
    return fallback.value_or(min);
  }
  return number;
}

bool Fields::Bool(absl::string_view key, bool fallback) const {
  const void* found = Find(key);
  if (found == nullptr) return fallback;
  const Json& value = AsJson(found);
  if (!value.is_boolean()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be true or false"));
    return fallback;
  }
  return value.get<bool>();
}

std::string Fields::String(absl::string_view key, std::optional<std::string> fallback) const {
  const void* found = Find(key);
  if (found == nullptr) {
    if (!fallback) Complain(key, "is missing");
    return fallback.value_or("");
  }
  const Json& value = AsJson(found);
  if (!value.is_string()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be a string"));
    return fallback.value_or("");
  }
  return value.get<std::string>();
}

std::string Fields::Choice(absl::string_view key, std::initializer_list<absl::string_view> allowed,
                           std::optional<std::string> fallback) const {
  const size_t before = state_->complaints.size();
  std::string value = String(key, fallback);
  if (state_->complaints.size() != before) return std::string(*allowed.begin());
  for (absl::string_view option : allowed) {
    if (value == option) return value;
  }
  Complain(key, absl::StrCat("is \"", value, "\"; served are: ", absl::StrJoin(allowed, ", ")));
  return std::string(*allowed.begin());
}

std::vector<int64_t> Fields::IntList(absl::string_view key, int64_t min, int64_t max) const {
  const void* found = Find(key);
  std::vector<int64_t> numbers;
  if (found == nullptr) return numbers;
  const Json& value = AsJson(found);
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& entry : list) {
    if (!entry.is_number_integer()) {
      Complain(key, absl::StrCat("holds ", Show(entry), "; it must be integers"));
      return {};
    }
    const bool too_large =
        entry.is_number_unsigned() && entry.get<uint64_t>() > uint64_t{INT64_MAX};
    const int64_t number = too_large ? INT64_MAX : entry.get<int64_t>();
    if (number < min || number > max) {
      Complain(key, absl::StrCat("holds ", Show(entry), "; it must be from ", min, " to ", max));
      return {};
    }
    numbers.push_back(number);
  }
  return numbers;
}

std::vector<std::optional<double>> Fields::NumberList(absl::string_view key) const {
  const void* found = Find(key);
  std::vector<std::optional<double>> numbers;
  if (found == nullptr) return numbers;
  const Json& value = AsJson(found);
  if (!value.is_array()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be a list of numbers"));
    return numbers;
  }
  for (const Json& entry : value) {
    if (entry.is_null()) {
      numbers.push_back(std::nullopt);
    } else if (entry.is_number() && std::isfinite(entry.get<double>())) {
      numbers.push_back(entry.get<double>());
    } else {
      Complain(key, absl::StrCat("holds ", Show(entry), "; it must be finite numbers"));
      return {};
    }
  }
  return numbers;
}

std::vector<std::string> Fields::StringList(absl::string_view key) const {
  const void* found = Find(key);
  std::vector<std::string> strings;
  if (found == nullptr) return strings;
  const Json& value = AsJson(found);
  if (!value.is_array()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be a list of strings"));
    return strings;
  }
  for (const Json& entry : value) {
    if (!entry.is_string()) {
      Complain(key, absl::StrCat("holds ", Show(entry), "; it must be strings"));
      return {};
    }
    strings.push_back(entry.get<std::string>());
  }
  return strings;
}

Fields Fields::Object(absl::string_view key, bool required) const {
  const void* found = Find(key);
  if (found == nullptr) {
    if (required) Complain(key, "is missing");
    return Fields(state_, &EmptyObject(), Name(key));
  }
  if (!AsJson(found).is_object()) {
    Complain(key, absl::StrCat("is ", Show(AsJson(found)), "; it must be an object"));
    return Fields(state_, &EmptyObject(), Name(key));
  }
  return Fields(state_, found, Name(key));
}

std::vector<Fields> Fields::ObjectList(absl::string_view key, bool required) const {
  const void* found = Find(key);
  std::vector<Fields> objects;
  if (found == nullptr) {
    if (required) Complain(key, "is missing");
    return objects;
  }
  const Json& value = AsJson(found);
  if (!value.is_array()) {
    Complain(key, absl::StrCat("is ", Show(value), "; it must be a list of objects"));
    return objects;
  }
  int index = 0;
  for (const Json& entry : value) {
    std::string name = absl::StrCat(Name(key), "[", index++, "]");
    if (!entry.is_object()) {
      state_->complaints.push_back(
          absl::StrCat(name, " is ", Show(entry), "; it must be an object"));
      continue;
    }
    objects.push_back(Fields(state_, &entry, std::move(name)));
  }
  return objects;
}

void Fields::Ignore(std::initializer_list<absl::string_view> keys) const {
  for (absl::string_view key : keys) state_->read[node_].insert(std::string(key));
}

void Fields::RefuseUnknown() const {
  const std::set<std::string>& read = state_->read[node_];
  for (const auto& [key, value] : AsJson(node_).items()) {
    if (!read.contains(key)) Complain(key, "is not a key that is known here");
  }
}

void Fields::Refuse(absl::string_view key, absl::string_view why) const {
  const void* found = Find(key);
  Complain(key, found == nullptr ? absl::StrCat("is missing: ", why)
                                 : absl::StrCat("is ", Show(AsJson(found)), ": ", why));
}

bool Fields::ok() const { return state_->complaints.empty(); }

absl::Status Fields::status() const {
  const std::vector<std::string>& all = state_->complaints;
  if (all.empty()) return absl::OkStatus();
  constexpr size_t kShown = 20;
  std::string text = absl::StrJoin(all.begin(), all.begin() + std::min(all.size(), kShown), "; ");
  if (all.size() > kShown) absl::StrAppend(&text, "; and ", all.size() - kShown, " more");
  return absl::InvalidArgumentError(absl::StrCat(state_->document, ": ", text));
}

}  // namespace weir::model
