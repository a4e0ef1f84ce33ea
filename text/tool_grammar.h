// The grammar of an answer that must be calls of tools, in the form in which a model writes them.
//
// Lark, in llguidance's dialect: %json inlines a JSON schema, <[7]> is the token 7. A tag that is a
// special token of the tokenizer is written as that token (such a grammar takes texts only from
// tokens that are not special); any other tag as text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "text/answer_style.h"
#include "text/tools.h"

namespace weir::text {

class Tokenizer;

struct ToolGrammarOptions {
  AnswerStyle style;
  ReasoningStart reasoning = ReasoningStart::kNone;
  bool parallel = true;  // more than one call may come
};

// The grammar, with rule `start`, of reasoning as the options say and then one or more calls of
// any of `tools` (to force one tool, give that one alone), each with arguments that fit its
// schema. Arguments come in the order of the schema's properties.
// INVALID_ARGUMENT, with the reason: no tools; the style has no calls; a schema that the style
// cannot be held to (XML styles: arguments that are more than properties of an object). Whether
// the schemas compile is for the compiler to say. `tokenizer` may be null: no special tokens.
absl::StatusOr<std::string> ToolCallGrammar(const std::vector<Tool>& tools,
                                            const ToolGrammarOptions& options,
                                            const Tokenizer* tokenizer);

// The grammar, with rule `start`, of reasoning and then `body`, a reference such as "@answer" to
// what the answer must be. With kNone `body` alone.
std::string ReasoningThen(std::string_view body, ReasoningStart reasoning,
                          const Tokenizer* tokenizer);

}  // namespace weir::text
