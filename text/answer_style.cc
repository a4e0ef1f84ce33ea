#include "text/answer_style.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "text/tokenizer.h"

namespace weir::text {
namespace {

constexpr std::array<std::pair<ToolStyle, std::string_view>, 11> kToolNames = {{
    {ToolStyle::kNone, "none"},
    {ToolStyle::kHermes, "hermes"},
    {ToolStyle::kQwen3Coder, "qwen3_coder"},
    {ToolStyle::kLlamaJson, "llama_json"},
    {ToolStyle::kGranite, "granite"},
    {ToolStyle::kNemotron, "nemotron"},
    {ToolStyle::kJamba, "jamba"},
    {ToolStyle::kMinimax, "minimax"},
    {ToolStyle::kMistral, "mistral"},
    {ToolStyle::kKimi, "kimi"},
    {ToolStyle::kGlm, "glm"},
}};

constexpr std::array<std::pair<ReasoningStyle, std::string_view>, 2> kReasoningNames = {{
    {ReasoningStyle::kNone, "none"},
    {ReasoningStyle::kThink, "think"},
}};

// What gives a style away, the more telling first: several forms share <tool_call>.
constexpr std::array<std::pair<std::string_view, ToolStyle>, 12> kMarks = {{
    {kKimiSectionBegin, ToolStyle::kKimi},
    {"<function=", ToolStyle::kQwen3Coder},
    {"<arg_key>", ToolStyle::kGlm},
    {"<TOOLCALL>", ToolStyle::kNemotron},
    {"<|bom|>", ToolStyle::kJamba},
    {"<tool_calls>[", ToolStyle::kJamba},
    {"<tool_calls>", ToolStyle::kMinimax},
    {"[TOOL_CALLS]", ToolStyle::kMistral},
    {"<|tool_call|>", ToolStyle::kGranite},
    {"<tool_call>", ToolStyle::kHermes},
    {kPythonTag, ToolStyle::kLlamaJson},
    {"Environment: ipython", ToolStyle::kLlamaJson},
}};

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool HasToken(const Tokenizer& tokenizer, std::string_view content) {
  const auto& added = tokenizer.added_tokens();
  return std::any_of(added.begin(), added.end(),
                     [&](const AddedToken& token) { return token.content == content; });
}

template <typename Style, size_t n>
absl::StatusOr<Style> FromName(const std::array<std::pair<Style, std::string_view>, n>& names,
                               std::string_view name) {
  std::string known;
  for (const auto& [style, its_name] : names) {
    if (its_name == name) return style;
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(its_name));
  }
  return absl::InvalidArgumentError(absl::StrCat("\"", std::string(name), "\" is none of ", known));
}

template <typename Style, size_t n>
std::vector<std::string> Names(const std::array<std::pair<Style, std::string_view>, n>& names) {
  std::vector<std::string> out;
  for (const auto& entry : names) out.emplace_back(entry.second);
  return out;
}

template <typename Style, size_t n>
std::string_view NameOf(const std::array<std::pair<Style, std::string_view>, n>& names,
                        Style style) {
  for (const auto& [known, name] : names) {
    if (known == style) return name;
  }
  return names.front().second;
}

}  // namespace

AnswerStyle DetectAnswerStyle(std::string_view source, const Tokenizer* tokenizer) {
  AnswerStyle style;
  const auto in_tokens = [&](std::string_view mark) {
    return tokenizer != nullptr && HasToken(*tokenizer, mark);
  };
  if (Contains(source, kThinkOpen) || Contains(source, kThinkClose) || in_tokens(kThinkClose)) {
    style.reasoning = ReasoningStyle::kThink;
  }
  for (const auto& [mark, tools] : kMarks) {
    if (!Contains(source, mark)) continue;
    style.tools = tools;
    return style;
  }
  if (!Contains(source, "tools")) return style;
  for (const auto& [mark, tools] : kMarks) {
    if (!in_tokens(mark)) continue;
    style.tools = tools;
    return style;
  }
  return style;
}

