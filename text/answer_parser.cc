#include "text/answer_parser.h"

#include <algorithm>
#include <utility>

namespace weir::text {

using Kind = AnswerEvent::Kind;

std::vector<std::string_view> CallTags(ToolStyle style) {
  if (const JsonForm* form = JsonFormOf(style)) {
    if (form->begin.empty()) return {};
    return {form->begin};
  }
  switch (style) {
    case ToolStyle::kQwen3Coder:
      return {"<tool_call>", "<function="};  // the first is often forgotten
    case ToolStyle::kGlm:
      return {"<tool_call>"};
    case ToolStyle::kKimi:
      return {kKimiSectionBegin};
    default:
      return {};
  }
}

std::unique_ptr<CallReader> MakeCallReader(ToolStyle style, std::string_view tag,
                                           const std::vector<Tool>& tools, CallSink* sink) {
  // JSON without a tag may be the answer itself, so its name must be a tool's.
  if (const JsonForm* form = JsonFormOf(style)) {
    return MakeJsonCallReader(*form, style == ToolStyle::kLlamaJson ? &tools : nullptr, sink);
  }
  if (style == ToolStyle::kKimi) return MakeKimiCallReader(sink);
  return MakeXmlCallReader(style, /*bare=*/tag == "<function=", tools, sink);
}

AnswerParser::AnswerParser(AnswerStyle style, std::shared_ptr<const std::vector<Tool>> tools,
                           bool in_reasoning)
    : style_(style),
      tools_(std::move(tools)),
      thinks_(style.reasoning == ReasoningStyle::kThink),
      calls_allowed_(style.tools != ToolStyle::kNone && tools_ != nullptr && !tools_->empty()) {
  if (in_reasoning && thinks_) {
    state_ = State::kReasoning;
    after_tag_ = true;
  }
  SetTags();
}

AnswerParser::~AnswerParser() = default;

std::vector<std::string_view> AnswerParser::TagsNow() const {
  std::vector<std::string_view> tags;
  if (state_ == State::kReasoning) {
    tags = {kThinkClose};
    // A second one is of no meaning.
    if (at_start_) tags.push_back(kThinkOpen);
    if (calls_allowed_ && style_.tools == ToolStyle::kKimi) tags.push_back(kKimiSectionBegin);
    return tags;
  }
  if (thinks_ && at_start_) tags.push_back(kThinkOpen);
  if (!calls_allowed_) return tags;
  for (const std::string_view tag : CallTags(style_.tools)) tags.push_back(tag);
  if (style_.tools == ToolStyle::kLlamaJson && first_text_) {
    tags.insert(tags.end(), {kPythonTag, "{", "["});
  }
  return tags;
}

void AnswerParser::SetTags() {
  const int key = static_cast<int>(state_) * 4 + (at_start_ ? 2 : 0) + (first_text_ ? 1 : 0);
  if (std::exchange(tags_key_, key) != key) tags_ = TagsNow();
}

void AnswerParser::Emit(Kind kind, std::string_view text, size_t source_bytes) {
  settled_bytes_ += static_cast<int64_t>(source_bytes);
  const int32_t call = kind == Kind::kCallStart || kind == Kind::kArguments ? calls_ - 1 : -1;
  if (!events_->empty() && kind != Kind::kCallStart) {
    AnswerEvent& last = events_->back();
    if (last.kind == kind && last.call == call) {
      last.text += text;
      last.source_bytes += source_bytes;
      return;
    }
  }
  events_->push_back({kind, call, std::string(text), "", source_bytes});
}

void AnswerParser::Feed(std::string_view piece, std::vector<AnswerEvent>* events) {
  events_ = events;
  buffer_.erase(0, begin_);
  next_ -= begin_;
  begin_ = 0;
  buffer_ += piece;
  Run();
  events_ = nullptr;
}

void AnswerParser::Run() {
  while (next_ < buffer_.size()) {
    const char c = buffer_[next_++];
    if (state_ == State::kCalls) {
      CallStep(c);
    } else {
      Scan(c);
    }
  }
}

// Text or reasoning. Held are white space and behind it the beginning of a tag.
void AnswerParser::Scan(char c) {
  const size_t length = next_ - begin_;
  if (length == spaces_ + 1 && IsSpace(c)) {
    ++spaces_;
    return;
  }
  const std::string_view rest = held().substr(spaces_);
  bool may = false;
  for (const std::string_view tag : tags_) {
    if (tag == rest && OnTag(tag)) return;
    may = may || (tag.size() > rest.size() && tag.substr(0, rest.size()) == rest);
  }
  if (may) return;
  const size_t end = begin_ + spaces_ + 1;
  Content(spaces_ + 1);
  next_ = end;  // the rest may hold the beginning of a tag
}

// Gives out the first bytes of what is held: white space and one more.
void AnswerParser::Content(size_t bytes) {
  const std::string_view all = held().substr(0, bytes);
  const size_t dropped = after_tag_ ? std::min(spaces_, bytes) : 0;
  if (dropped > 0) Emit(Kind::kMarkup, "", dropped);
  const bool reasoning = state_ == State::kReasoning;
  Emit(reasoning ? Kind::kReasoning : Kind::kText, all.substr(dropped), bytes - dropped);
  begin_ += bytes;
  spaces_ = 0;
  if (reasoning) reasoning_bytes_ = settled_bytes_;
  after_tag_ = at_start_ = false;
  if (!reasoning) first_text_ = false;
  SetTags();
}

// What is held is white space and this tag.
bool AnswerParser::OnTag(std::string_view tag) {
  if (tag == kThinkOpen || tag == kThinkClose) {
    Emit(Kind::kMarkup, "", next_ - begin_);
    reasoning_bytes_ = settled_bytes_;
    begin_ = next_;
    spaces_ = 0;
    state_ = tag == kThinkOpen ? State::kReasoning : State::kText;
    after_tag_ = true;
    at_start_ = false;
    SetTags();
    return true;
  }
  around_ = state_;
  state_ = State::kCalls;
  call_began_ = at_start_ = false;
  const bool bare = tag == "{" || tag == "[";
  reader_ = MakeCallReader(style_.tools, tag, *tools_, this);
  if (bare) CallStep(tag[0]);
  return true;
}

void AnswerParser::CallStep(char c) {
  switch (reader_->Push(c)) {
    case CallReader::Step::kMore:
      return;
    case CallReader::Step::kDone:
      if (begin_ < next_) Markup();
      return EndCalls();
    case CallReader::Step::kFail:
      return CallsFailed();
  }
}

void AnswerParser::EndCalls() {
  reader_.reset();
  state_ = State::kText;
  after_tag_ = true;
  at_start_ = first_text_ = false;
  spaces_ = 0;
  SetTags();
}

// What is held is no call. It is looked at again as text, but for a tag that began nothing: that
// is text.
void AnswerParser::CallsFailed() {
  if (call_began_) {
    EndCalls();
    next_ = begin_;
    return;
  }
  reader_.reset();
  state_ = around_;
  spaces_ = 0;
  while (IsSpace(buffer_[begin_ + spaces_])) ++spaces_;
  const size_t end = begin_ + spaces_ + 1;
  Content(spaces_ + 1);
  next_ = end;
}

void AnswerParser::Start(std::string name, std::string id, size_t unsettled) {
  ++calls_;
  call_began_ = true;
  const size_t settled = next_ - begin_ - unsettled;
  Emit(Kind::kCallStart, name, settled);
  events_->back().id = std::move(id);
  begin_ += settled;
}

void AnswerParser::Arguments(std::string_view piece) {
  Emit(Kind::kArguments, piece, next_ - begin_);
  begin_ = next_;
}

void AnswerParser::Markup() {
  Emit(Kind::kMarkup, "", next_ - begin_);
  begin_ = next_;
}

void AnswerParser::Finish(std::vector<AnswerEvent>* events) {
  events_ = events;
  while (begin_ < buffer_.size()) {
    if (state_ == State::kCalls) {
      if (reader_->Finish(held())) {
        if (begin_ < next_) Markup();
        break;
      }
      CallsFailed();
      Run();  // may begin other calls
      continue;
    }
    if (spaces_ == next_ - begin_ && after_tag_) {
      Markup();
      break;
    }
    // The beginning of a tag that never came.
    Content(next_ - begin_);
    break;
  }
  events_ = nullptr;
}

}  // namespace weir::text
