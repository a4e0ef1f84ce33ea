#include "text/tool_grammar.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/status.h"
#include "text/tokenizer.h"

namespace weir::text {
namespace {

using Json = nlohmann::ordered_json;

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// A literal: Lark's strings are escaped as JSON's are.
std::string Quoted(std::string_view text) { return Dump(Json(std::string(text))); }

// A tag as the vocabulary has it.
std::string Tag(std::string_view tag, const Tokenizer* tokenizer) {
  if (tokenizer != nullptr) {
    const std::optional<int32_t> id = tokenizer->TokenId(tag);
    if (id && tokenizer->IsSpecial(*id)) return absl::StrCat("<[", *id, "]>");
  }
  return Quoted(tag);
}

bool IsToken(const std::string& tag) { return tag.rfind("<[", 0) == 0; }

// As models print JSON: Python's json.dumps. Nothing more, or an answer could spend itself on
// white space.
Json Inlined(Json schema) {
  schema["x-guidance"] = {
      {"item_separator", ", "}, {"key_separator", ": "}, {"whitespace_flexible", false}};
  return schema;
}

// "start" and what it needs to let reasoning come before `body`.
std::string StartRule(std::string_view body, ReasoningStart reasoning, const Tokenizer* tokenizer) {
  if (reasoning == ReasoningStart::kNone) return absl::StrCat("start: ", ToAbsl(body), "\n");
  const std::string open = Tag(kThinkOpen, tokenizer);
  const std::string close = Tag(kThinkClose, tokenizer);
  std::string rules =
      absl::StrCat(reasoning == ReasoningStart::kOpen ? "start: thoughts" : "start: reasoning?",
                   " ", ToAbsl(body), "\n");
  if (reasoning == ReasoningStart::kMayOpen) {
    absl::StrAppend(&rules, "reasoning: ", open, " thoughts\n");
  }
  if (IsToken(close)) {
    absl::StrAppend(&rules, "thoughts: /(.|\\n)*/ ", close, " gap\n");
  } else {
    absl::StrAppend(&rules, "thoughts: thought gap\nthought[lazy]: /(.|\\n)*<\\/think>/\n");
  }
  absl::StrAppend(&rules, "gap: /[ \\n]{0,4}/\n");
  return rules;
}

class GrammarWriter {
 public:
  GrammarWriter(const std::vector<Tool>& tools, const ToolGrammarOptions& options,
                const Tokenizer* tokenizer)
      : tools_(tools), options_(options), tokenizer_(tokenizer) {}

  absl::StatusOr<std::string> Write() {
    std::string any = "call: ";
    for (size_t i = 0; i < tools_.size(); ++i) {
      absl::StrAppend(&any, i == 0 ? "" : " | ", "call_", i);
      RETURN_IF_ERROR(AddTool(i));
    }
    std::string out = StartRule("calls", options_.reasoning, tokenizer_);
    absl::StrAppend(&out, Calls(), any, "\n", rules_);
    return out;
  }

 private:
  // The rule `calls`: what stands around and between calls.
  std::string Calls() const {
    const auto several = [this](std::string_view separator) {
      if (!options_.parallel) return std::string("call");
      if (separator.empty()) return std::string("call+");
      return absl::StrCat("call (", Quoted(separator), " call)*");
    };
    if (options_.style.tools == ToolStyle::kKimi) {
      return absl::StrCat("calls: ", Tag(kKimiSectionBegin, tokenizer_), " ", several(""), " ",
                          Tag(kKimiSectionEnd, tokenizer_), "\n");
    }
    const JsonForm* form = JsonFormOf(options_.style.tools);
    if (form == nullptr || options_.style.tools == ToolStyle::kHermes) {
      return absl::StrCat("calls: ", options_.parallel ? "call (\"\\n\"? call)*" : "call", "\n");
    }
    std::string out = "calls:";
    if (!form->begin.empty()) absl::StrAppend(&out, " ", Tag(form->begin, tokenizer_));
    if (!form->open.empty()) absl::StrAppend(&out, " ", Quoted(form->open));
    absl::StrAppend(&out, " ", several(form->separator));
    if (!form->close.empty()) absl::StrAppend(&out, " ", Quoted(form->close));
    if (!form->end.empty()) absl::StrAppend(&out, " ", Tag(form->end, tokenizer_));
    return absl::StrCat(out, "\n");
  }

