// How a model writes what is not plain text in its answers: calls of tools, and reasoning.
//
// A style is a property of the model's training; its chat template shows it, since it writes the
// calls of earlier turns in the same form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace weir::text {

class Tokenizer;

enum class ToolStyle : uint8_t {
  kNone,        // calls are not told from text
  kHermes,      // <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>, one pair a call
  kQwen3Coder,  // <tool_call>\n<function=NAME>\n<parameter=KEY>\nvalue\n</parameter>\n</function>...
  kLlamaJson,   // the whole answer is {"name": ..., "parameters": {...}}, several joined by "; ";
                // <|python_tag|> may stand in front
  kGranite,     // <|tool_call|>[{...}, ...]
  kNemotron,    // <TOOLCALL>[{...}, ...]</TOOLCALL>
  kJamba,       // <tool_calls>[{...}, ...]</tool_calls>
  kMinimax,     // <tool_calls>\n{...}\n{...}\n</tool_calls>
  kMistral,     // [TOOL_CALLS][{...}, ...]
  kKimi,        // <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0
                // <|tool_call_argument_begin|>{...}<|tool_call_end|>...<|tool_calls_section_end|>
  kGlm,  // <tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>value</arg_value>\n</tool_call>
};

enum class ReasoningStyle : uint8_t {
  kNone,   // all is the answer
  kThink,  // <think>...</think> before the answer; the prompt may already have opened it
};

// How an answer begins, as the rendered prompt's end decides.
enum class ReasoningStart : uint8_t {
  kNone,     // no reasoning comes: the model has none, or the prompt closed it already
  kMayOpen,  // the model may begin with <think>
  kOpen,     // the prompt ends inside <think>
};

struct AnswerStyle {
  ReasoningStyle reasoning = ReasoningStyle::kNone;
  ToolStyle tools = ToolStyle::kNone;
};

// What the template's source says, and where that is silent (but takes tools) what the tokenizer's
// added tokens say; `tokenizer` may be null.
AnswerStyle DetectAnswerStyle(std::string_view template_source, const Tokenizer* tokenizer);

// `continued_bytes`: the prompt's end of about that length is the beginning of the answer itself,
// which the model goes on with; 0: it begins a new one.
ReasoningStart ReasoningStartOf(ReasoningStyle style, std::string_view prompt,
                                size_t continued_bytes);

// "hermes", "think", ...; "none".
std::string_view ToolStyleName(ToolStyle style);
std::string_view ReasoningStyleName(ReasoningStyle style);
// The names, "none" first: what may be set.
std::vector<std::string> ToolStyleNames();
std::vector<std::string> ReasoningStyleNames();
// INVALID_ARGUMENT: no such name.
absl::StatusOr<ToolStyle> ToolStyleFromName(std::string_view name);
absl::StatusOr<ReasoningStyle> ReasoningStyleFromName(std::string_view name);

// The styles whose calls are JSON objects with a name and arguments.
struct JsonForm {
  std::string_view begin;          // in front of the calls; empty: the answer begins with them
  std::string_view end;            // behind them; empty: nothing
  std::string_view open;           // how templates write it: between begin and the first call,
  std::string_view separator;      // between two calls (kHermes: between end and begin),
  std::string_view close;          // and between the last call and end
  std::string_view arguments_key;  // "arguments" or "parameters"
};
// Null for the others.
const JsonForm* JsonFormOf(ToolStyle style);

inline constexpr std::string_view kThinkOpen = "<think>";
inline constexpr std::string_view kThinkClose = "</think>";
inline constexpr std::string_view kPythonTag = "<|python_tag|>";
inline constexpr std::string_view kKimiSectionBegin = "<|tool_calls_section_begin|>";
inline constexpr std::string_view kKimiSectionEnd = "<|tool_calls_section_end|>";
inline constexpr std::string_view kKimiCallBegin = "<|tool_call_begin|>";
inline constexpr std::string_view kKimiArgumentsBegin = "<|tool_call_argument_begin|>";
inline constexpr std::string_view kKimiCallEnd = "<|tool_call_end|>";

// Every tag of a style. Where one is a special token, its text must stay in what is parsed even if
// special tokens are left out of texts.
std::vector<std::string_view> TagsOf(AnswerStyle style);

}  // namespace weir::text
