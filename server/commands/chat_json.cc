// FillChat of generate_flags.h: the JSON that people have at hand -> weir.v1.Chat.
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/commands/generate_flags.h"
#include "weir/v1/chat.pb.h"

namespace weir::server {
namespace {

using Json = nlohmann::ordered_json;

absl::Status Bad(const std::string& where, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("--chat: ", where, " ", what));
}

absl::StatusOr<std::string> ReadInput(const std::string& argument) {
  std::stringstream text;
  if (argument == "-") {
    text << std::cin.rdbuf();
  } else if (!argument.empty() && argument[0] == '@') {
    std::ifstream file(argument.substr(1), std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat("--chat: cannot read ", argument.substr(1)));
    text << file.rdbuf();
  } else {
    return argument;
  }
  return text.str();
}

absl::Status GetString(const Json& value, const std::string& where, std::string* out) {
  if (!value.is_string()) return Bad(where, "must be a string");
  *out = value.get<std::string>();
  return absl::OkStatus();
}

// Arguments are a string with JSON in it, or the object itself.
absl::Status FillToolCall(const Json& json, const std::string& where, v1::ToolCall* call) {
  if (!json.is_object()) return Bad(where, "must be an object");
  const Json& function = json.contains("function") ? json["function"] : json;
  if (!function.is_object() || !function.contains("name"))
    return Bad(where, "has no function name");
  RETURN_IF_ERROR(GetString(function["name"], where + ".name", call->mutable_name()));
  if (function.contains("arguments")) {
    const Json& arguments = function["arguments"];
    call->set_arguments(arguments.is_string() ? arguments.get<std::string>() : arguments.dump());
  }
  if (json.contains("id"))
    RETURN_IF_ERROR(GetString(json["id"], where + ".id", call->mutable_id()));
  return absl::OkStatus();
}

absl::Status FillMessage(const Json& json, const std::string& where, v1::ChatMessage* message) {
  if (!json.is_object()) return Bad(where, "must be an object");
  for (const auto& [key, value] : json.items()) {
    const std::string at = absl::StrCat(where, ".", key);
    if (value.is_null()) continue;
    if (key == "role") {
      RETURN_IF_ERROR(GetString(value, at, message->mutable_role()));
    } else if (key == "content") {
      RETURN_IF_ERROR(GetString(value, at, message->mutable_content()));
    } else if (key == "reasoning" || key == "reasoning_content") {
      RETURN_IF_ERROR(GetString(value, at, message->mutable_reasoning()));
    } else if (key == "tool_call_id") {
      RETURN_IF_ERROR(GetString(value, at, message->mutable_tool_call_id()));
    } else if (key == "name") {
      RETURN_IF_ERROR(GetString(value, at, message->mutable_name()));
    } else if (key == "tool_calls") {
      if (!value.is_array()) return Bad(at, "must be an array");
      for (const Json& call : value) {
        RETURN_IF_ERROR(FillToolCall(call, at, message->add_tool_calls()));
      }
    } else {
      return Bad(at,
                 "is no key of a message; known: role, content, reasoning, tool_calls, "
                 "tool_call_id, name");
    }
  }
  return absl::OkStatus();
}

absl::Status FillMessages(const Json& messages, v1::Chat* chat) {
  if (!messages.is_array()) return Bad("messages", "must be an array");
  for (size_t i = 0; i < messages.size(); ++i) {
    RETURN_IF_ERROR(
        FillMessage(messages[i], absl::StrCat("messages[", i, "]"), chat->add_messages()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FillChat(const std::string& json_or_path, v1::Chat* chat) {
  ASSIGN_OR_RETURN(const std::string text, ReadInput(json_or_path));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return Bad("the argument", "is no valid JSON");
  if (json.is_array()) return FillMessages(json, chat);
  if (!json.is_object()) return Bad("the argument", "must be an array of messages or an object");
  for (const auto& [key, value] : json.items()) {
    if (key == "messages") {
      RETURN_IF_ERROR(FillMessages(value, chat));
    } else if (key == "tools") {
      if (!value.is_array()) return Bad(key, "must be an array");
      for (const Json& tool : value) chat->add_tools(tool.dump());
    } else if (key == "template_kwargs" || key == "chat_template_kwargs") {
      chat->set_template_kwargs(value.dump());
    } else if (key == "add_generation_prompt" && value.is_boolean()) {
      chat->set_add_generation_prompt(value.get<bool>());
    } else if (key == "continue_final_message" && value.is_boolean()) {
      chat->set_continue_final_message(value.get<bool>());
    } else if (key == "template_name") {
      RETURN_IF_ERROR(GetString(value, key, chat->mutable_template_name()));
    } else {
      return Bad(key,
                 "is unknown or of the wrong kind; known: messages, tools, template_kwargs, "
                 "add_generation_prompt, continue_final_message, template_name");
    }
  }
  return absl::OkStatus();
}

}  // namespace weir::server