  absl::Status AddTool(size_t i) {
    const Tool& tool = tools_[i];
    Json schema = Json::parse(tool.parameters, nullptr, /*allow_exceptions=*/false);
    if (!schema.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the parameters of tool ", tool.name, " are no JSON schema"));
    }
    switch (options_.style.tools) {
      case ToolStyle::kQwen3Coder:
      case ToolStyle::kGlm:
        return AddXmlTool(i, schema);
      case ToolStyle::kKimi:
        absl::StrAppend(&rules_, "call_", i, ": ", Tag(kKimiCallBegin, tokenizer_), " ",
                        Quoted(absl::StrCat("functions.", tool.name, ":")), " /[0-9]{1,4}/ ",
                        Tag(kKimiArgumentsBegin, tokenizer_), " args_", i, " ",
                        Tag(kKimiCallEnd, tokenizer_), "\n");
        break;
      default: {
        const JsonForm* form = JsonFormOf(options_.style.tools);
        if (form == nullptr) {
          return absl::InvalidArgumentError(
              "it is not known how this model writes calls of tools (see the option tool-parser)");
        }
        const std::string head = absl::StrCat("{\"name\": ", Quoted(tool.name), ", \"",
                                              ToAbsl(form->arguments_key), "\": ");
        if (options_.style.tools == ToolStyle::kHermes) {
          absl::StrAppend(&rules_, "call_", i, ": ", Tag(form->begin, tokenizer_), " ",
                          Quoted("\n" + head), " args_", i, " ", Quoted("}\n"), " ",
                          Tag(form->end, tokenizer_), "\n");
        } else {
          absl::StrAppend(&rules_, "call_", i, ": ", Quoted(head), " args_", i, " \"}\"\n");
        }
      }
    }
    if (!schema.contains("type") && !schema.contains("$ref")) schema["type"] = "object";
    absl::StrAppend(&rules_, "args_", i, ": %json ", Dump(Inlined(std::move(schema))), "\n");
    return absl::OkStatus();
  }

  // Each argument in tags of its own, in the order of the schema.
  absl::Status AddXmlTool(size_t i, const Json& schema) {
    const Tool& tool = tools_[i];
    for (const char* keyword :
         {"anyOf", "oneOf", "allOf", "not", "if", "$ref", "patternProperties", "minProperties",
          "maxProperties", "dependentRequired", "dependentSchemas", "propertyNames"}) {
      if (schema.contains(keyword)) {
        return absl::InvalidArgumentError(
            absl::StrCat("the parameters of tool ", tool.name, " use ", keyword,
                         ", which this model's form of calls cannot be held to"));
      }
    }
    const bool glm = options_.style.tools == ToolStyle::kGlm;
    const std::string begin = Tag("<tool_call>", tokenizer_);
    std::string call =
        absl::StrCat("call_", i, ": ", begin, " ",
                     Quoted(glm ? tool.name + "\n" : "\n<function=" + tool.name + ">\n"));
    const Json properties = schema.value("properties", Json::object());
    const Json required = schema.value("required", Json::array());
    for (const auto& name : required) {
      if (name.is_string() && properties.contains(name.get<std::string>())) continue;
      return absl::InvalidArgumentError(absl::StrCat("the parameters of tool ", tool.name,
                                                     " require ", Dump(name),
                                                     ", which is none of their properties"));
    }
    size_t j = 0;
    for (const auto& [key, value_schema] : properties.items()) {
      const bool needed = std::find(required.begin(), required.end(), Json(key)) != required.end();
      const std::string rule = absl::StrCat("arg_", i, "_", j++);
      absl::StrAppend(&call, " ", rule, needed ? "" : "?");
      AddXmlArgument(rule, key, tool.KindsOf(key), value_schema, schema);
    }
    absl::StrAppend(&rules_, call, " ", glm ? "" : Quoted("</function>\n") + " ",
                    Tag("</tool_call>", tokenizer_), "\n");
    return absl::OkStatus();
  }

