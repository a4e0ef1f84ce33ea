#include "server/answer_stream.h"

#include <optional>
#include <utility>

#include "core/philox.h"
#include "text/tokenizer.h"

namespace weir::server {

std::vector<int32_t> KeptTokens(const AnswerConfig& config, const text::Tokenizer& tokenizer) {
  text::AnswerStyle style = config.style;
  if (config.tools == nullptr || config.tools->empty()) style.tools = text::ToolStyle::kNone;
  std::vector<int32_t> kept;
  for (const std::string_view tag : text::TagsOf(style)) {
    const std::optional<int32_t> id = tokenizer.TokenId(tag);
    if (id && tokenizer.IsSpecial(*id)) kept.push_back(*id);
  }
  return kept;
}

void AnswerParts::AppendTo(v1::Delta* delta) && {
  if (!text.empty()) delta->mutable_text()->append(text);
  if (!reasoning.empty()) delta->mutable_reasoning()->append(reasoning);
  for (v1::ToolCallDelta& call : calls) {
    const int last = delta->tool_calls_size() - 1;
    if (last >= 0 && delta->tool_calls(last).index() == call.index()) {
      delta->mutable_tool_calls(last)->mutable_arguments()->append(call.arguments());
    } else {
      *delta->add_tool_calls() = std::move(call);
    }
  }
}

AnswerStream::AnswerStream(const AnswerConfig& config, int32_t choice)
    : id_seed_(config.id_seed),
      choice_(choice),
      parser_(config.style, config.tools, config.in_reasoning) {}

void AnswerStream::OnToken(size_t text_bytes) {
  if (parser_.reasoning_open()) token_begins_.push_back(text_bytes_);
  text_bytes_ += static_cast<int64_t>(text_bytes);
}

AnswerParts AnswerStream::Feed(std::string_view text) {
  parser_.Feed(text, &events_);
  return Take();
}

AnswerParts AnswerStream::Finish() {
  parser_.Finish(&events_);
  AnswerParts parts = Take();
  token_begins_.clear();
  return parts;
}

AnswerParts AnswerStream::Take() {
  while (!token_begins_.empty() && token_begins_.front() < parser_.reasoning_bytes()) {
    token_begins_.pop_front();
    ++reasoning_tokens_;
  }
  if (!parser_.reasoning_open()) token_begins_.clear();
  AnswerParts parts;
  for (text::AnswerEvent& event : events_) {
    switch (event.kind) {
      case text::AnswerEvent::Kind::kText:
        parts.text += event.text;
        break;
      case text::AnswerEvent::Kind::kReasoning:
        parts.reasoning += event.text;
        break;
      case text::AnswerEvent::Kind::kMarkup:
        break;
      case text::AnswerEvent::Kind::kCallStart: {
        v1::ToolCallDelta& call = parts.calls.emplace_back();
        call.set_index(event.call);
        call.set_id(event.id.empty() ? CallId(event.call) : std::move(event.id));
        call.set_name(std::move(event.text));
        break;
      }
      case text::AnswerEvent::Kind::kArguments:
        if (parts.calls.empty() || parts.calls.back().index() != event.call) {
          parts.calls.emplace_back().set_index(event.call);
        }
        parts.calls.back().mutable_arguments()->append(event.text);
        break;
    }
  }
  events_.clear();
  return parts;
}

// 120 random bits: two answers never share an id, whichever server gave them.
std::string AnswerStream::CallId(int32_t call) const {
  constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz234567";
  const uint64_t counter =
      uint64_t{static_cast<uint32_t>(choice_)} << 32 | static_cast<uint32_t>(call);
  std::string id = "call_";
  for (const uint32_t bits : Philox(id_seed_, counter)) {
    for (int i = 0; i < 6; ++i) id += kLetters[bits >> (5 * i) & 31];
  }
  return id;
}

}  // namespace weir::server
