#include "text/tools.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace weir::text {
namespace {

using Json = nlohmann::ordered_json;

// A schema that refers to itself has no end, and one that does so in several places at once doubles
// with every level.
constexpr int kMaxDepth = 16;
// Fields and values looked at, all tools of a request together: far more than schemas have that are
// not made to be a burden. What is not looked at may be of any kind.
constexpr int64_t kMaxWork = 1'000'000;
constexpr int64_t kWorkOfReference = 100;

uint8_t KindOfName(const std::string& name) {
  if (name == "string") return kJsonString;
  if (name == "number" || name == "integer") return kJsonNumber;
  if (name == "boolean") return kJsonBoolean;
  if (name == "null") return kJsonNull;
  if (name == "object") return kJsonObject;
  if (name == "array") return kJsonArray;
  return kJsonAny;
}

uint8_t KindOfValue(const Json& value) {
  if (value.is_string()) return kJsonString;
  if (value.is_number()) return kJsonNumber;
  if (value.is_boolean()) return kJsonBoolean;
  if (value.is_null()) return kJsonNull;
  return value.is_object() ? kJsonObject : kJsonArray;
}

const Json* Resolve(const Json& root, const std::string& reference) {
  if (reference.rfind('#', 0) != 0) return nullptr;
  try {
    return &root.at(Json::json_pointer(reference.substr(1)));
  } catch (const Json::exception&) {  // no such place, or no pointer at all
    return nullptr;
  }
}

uint8_t KindsOfSchema(const Json& schema, const Json& root, int depth, int64_t* work) {
  *work -= 1 + static_cast<int64_t>(schema.size());
  if (!schema.is_object() || depth > kMaxDepth || *work < 0) return kJsonAny;
  uint8_t kinds = kJsonAny;
  if (const auto type = schema.find("type"); type != schema.end()) {
    uint8_t named = 0;
    if (type->is_string()) named = KindOfName(type->get<std::string>());
    if (type->is_array()) {
      *work -= static_cast<int64_t>(type->size());
      for (const Json& one : *type) {
        named |= one.is_string() ? KindOfName(one.get<std::string>()) : kJsonAny;
      }
    }
    if (named != 0) kinds &= named;
  }
  if (const auto values = schema.find("enum"); values != schema.end() && values->is_array()) {
    uint8_t seen = 0;
    *work -= static_cast<int64_t>(values->size());
    for (const Json& value : *values) seen |= KindOfValue(value);
    kinds &= seen;
  }
  if (const auto value = schema.find("const"); value != schema.end()) kinds &= KindOfValue(*value);
  if (const auto ref = schema.find("$ref"); ref != schema.end() && ref->is_string()) {
    *work -= kWorkOfReference;
    const Json* target = Resolve(root, ref->get<std::string>());
    if (target != nullptr) kinds &= KindsOfSchema(*target, root, depth + 1, work);
  }
  for (const char* key : {"anyOf", "oneOf"}) {
    const auto choices = schema.find(key);
    if (choices == schema.end() || !choices->is_array()) continue;
    uint8_t any = 0;
    for (const Json& choice : *choices) any |= KindsOfSchema(choice, root, depth + 1, work);
    kinds &= any;
  }
  if (const auto all = schema.find("allOf"); all != schema.end() && all->is_array()) {
    for (const Json& part : *all) kinds &= KindsOfSchema(part, root, depth + 1, work);
  }
  return kinds == 0 ? kJsonAny : kinds;
}

}  // namespace

uint8_t Tool::KindsOf(std::string_view property) const {
  const auto found = kinds.find(property);
  return found == kinds.end() ? kJsonAny : found->second;
}

std::vector<Tool> ReadTools(absl::Span<const std::string> tools_json) {
  std::vector<Tool> out;
  int64_t work = kMaxWork;
  for (const std::string& text : tools_json) {
    Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    const auto inner = json.find("function");
    const Json& function = inner != json.end() && inner->is_object() ? *inner : json;
    const auto name = function.find("name");
    if (name == function.end() || !name->is_string()) continue;
    Tool tool;
    tool.name = name->get<std::string>();
    const auto given = function.find("parameters");
    const Json parameters = given != function.end() && given->is_object() && !given->empty()
                                ? *given
                                : Json{{"type", "object"},
                                       {"properties", Json::object()},
                                       {"additionalProperties", false}};
    const auto properties = parameters.find("properties");
    if (properties != parameters.end() && properties->is_object()) {
      for (const auto& [key, schema] : properties->items()) {
        tool.kinds[key] = KindsOfSchema(schema, parameters, 0, &work);
      }
    }
    tool.parameters = parameters.dump(-1, ' ', false, Json::error_handler_t::replace);
    out.push_back(std::move(tool));
  }
  return out;
}

const Tool* FindTool(const std::vector<Tool>& tools, std::string_view name) {
  for (const Tool& tool : tools) {
    if (tool.name == name) return &tool;
  }
  return nullptr;
}

}  // namespace weir::text