ReasoningStart ReasoningStartOf(ReasoningStyle style, std::string_view prompt,
                                size_t continued_bytes) {
  if (style == ReasoningStyle::kNone) return ReasoningStart::kNone;
  if (continued_bytes > 0) {
    // What a template puts between the header and the text of an answer.
    constexpr size_t kSlack = 32;
    const size_t begin = prompt.size() - std::min(prompt.size(), continued_bytes + kSlack);
    const std::string_view tail = prompt.substr(begin);
    const size_t open = tail.rfind(kThinkOpen);
    const size_t close = tail.rfind(kThinkClose);
    const bool inside =
        open != std::string_view::npos && (close == std::string_view::npos || close < open);
    return inside ? ReasoningStart::kOpen : ReasoningStart::kNone;
  }
  while (!prompt.empty() && absl::ascii_isspace(static_cast<unsigned char>(prompt.back()))) {
    prompt.remove_suffix(1);
  }
  const auto ends_with = [prompt](std::string_view tag) {
    return prompt.size() >= tag.size() && prompt.substr(prompt.size() - tag.size()) == tag;
  };
  if (ends_with(kThinkOpen)) return ReasoningStart::kOpen;
  if (ends_with(kThinkClose)) return ReasoningStart::kNone;
  return ReasoningStart::kMayOpen;
}

std::string_view ToolStyleName(ToolStyle style) { return NameOf(kToolNames, style); }
std::string_view ReasoningStyleName(ReasoningStyle style) { return NameOf(kReasoningNames, style); }
std::vector<std::string> ToolStyleNames() { return Names(kToolNames); }
std::vector<std::string> ReasoningStyleNames() { return Names(kReasoningNames); }
absl::StatusOr<ToolStyle> ToolStyleFromName(std::string_view name) {
  return FromName(kToolNames, name);
}
absl::StatusOr<ReasoningStyle> ReasoningStyleFromName(std::string_view name) {
  return FromName(kReasoningNames, name);
}

const JsonForm* JsonFormOf(ToolStyle style) {
  static constexpr JsonForm kHermes = {"<tool_call>", "</tool_call>", "\n",
                                       "\n",          "\n",           "arguments"};
  static constexpr JsonForm kLlama = {"", "", "", "; ", "", "parameters"};
  static constexpr JsonForm kGranite = {"<|tool_call|>", "", "[", ", ", "]", "arguments"};
  static constexpr JsonForm kNemotron = {"<TOOLCALL>", "</TOOLCALL>", "[", ", ", "]", "arguments"};
  static constexpr JsonForm kJamba = {"<tool_calls>", "</tool_calls>", "[", ", ", "]", "arguments"};
  static constexpr JsonForm kMinimax = {"<tool_calls>", "</tool_calls>", "\n", "\n",
                                        "\n",           "arguments"};
  static constexpr JsonForm kMistral = {"[TOOL_CALLS]", "", "[", ", ", "]", "arguments"};
  switch (style) {
    case ToolStyle::kHermes:
      return &kHermes;
    case ToolStyle::kLlamaJson:
      return &kLlama;
    case ToolStyle::kGranite:
      return &kGranite;
    case ToolStyle::kNemotron:
      return &kNemotron;
    case ToolStyle::kJamba:
      return &kJamba;
    case ToolStyle::kMinimax:
      return &kMinimax;
    case ToolStyle::kMistral:
      return &kMistral;
    default:
      return nullptr;
  }
}

std::vector<std::string_view> TagsOf(AnswerStyle style) {
  std::vector<std::string_view> tags;
  if (style.reasoning == ReasoningStyle::kThink) tags = {kThinkOpen, kThinkClose};
  const auto add = [&tags](std::initializer_list<std::string_view> more) {
    tags.insert(tags.end(), more);
  };
  if (const JsonForm* form = JsonFormOf(style.tools)) {
    if (!form->begin.empty()) add({form->begin});
    if (!form->end.empty()) add({form->end});
  }
  switch (style.tools) {
    case ToolStyle::kLlamaJson:
      add({kPythonTag});
      break;
    case ToolStyle::kQwen3Coder:
      add({"<tool_call>", "</tool_call>"});
      break;
    case ToolStyle::kGlm:
      add({"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
           "</arg_value>"});
      break;
    case ToolStyle::kKimi:
      add({kKimiSectionBegin, kKimiSectionEnd, kKimiCallBegin, kKimiArgumentsBegin, kKimiCallEnd});
      break;
    default:
      break;
  }
  return tags;
}

}  // namespace weir::text
