#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gateway/openai/request_parts.h"

namespace weir::gateway {
namespace {

// A list of content parts as one text, a line break between them; only text has a meaning here.
std::string JoinParts(const Json& parts, const std::string& path, Problems* problems) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string at = absl::StrCat(path, "[", i, "]");
    if (!parts[i].is_object()) {
      problems->Add(at, absl::StrCat("must be an object with a type, is ", Kind(parts[i])));
      continue;
    }
    Fields part(parts[i], at, problems);
    const std::string* type = part.String("type");
    if (type == nullptr) {
      problems->Add(at + ".type", "is required");
      continue;
    }
    if (*type != "text" && *type != "refusal") {
      problems->Add(
          at, absl::StrCat("is of type \"", type->substr(0, 40), "\"; this model reads only text"));
      continue;
    }
    const std::string* value = part.String(*type);
    if (value == nullptr) problems->Add(absl::StrCat(at, ".", *type), "is required");
    part.Take("prompt_cache_breakpoint");  // a hint; prefixes are found without
    part.RefuseUnknown();
    if (i > 0) text.push_back('\n');
    if (value != nullptr) text.append(*value);
  }
  return text;
}

void ReadContent(Fields* fields, v1::ChatMessage* out) {
  const Json* content = fields->Take("content");
  if (content == nullptr) return;
  if (content->is_string()) {
    out->set_content(content->get_ref<const std::string&>());
  } else if (content->is_array()) {
    out->set_content(JoinParts(*content, fields->Path("content"), fields->problems()));
  } else {
    fields->Problem("content",
                    absl::StrCat("must be a string or an array of parts, is ", Kind(*content)));
  }
}

void ReadToolCall(const Json& given, const std::string& path, Problems* problems,
                  v1::ToolCall* out) {
  if (!given.is_object()) {
    problems->Add(path, absl::StrCat("must be an object, is ", Kind(given)));
    return;
  }
  Fields call(given, path, problems);
  if (const std::string* id = call.String("id")) out->set_id(*id);
  call.Only("type", "function", "must be \"function\": only functions are called here");
  call.Take("index");  // left in by clients that joined a stream
  const Json* body = call.Object("function");
  call.RefuseUnknown();
  if (body == nullptr) {
    problems->Add(path + ".function", "is required");
    return;
  }
  Fields function(*body, path + ".function", problems);
  const std::string* name = function.String("name");
  if (name != nullptr) {
    out->set_name(*name);
  } else {
    function.Problem("name", "is required");
  }
  const Json* arguments = function.Take("arguments");
  if (arguments != nullptr && arguments->is_string()) {
    out->set_arguments(arguments->get_ref<const std::string&>());
  } else if (arguments != nullptr && arguments->is_object()) {
    out->set_arguments(arguments->dump());
  } else if (arguments != nullptr) {
    function.Problem("arguments", "must be a string that holds a JSON object");
  }
  function.Take("parsed_arguments");  // a client's own copy
  function.RefuseUnknown();
}

void ReadAssistant(Fields* fields, v1::ChatMessage* out) {
  for (const char* name : {"reasoning_content", "reasoning"}) {
    const std::string* reasoning = fields->String(name);
    if (reasoning != nullptr && !out->has_reasoning()) out->set_reasoning(*reasoning);
  }
  const Json* calls = fields->Array("tool_calls");
  for (size_t i = 0; calls != nullptr && i < calls->size(); ++i) {
    ReadToolCall((*calls)[i], fields->Path(absl::StrCat("tool_calls[", i, "]")), fields->problems(),
                 out->add_tool_calls());
  }
  if (const std::string* refusal = fields->String("refusal"); refusal != nullptr) {
    if (!out->has_content()) out->set_content(*refusal);
  }
  fields->Take("parsed");       // a client's own copy of the content
  fields->Take("annotations");  // of web search
  fields->Refuse("audio", "is not served: this model gives no audio");
  fields->Refuse("function_call", "is not served any more; use tool_calls");
}

void ReadMessage(const Json& given, size_t index, const ModelFacts& facts, Problems* problems,
                 v1::ChatMessage* out) {
  const std::string path = absl::StrCat("messages[", index, "]");
  if (!given.is_object()) {
    problems->Add(path, absl::StrCat("must be an object, is ", Kind(given)));
    return;
  }
  Fields fields(given, path, problems);
  const std::string* role = fields.String("role");
  if (role == nullptr) {
    problems->Add(path + ".role", "is required");
    return;
  }
  constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant",
                                                      "tool"};
  if (std::find(kRoles.begin(), kRoles.end(), *role) == kRoles.end()) {
    problems->Add(path + ".role",
                  *role == "function"
                      ? "is \"function\", which is not served any more; use the role tool"
                      : "must be one of system, developer, user, assistant, tool");
    return;
  }
  // Templates know the older name, unless they say otherwise.
  const bool renamed =
      *role == "developer" && !absl::StrContains(facts.model.chat_template(), "developer");
  out->set_role(renamed ? "system" : *role);
  if (const std::string* name = fields.String("name")) out->set_name(*name);
  ReadContent(&fields, out);
  if (*role == "assistant") ReadAssistant(&fields, out);
  if (*role == "tool") {
    if (const std::string* id = fields.String("tool_call_id")) out->set_tool_call_id(*id);
  }
  if (!out->has_content() && (*role != "assistant" || out->tool_calls_size() == 0) &&
      !out->has_reasoning() && fields.Take("content") == nullptr) {
    problems->Add(path + ".content", "is required");
  }
  fields.RefuseUnknown();
}

}  // namespace

void ReadMessages(Fields* fields, const ModelFacts& facts, v1::Chat* chat) {
  const Json* messages = fields->Take("messages");
  if (messages == nullptr) {
    fields->Problem("messages", "is required");
    return;
  }
  if (!messages->is_array()) {
    fields->Problem("messages", absl::StrCat("must be an array, is ", Kind(*messages)));
    return;
  }
  if (messages->empty()) fields->Problem("messages", "must hold at least one message");
  for (size_t i = 0; i < messages->size(); ++i) {
    ReadMessage((*messages)[i], i, facts, fields->problems(), chat->add_messages());
  }
}

void ReadTemplate(Fields* fields, const ModelFacts& facts, v1::Chat* chat) {
  Json kwargs = Json::object();
  if (const Json* given = fields->Object("chat_template_kwargs")) kwargs = *given;
  if (const std::string* effort = fields->String("reasoning_effort")) {
    const std::string& source = facts.model.chat_template();
    if (absl::StrContains(source, "reasoning_effort")) {
      kwargs["reasoning_effort"] = *effort;
    } else if (absl::StrContains(source, "enable_thinking")) {
      kwargs["enable_thinking"] = *effort != "none";
    } else {
      fields->Problem("reasoning_effort",
                      "is not served: this model's template does not know it; leave it out");
    }
  }
  if (!kwargs.empty()) chat->set_template_kwargs(kwargs.dump());
  if (const auto value = fields->Bool("add_generation_prompt")) {
    chat->set_add_generation_prompt(*value);
  }
  if (const auto value = fields->Bool("continue_final_message")) {
    chat->set_continue_final_message(*value);
  }
}

}  // namespace weir::gateway