  void AddXmlArgument(const std::string& rule, const std::string& key, uint8_t kinds, Json value,
                      const Json& root) {
    const bool glm = options_.style.tools == ToolStyle::kGlm;
    // Special tokens stand between the literals; without them it is one.
    std::string head = glm ? absl::StrCat(Tag("<arg_key>", tokenizer_), " ", Quoted(key), " ",
                                          Tag("</arg_key>", tokenizer_), " \"\\n\" ",
                                          Tag("<arg_value>", tokenizer_))
                           : Quoted(absl::StrCat("<parameter=", key, ">\n"));
    const std::string close = glm ? Tag("</arg_value>", tokenizer_) : Quoted("\n</parameter>\n");
    const std::string behind = glm ? " \"\\n\"" : "";
    absl::StrAppend(&rules_, rule, ": ", head, " ", rule, "_value", behind, "\n");
    const std::string value_rule = rule + "_value";
    if ((kinds & kJsonString) == 0) {
      for (const char* place : {"$defs", "definitions"}) {
        if (root.contains(place) && value.is_object() && !value.contains(place)) {
          value[place] = root[place];
        }
      }
      absl::StrAppend(&rules_, value_rule, ": ", value_rule, "_json ", close, "\n", value_rule,
                      "_json: %json ", Dump(Inlined(std::move(value))), "\n");
      return;
    }
    const std::optional<std::string> fixed = FixedValues(value);
    if (fixed) {
      absl::StrAppend(&rules_, value_rule, ": (", *fixed, ") ", close, "\n");
    } else if (value.is_object() && value.contains("pattern") && value["pattern"].is_string()) {
      absl::StrAppend(&rules_, value_rule, ": /", Pattern(value["pattern"].get<std::string>()),
                      "/ ", close, "\n");
    } else if (IsToken(close)) {
      absl::StrAppend(&rules_, value_rule, ": /(.|\\n)", Length(value), "/ ", close, "\n");
    } else {
      // Lazy: the first closing tag ends the value, as it does for the parser.
      const std::string length = Length(value);
      absl::StrAppend(&rules_, value_rule, ": ", value_rule, "_text", glm ? "" : " \"\\n\"", "\n",
                      value_rule, "_text[lazy]: /(.|\\n)", length,
                      glm             ? "<\\/arg_value>"
                      : length == "*" ? "<\\/parameter>"
                                      : "\\n<\\/parameter>",
                      "/\n");
    }
  }

  // The literals of an enum or a const.
  static std::optional<std::string> FixedValues(const Json& schema) {
    if (!schema.is_object()) return std::nullopt;
    std::string out;
    const auto add = [&out](const Json& value) {
      const std::string text = value.is_string() ? value.get<std::string>() : Dump(value);
      absl::StrAppend(&out, out.empty() ? "" : " | ", Quoted(text));
    };
    if (schema.contains("const")) {
      add(schema["const"]);
    } else if (schema.contains("enum") && schema["enum"].is_array()) {
      for (const Json& value : schema["enum"]) add(value);
    }
    if (out.empty()) return std::nullopt;
    return out;
  }

  // A schema's pattern is looked for anywhere; a grammar's matches the whole.
  static std::string Pattern(std::string pattern) {
    std::string head = ".*";
    std::string tail = ".*";
    if (!pattern.empty() && pattern.front() == '^') {
      pattern.erase(0, 1);
      head.clear();
    }
    if (!pattern.empty() && pattern.back() == '$' &&
        (pattern.size() < 2 || pattern[pattern.size() - 2] != '\\')) {
      pattern.pop_back();
      tail.clear();
    }
    std::string escaped;  // a slash would end Lark's regular expression
    for (size_t i = 0; i < pattern.size(); ++i) {
      if (pattern[i] == '\\' && i + 1 < pattern.size()) {
        escaped += pattern[i++];
      } else if (pattern[i] == '/') {
        escaped += '\\';
      }
      escaped += pattern[i];
    }
    return absl::StrCat(head, "(", escaped, ")", tail);
  }

  static std::string Length(const Json& schema) {
    const auto bound = [&schema](const char* key) {
      const bool said = schema.is_object() && schema.contains(key) &&
                        schema[key].is_number_unsigned() && schema[key].get<uint64_t>() < 100'000;
      return said ? absl::StrCat(schema[key].get<uint64_t>()) : std::string();
    };
    const std::string least = bound("minLength");
    const std::string most = bound("maxLength");
    if (least.empty() && most.empty()) return "*";
    return absl::StrCat("{", least.empty() ? "0" : least, ",", most, "}");
  }

  const std::vector<Tool>& tools_;
  const ToolGrammarOptions& options_;
  const Tokenizer* const tokenizer_;
  std::string rules_;
};

}  // namespace

absl::StatusOr<std::string> ToolCallGrammar(const std::vector<Tool>& tools,
                                            const ToolGrammarOptions& options,
                                            const Tokenizer* tokenizer) {
  if (tools.empty()) return absl::InvalidArgumentError("there is no tool to call");
  return GrammarWriter(tools, options, tokenizer).Write();
}

std::string ReasoningThen(std::string_view body, ReasoningStart reasoning,
                          const Tokenizer* tokenizer) {
  return StartRule(body, reasoning, tokenizer);
}

}  // namespace weir::text
