// One choice's answer, taken apart for the client: weir.v1.OutputOptions.parse_answer.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/answer_parser.h"
#include "text/answer_style.h"
#include "text/tools.h"
#include "weir/v1/generate.pb.h"

namespace weir::text {
class Tokenizer;
}

namespace weir::server {

// How the answers of a request are taken apart.
struct AnswerConfig {
  text::AnswerStyle style;
  std::shared_ptr<const std::vector<text::Tool>> tools;  // that the prompt shows; null: none
  bool in_reasoning = false;                             // the prompt ends inside reasoning
  uint64_t id_seed = 0;                                  // of the ids of calls
};

// The special tokens that must stay in the text for the parser to see them.
std::vector<int32_t> KeptTokens(const AnswerConfig& config, const text::Tokenizer& tokenizer);

// What an answer grew by.
struct AnswerParts {
  std::string text, reasoning;
  std::vector<v1::ToolCallDelta> calls;

  bool empty() const { return text.empty() && reasoning.empty() && calls.empty(); }
  // Adds to what the delta says already.
  void AppendTo(v1::Delta* delta) &&;
};

class AnswerStream {
 public:
  AnswerStream(const AnswerConfig& config, int32_t choice);

  // A token of the answer, and how long the text is that it makes; before Feed of that text (which
  // may come later: stop strings hold it back).
  void OnToken(size_t text_bytes);
  AnswerParts Feed(std::string_view text);
  AnswerParts Finish();

  int32_t tool_calls() const { return parser_.calls(); }
  // The tokens whose text is, as a whole or in part, reasoning or its tags. After Finish.
  int32_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  AnswerParts Take();
  std::string CallId(int32_t call) const;

  const uint64_t id_seed_;
  const int32_t choice_;
  text::AnswerParser parser_;
  std::vector<text::AnswerEvent> events_;
  int64_t text_bytes_ = 0;            // of all tokens
  std::deque<int64_t> token_begins_;  // where the text begins of those not yet told apart
  int32_t reasoning_tokens_ = 0;
};

}  // namespace weir::server
