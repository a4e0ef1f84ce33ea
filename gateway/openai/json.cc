#include "gateway/openai/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace weir::gateway {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxValues = 1'000'000;
constexpr size_t kMaxProblems = 20;

// Names in messages: a client's own words, but not pages of them.
std::string Shortened(std::string_view name) {
  constexpr size_t kMost = 100;
  if (name.size() <= kMost) return std::string(name);
  return absl::StrCat(std::string(name.substr(0, kMost)), "...");
}

// The fields in their order.
const Json::object_t::Container& Members(const Json& object) {
  return object.get_ref<const Json::object_t&>();
}

// Builds the tree within limits. The library's own builder looks through all fields of an object
// for each new one, which is quadratic.
class Builder {
 public:
  explicit Builder(Json* root) : root_(root) {}
  const std::string& error() const { return error_; }

  bool null() { return Add(nullptr); }
  bool boolean(bool value) { return Add(value); }
  bool number_integer(int64_t value) { return Add(value); }
  bool number_unsigned(uint64_t value) { return Add(value); }
  bool number_float(double value, const std::string&) { return Add(value); }
  bool string(std::string& value) { return Add(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }
  bool start_object(size_t) { return Open(Json::object()); }
  bool start_array(size_t) { return Open(Json::array()); }
  bool key(std::string& name) {
    keys_.push_back(std::move(name));
    return true;
  }
  bool end_object() {
    const Json& object = *open_.back();
    open_.pop_back();
    return HasNoTwins(object);
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  template <typename Exception>
  bool parse_error(size_t position, const std::string&, const Exception&) {
    return Fail(
        absl::StrCat("the body is no valid JSON in UTF-8; the fault is at byte ", position));
  }

 private:
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }

  bool Add(Json value) { return Place(std::move(value)) != nullptr; }

  Json* Place(Json value) {
    if (++values_ > kMaxValues) {
      Fail(absl::StrCat("the body has more than ", kMaxValues, " JSON values"));
      return nullptr;
    }
    if (open_.empty()) {
      *root_ = std::move(value);
      return root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      auto& items = parent.get_ref<Json::array_t&>();
      return &items.emplace_back(std::move(value));
    }
    auto& members = parent.get_ref<Json::object_t&>();
    members.Container::emplace_back(std::move(keys_.back()), std::move(value));
    keys_.pop_back();
    return &members.back().second;
  }

  bool Open(Json value) {
    if (open_.size() == kMaxDepth) {
      return Fail(absl::StrCat("the body nests brackets deeper than ", kMaxDepth, " levels"));
    }
    Json* placed = Place(std::move(value));
    if (placed == nullptr) return false;
    open_.push_back(placed);
    return true;
  }

  bool HasNoTwins(const Json& object) {
    const auto& members = Members(object);
    if (members.size() < 2) return true;
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const auto& member : members) names.push_back(member.first);
    std::sort(names.begin(), names.end());
    const auto twin = std::adjacent_find(names.begin(), names.end());
    if (twin == names.end()) return true;
    return Fail(absl::StrCat("the body has the field \"", Shortened(*twin), "\" twice"));
  }

  Json* const root_;
  std::vector<Json*> open_;        // objects and arrays that are not closed yet, outermost first
  std::vector<std::string> keys_;  // of the members that are not placed yet
  size_t values_ = 0;
  std::string error_;
};

}  // namespace

std::optional<ApiError> ParseObject(std::string_view body, Json* object) {
  Builder builder(object);
  if (!Json::sax_parse(body, &builder)) return InvalidRequest("", builder.error(), "invalid_json");
  if (object->is_object()) return std::nullopt;
  return InvalidRequest("", absl::StrCat("the body must be a JSON object, is ", Kind(*object)));
}

const char* Kind(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "an integer";
    case Json::value_t::number_float:
      return "a number with a fraction";
    default:
      return "something else";
  }
}

void Problems::Add(std::string param, std::string description) {
  if (list_.size() < kMaxProblems) list_.push_back({std::move(param), std::move(description)});
}

ApiError Problems::ToError() const {
  std::string message;
  for (const Problem& problem : list_) {
    absl::StrAppend(&message, message.empty() ? "" : "; ", problem.param, " ", problem.description);
  }
  return InvalidRequest(list_.front().param, std::move(message));
}

Fields::Fields(const Json& object, std::string path, Problems* problems)
    : object_(object), path_(std::move(path)), problems_(problems), known_(object.size()) {}

std::string Fields::Path(std::string_view name) const {
  const std::string shortened = Shortened(name);
  return path_.empty() ? shortened : absl::StrCat(path_, ".", shortened);
}

void Fields::Problem(std::string_view name, std::string description) {
  problems_->Add(Path(name), std::move(description));
}

const Json* Fields::Take(std::string_view name) {
  const auto& members = Members(object_);
  for (size_t i = 0; i < members.size(); ++i) {
    if (members[i].first != name) continue;
    known_[i] = true;
    return members[i].second.is_null() ? nullptr : &members[i].second;
  }
  return nullptr;
}

std::optional<bool> Fields::Bool(std::string_view name) {
  const Json* value = Take(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  Problem(name, absl::StrCat("must be true or false, is ", Kind(*value)));
  return std::nullopt;
}

std::optional<int64_t> Fields::Int(std::string_view name, int64_t least, int64_t most) {
  const Json* value = Take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    Problem(name, absl::StrCat("must be an integer, is ", Kind(*value)));
    return std::nullopt;
  }
  const bool too_large =
      value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (too_large || value->get<int64_t>() < least || value->get<int64_t>() > most) {
    Problem(name, absl::StrCat("must be between ", least, " and ", most));
    return std::nullopt;
  }
  return value->get<int64_t>();
}

std::optional<float> Fields::Number(std::string_view name) {
  const Json* value = Take(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    Problem(name, absl::StrCat("must be a number, is ", Kind(*value)));
    return std::nullopt;
  }
  const auto number = value->get<double>();
  if (std::abs(number) <= 1e30) return static_cast<float>(number);
  Problem(name, "is too large a number");
  return std::nullopt;
}

const std::string* Fields::String(std::string_view name) {
  const Json* value = Take(name);
  if (value == nullptr) return nullptr;
  if (value->is_string()) return &value->get_ref<const std::string&>();
  Problem(name, absl::StrCat("must be a string, is ", Kind(*value)));
  return nullptr;
}

const Json* Fields::Object(std::string_view name) {
  const Json* value = Take(name);
  if (value == nullptr || value->is_object()) return value;
  Problem(name, absl::StrCat("must be an object, is ", Kind(*value)));
  return nullptr;
}

const Json* Fields::Array(std::string_view name) {
  const Json* value = Take(name);
  if (value == nullptr || value->is_array()) return value;
  Problem(name, absl::StrCat("must be an array, is ", Kind(*value)));
  return nullptr;
}

void Fields::Refuse(std::string_view name, std::string_view why) {
  if (Take(name) != nullptr) Problem(name, std::string(why));
}

void Fields::Only(std::string_view name, const Json& value, std::string_view why) {
  const Json* given = Take(name);
  if (given != nullptr && *given != value) Problem(name, std::string(why));
}

void Fields::RefuseUnknown() {
  const auto& members = Members(object_);
  for (size_t i = 0; i < members.size(); ++i) {
    if (known_[i] || members[i].second.is_null()) continue;
    Problem(members[i].first, "is no field that this server knows");
  }
}

}  // namespace weir::gateway
