#include "server/chat_request.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "weir/v1/chat.pb.h"

namespace weir::server {
namespace {

using Json = nlohmann::ordered_json;

// Writing JSON out recurses, and so does a template that walks through it: depth is stack.
constexpr int kMaxDepth = 64;
// Objects that keep their order look through all their fields for each new one: without a limit a
// few megabytes of fields would take a minute.
constexpr int kMaxFields = 10'000;
// Of all objects of a chat together.
constexpr int kMaxFieldsOfChat = 100'000;

// A JSON object; anything else is a violation and gives an empty one. `chat_fields`: those of the
// chat's objects so far.
Json ParseObject(const std::string& text, const std::string& field, int* chat_fields,
                 Violations* violations) {
  bool too_deep = false;
  int fields = 0;
  const auto watch = [&](int depth, Json::parse_event_t event, const Json&) {
    too_deep = too_deep || depth > kMaxDepth;
    if (event == Json::parse_event_t::key) {
      ++fields;
      ++*chat_fields;
    }
    return !too_deep && fields <= kMaxFields && *chat_fields <= kMaxFieldsOfChat;
  };
  Json value = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (too_deep) {
    violations->Add(field, absl::StrCat("nests brackets deeper than ", kMaxDepth, " levels"));
    return Json::object();
  }
  if (fields > kMaxFields) {
    violations->Add(field, absl::StrCat("has more than ", kMaxFields, " fields"));
    return Json::object();
  }
  if (*chat_fields > kMaxFieldsOfChat) {
    violations->Add(
        field, absl::StrCat("makes the chat's JSON have more than ", kMaxFieldsOfChat, " fields"));
    return Json::object();
  }
  if (value.is_discarded()) {
    violations->Add(field, "is no valid JSON");
    return Json::object();
  }
  if (!value.is_object()) {
    violations->Add(field, absl::StrCat("must be a JSON object, is ", value.type_name()));
    return Json::object();
  }
  return value;
}

Json ToolCalls(const v1::ChatMessage& message, const std::string& path, int* chat_fields,
               Violations* violations) {
  Json calls = Json::array();
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    const v1::ToolCall& call = message.tool_calls(i);
    const std::string at = absl::StrCat(path, ".tool_calls[", i, "]");
    if (call.name().empty()) violations->Add(at + ".name", "is required");
    Json function = {{"name", call.name()}};
    function["arguments"] =
        call.arguments().empty()
            ? Json::object()
            : ParseObject(call.arguments(), at + ".arguments", chat_fields, violations);
    Json entry = {{"type", "function"}, {"function", std::move(function)}};
    if (!call.id().empty()) entry["id"] = call.id();
    calls.push_back(std::move(entry));
  }
  return calls;
}

Json Message(const v1::ChatMessage& message, const std::string& path, int* chat_fields,
             Violations* violations) {
  if (message.role().empty()) {
    violations->Add(path + ".role", "is required, such as user, assistant, system or tool");
  }
  if (!message.has_content() && message.tool_calls_size() == 0 && !message.has_reasoning()) {
    violations->Add(path + ".content", "is required for a message without tool calls");
  }
  Json out = {{"role", message.role()}};
  out["content"] = message.has_content() ? Json(message.content()) : Json(nullptr);
  if (message.has_reasoning()) out["reasoning_content"] = message.reasoning();
  if (message.tool_calls_size() > 0)
    out["tool_calls"] = ToolCalls(message, path, chat_fields, violations);
  if (!message.tool_call_id().empty()) out["tool_call_id"] = message.tool_call_id();
  if (!message.name().empty()) out["name"] = message.name();
  return out;
}

// kwargs, with `documents` taken out: the template gets those by another way.
void AddKwargs(const v1::Chat& chat, int* chat_fields, text::ChatRequest* request,
               Violations* violations) {
  if (chat.template_kwargs().empty()) return;
  constexpr char kField[] = "chat.template_kwargs";
  Json kwargs = ParseObject(chat.template_kwargs(), kField, chat_fields, violations);
  for (const char* taken :
       {"messages", "tools", "add_generation_prompt", "continue_final_message"}) {
    if (kwargs.contains(taken)) {
      violations->Add(kField, absl::StrCat("must not set ", taken, "; it has a field of its own"));
    }
  }
  const auto documents = kwargs.find("documents");
  if (documents != kwargs.end()) {
    if (!documents->is_array()) violations->Add(kField, "documents must be an array");
    request->documents_json = documents->dump();
    kwargs.erase(documents);
  }
  request->kwargs_json = kwargs.dump();
}

}  // namespace

text::ChatRequest ToChatRequest(const v1::Chat& chat, bool with_tools,
                                const text::ChatTemplate& chat_template, Violations* violations) {
  text::ChatRequest request;
  if (chat.messages_size() == 0) violations->Add("chat.messages", "at least one is required");
  int fields = 0;
  Json messages = Json::array();
  for (int i = 0; i < chat.messages_size(); ++i) {
    messages.push_back(
        Message(chat.messages(i), absl::StrCat("chat.messages[", i, "]"), &fields, violations));
  }
  request.messages_json = messages.dump();

  if (chat.tools_size() > 0) {
    Json tools = Json::array();
    for (int i = 0; i < chat.tools_size(); ++i) {
      tools.push_back(
          ParseObject(chat.tools(i), absl::StrCat("chat.tools[", i, "]"), &fields, violations));
    }
    if (with_tools) request.tools_json = tools.dump();
  }
  AddKwargs(chat, &fields, &request, violations);

  request.continue_final_message = chat.continue_final_message();
  request.add_generation_prompt = chat.has_add_generation_prompt()
                                      ? chat.add_generation_prompt()
                                      : !request.continue_final_message;
  if (request.continue_final_message && request.add_generation_prompt) {
    violations->Add("chat.continue_final_message",
                    "contradicts add_generation_prompt: the final message cannot be both continued "
                    "and followed by a new one");
  }
  request.template_name = chat.template_name();
  const std::vector<std::string> names = chat_template.names();
  if (!request.template_name.empty() &&
      std::find(names.begin(), names.end(), request.template_name) == names.end()) {
    violations->Add("chat.template_name",
                    absl::StrCat("the model has no template of that name; it has ",
                                 absl::StrJoin(names, ", ")));
  }
  return request;
}

}  // namespace weir::server
