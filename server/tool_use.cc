#include "server/tool_use.h"

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/served_model.h"
#include "text/chat_template.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

// A template that never names the variable cannot show it.
bool TemplateShowsTools(const v1::Chat& chat, const text::ChatTemplate& chat_template) {
  std::string_view source = chat_template.source(chat.template_name());
  if (chat.template_name().empty()) {
    source = chat_template.source("tool_use");
    if (source.empty()) source = chat_template.source();
  }
  return source.empty() || source.find("tools") != std::string_view::npos;
}

void CheckName(const v1::ToolUse& use, const std::vector<text::Tool>& tools,
               Violations* violations) {
  if (use.mode() != v1::ToolUse::MODE_NAMED) {
    if (!use.name().empty()) violations->Add("tool_use.name", "only goes with mode NAMED");
    return;
  }
  if (text::FindTool(tools, use.name()) != nullptr) return;
  std::vector<std::string> names;
  for (const text::Tool& tool : tools) names.push_back(tool.name);
  violations->Add(
      "tool_use.name",
      absl::StrCat(
          use.name().empty() ? "is required with mode NAMED"
                             : absl::StrCat("\"", use.name(), "\" is no tool of the chat"),
          names.empty() ? "; it has none" : absl::StrCat("; it has ", absl::StrJoin(names, ", "))));
}

}  // namespace

bool ShowsTools(const v1::GenerateRequest& request) {
  return request.tool_use().mode() != v1::ToolUse::MODE_NONE;
}

ToolUse ToToolUse(const v1::GenerateRequest& request, const ServedModel& model,
                  Violations* violations) {
  ToolUse out;
  const v1::ToolUse& use = request.tool_use();
  if (request.has_tool_use() && !request.has_chat()) {
    violations->Add("tool_use", "only goes with chat");
    return out;
  }
  if (!v1::ToolUse::Mode_IsValid(use.mode())) {
    violations->Add("tool_use.mode",
                    absl::StrCat("is ", static_cast<int>(use.mode()), ", which is no mode"));
    return out;
  }
  if (!request.has_chat()) return out;
  out.parallel = use.has_parallel() ? use.parallel() : true;
  const v1::Chat& chat = request.chat();
  // Reading tools recurses, so what is said to be too deep, or else wrong, is not read again.
  if (!violations->empty() && chat.tools_size() > 0) return out;
  if (ShowsTools(request) && chat.tools_size() > 0) {
    out.tools = text::ReadTools(std::vector<std::string>(chat.tools().begin(), chat.tools().end()));
    if (!TemplateShowsTools(chat, *model.chat_template)) {
      violations->Add("chat.tools",
                      absl::StrCat("the chat template of ", model.name,
                                   " does not show tools to the model, so it could not call any; "
                                   "leave them out, or set tool_use to NONE"));
    }
  }
  CheckName(use, out.tools, violations);
  if (use.mode() == v1::ToolUse::MODE_REQUIRED && out.tools.empty()) {
    violations->Add("tool_use.mode", "REQUIRED needs a tool in chat.tools; each needs a name");
  }
  if (use.mode() == v1::ToolUse::MODE_REQUIRED) out.forced = out.tools;
  if (use.mode() == v1::ToolUse::MODE_NAMED) {
    out.parallel = false;
    if (const text::Tool* named = text::FindTool(out.tools, use.name())) out.forced = {*named};
  }
  return out;
}

}  // namespace weir::server
