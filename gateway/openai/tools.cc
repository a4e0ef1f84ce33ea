#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
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

// The name in {"type": "function", "function": {"name": ...}}; nullptr: refused.
const std::string* NamedFunction(const Json& given, const std::string& path, Problems* problems) {
  if (!given.is_object()) {
    problems->Add(path, absl::StrCat("must be an object, is ", Kind(given)));
    return nullptr;
  }
  Fields choice(given, path, problems);
  if (choice.Take("type") == nullptr) choice.Problem("type", "is required");
  choice.Only("type", "function", kOnlyFunctions);
  const Json* body = choice.Object("function");
  choice.RefuseUnknown();
  if (body == nullptr) {
    choice.Problem("function", "is required");
    return nullptr;
  }
  Fields function(*body, path + ".function", problems);
  const std::string* name = function.String("name");
  if (name == nullptr) function.Problem("name", "is required");
  function.RefuseUnknown();
  return name;
}

// Empty: it has none, which was a problem already.
std::string ToolName(const std::string& tool) {
  const Json parsed = Json::parse(tool);
  const Json& function = parsed.at("function");
  const auto name = function.find("name");
  return name != function.end() && name->is_string() ? name->get<std::string>() : "";
}

std::set<std::string> ToolNames(const v1::Chat& chat) {
  std::set<std::string> names;
  for (const std::string& tool : chat.tools()) names.insert(ToolName(tool));
  return names;
}

// {"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}: the model is shown
// only these tools.
void ReadAllowedTools(const Json& given, Fields* fields, v1::Chat* chat, v1::ToolUse* use) {
  Fields choice(given, "tool_choice", fields->problems());
  choice.Take("type");
  const Json* body = choice.Object("allowed_tools");
  choice.RefuseUnknown();
  if (body == nullptr) return choice.Problem("allowed_tools", "is required");
  Fields allowed(*body, "tool_choice.allowed_tools", fields->problems());
  const std::string* mode = allowed.String("mode");
  if (mode == nullptr || (*mode != "auto" && *mode != "required")) {
    allowed.Problem("mode", "must be auto or required");
  } else if (*mode == "required") {
    use->set_mode(v1::ToolUse::MODE_REQUIRED);
  }
  const Json* tools = allowed.Array("tools");
  allowed.RefuseUnknown();
  if (tools == nullptr || tools->empty()) return allowed.Problem("tools", "must name a tool");
  const std::set<std::string> known = ToolNames(*chat);
  std::set<std::string> names;
  for (size_t i = 0; i < tools->size(); ++i) {
    const std::string path = absl::StrCat("tool_choice.allowed_tools.tools[", i, "]");
    const std::string* name = NamedFunction((*tools)[i], path, fields->problems());
    if (name == nullptr) continue;
    if (!known.contains(*name)) fields->problems()->Add(path, "is none of the names in tools");
    names.insert(*name);
  }
  auto* shown = chat->mutable_tools();
  shown->erase(
      std::remove_if(shown->begin(), shown->end(),
                     [&](const std::string& tool) { return !names.contains(ToolName(tool)); }),
      shown->end());
}

// One of the words, or an object.
v1::ToolUse ReadChoice(const Json& choice, Fields* fields, v1::Chat* chat) {
  v1::ToolUse use;
  if (choice.is_string()) {
    const std::string& word = choice.get_ref<const std::string&>();
    if (word == "none") {
      use.set_mode(v1::ToolUse::MODE_NONE);
    } else if (word == "required") {
      use.set_mode(v1::ToolUse::MODE_REQUIRED);
    } else if (word != "auto") {
      fields->Problem("tool_choice", "must be none, auto, required or name a function");
    }
  } else if (choice.is_object() && choice.value("type", Json()) == "allowed_tools") {
    ReadAllowedTools(choice, fields, chat, &use);
  } else if (choice.is_object()) {
    const std::string* name = NamedFunction(choice, "tool_choice", fields->problems());
    use.set_mode(v1::ToolUse::MODE_NAMED);
    if (name != nullptr) {
      use.set_name(*name);
      if (chat->tools_size() > 0 && !ToolNames(*chat).contains(*name)) {
        fields->Problem("tool_choice.function.name", "is none of the names in tools");
      }
    }
  } else {
    fields->Problem("tool_choice",
                    absl::StrCat("must be a string or an object, is ", Kind(choice)));
  }
  return use;
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
  v1::Chat* chat = request->mutable_chat();
  const bool has_tools = chat->tools_size() > 0;
  v1::ToolUse use;
  if (choice != nullptr) use = ReadChoice(*choice, fields, chat);
  if (!has_tools) {
    if (use.mode() == v1::ToolUse::MODE_REQUIRED || use.mode() == v1::ToolUse::MODE_NAMED) {
      fields->Problem("tool_choice", "is only allowed when tools are given");
    }
    return;
  }
  if (parallel) use.set_parallel(*parallel);
  if (use.mode() == v1::ToolUse::MODE_UNSPECIFIED && !parallel) return;
  if (use.mode() == v1::ToolUse::MODE_UNSPECIFIED) use.set_mode(v1::ToolUse::MODE_AUTO);
  *request->mutable_tool_use() = std::move(use);
}

}  // namespace weir::gateway
