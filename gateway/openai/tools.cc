#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {
namespace {

constexpr char kOnlyFunctions[] = "must be \"function\": only functions are called here";

// One tool for the template; empty: it was refused.
std::string ToolText(const Json& given, const std::string& path, Problems* problems) {
  if (!given.is_object()) {
    problems->Add(path, absl::StrCat("must be an object, is ", Kind(given)));
    return "";
  }
  Fields tool(given, path, problems);
  if (tool.Take("type") == nullptr) tool.Problem("type", "is required");
  tool.Only("type", "function", kOnlyFunctions);
  const Json* body = tool.Object("function");
  if (body == nullptr) {
    tool.Problem("function", "is required");
    return "";
  }
  tool.RefuseUnknown();
  Fields function(*body, path + ".function", problems);
  const std::string* name = function.String("name");
  if (name == nullptr || name->empty()) function.Problem("name", "is required");
  function.String("description");
  function.Object("parameters");
  // Arguments of forced calls always fit their schema, so nothing is left to ask for.
  function.Bool("strict");
  function.RefuseUnknown();

  Json shown = Json::object();  // what models were trained to read
  for (const auto& [key, value] : body->get_ref<const Json::object_t&>()) {
    const bool known = key == "name" || key == "description" || key == "parameters";
    if (known && !value.is_null()) shown[key] = value;
  }
  return Json{{"type", "function"}, {"function", std::move(shown)}}.dump();
}

// The function that {"type": "function", "function": {"name": ...}} names; nullptr: refused.
const std::string* NamedFunction(const Json& given, Fields* fields) {
  Fields choice(given, "tool_choice", fields->problems());
  if (choice.Take("type") == nullptr) choice.Problem("type", "is required");
  choice.Only("type", "function", kOnlyFunctions);
  const Json* body = choice.Object("function");
  choice.RefuseUnknown();
  if (body == nullptr) {
    choice.Problem("function", "is required");
    return nullptr;
  }
  Fields function(*body, "tool_choice.function", fields->problems());
  const std::string* name = function.String("name");
  if (name == nullptr) function.Problem("name", "is required");
  function.RefuseUnknown();
  return name;
}

bool HasTool(const v1::Chat& chat, const std::string& name) {
  for (const std::string& tool : chat.tools()) {
    const Json parsed = Json::parse(tool, nullptr, /*allow_exceptions=*/false);
    if (parsed["function"].value("name", "") == name) return true;
  }
  return false;
}

}  // namespace

void ReadTools(Fields* fields, v1::Chat* chat) {
  const Json* tools = fields->Array("tools");
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    std::string text = ToolText((*tools)[i], absl::StrCat("tools[", i, "]"), fields->problems());
    if (!text.empty()) chat->add_tools(std::move(text));
  }
}

void ReadToolChoice(Fields* fields, v1::GenerateRequest* request) {
  const auto parallel = fields->Bool("parallel_tool_calls");
  const Json* choice = fields->Take("tool_choice");
  const bool has_tools = request->chat().tools_size() > 0;
  v1::ToolUse use;
  if (choice != nullptr && choice->is_string()) {
    const std::string& word = choice->get_ref<const std::string&>();
    if (word == "none") {
      use.set_mode(v1::ToolUse::MODE_NONE);
    } else if (word == "required") {
      use.set_mode(v1::ToolUse::MODE_REQUIRED);
    } else if (word != "auto") {
      fields->Problem("tool_choice", "must be none, auto, required or name a function");
    }
  } else if (choice != nullptr && choice->is_object()) {
    const std::string* name = NamedFunction(*choice, fields);
    use.set_mode(v1::ToolUse::MODE_NAMED);
    if (name != nullptr) {
      use.set_name(*name);
      if (has_tools && !HasTool(request->chat(), *name)) {
        fields->Problem("tool_choice.function.name", "is none of the names in tools");
      }
    }
  } else if (choice != nullptr) {
    fields->Problem("tool_choice",
                    absl::StrCat("must be a string or an object, is ", Kind(*choice)));
  }
  const bool forced =
      use.mode() == v1::ToolUse::MODE_REQUIRED || use.mode() == v1::ToolUse::MODE_NAMED;
  if (!has_tools) {
    if (forced) fields->Problem("tool_choice", "is only allowed when tools are given");
    return;
  }
  if (parallel) use.set_parallel(*parallel);
  if (use.mode() == v1::ToolUse::MODE_UNSPECIFIED && !parallel) return;
  if (use.mode() == v1::ToolUse::MODE_UNSPECIFIED) use.set_mode(v1::ToolUse::MODE_AUTO);
  *request->mutable_tool_use() = std::move(use);
}

}  // namespace weir::gateway
