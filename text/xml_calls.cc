// Calls whose arguments stand in tags of their own, as plain text. They become JSON: what the
// tool's schema calls a string is one, everything else is read as JSON.
#include <optional>
#include <string>
#include <utility>

#include "text/call_reader.h"
#include "text/json_filter.h"

namespace weir::text {
namespace {

struct XmlForm {
  std::string_view function;   // in front of a name; empty: the name is first
  char name_end;               // behind the name
  std::string_view parameter;  // in front of a key
  std::string_view key_end;    // behind it
  std::string_view
      value_begin;             // between key and value, white space allowed in front; may be empty
  std::string_view value_end;  // behind the value
  std::string_view function_end;  // behind the last value; empty: nothing
  bool value_lines;               // a line break in front of and behind a value is none of it
};

constexpr XmlForm kQwen3Coder = {"<function=",   '>',           "<parameter=", ">", "",
                                 "</parameter>", "</function>", true};
constexpr XmlForm kGlm = {"", '\n', "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
                          "", false};
constexpr std::string_view kRegionEnd = "</tool_call>";

// The text, mended, as one JSON value or (not `whole`) as the beginning of one.
std::optional<std::string> MendValue(std::string_view text, bool whole) {
  constexpr std::string_view kHead = "{\"\":";
  JsonFilter filter;
  std::string out;
  for (const char c : kHead) filter.Push(c, &out);
  for (const char c : text) {
    const bool next_member = c == ',' && filter.depth() == 1;
    if (next_member || filter.Push(c, &out) != JsonFilter::Result::kMore) return std::nullopt;
  }
  if (whole && filter.Push('}', &out) != JsonFilter::Result::kDone) return std::nullopt;
  return out.substr(kHead.size(), out.size() - kHead.size() - (whole ? 1 : 0));
}

// A text as the JSON that it stands for, where it may be of these kinds.
std::string ValueAsJson(std::string_view text, uint8_t kinds) {
  size_t begin = 0;
  size_t end = text.size();
  while (begin < end && IsSpace(text[begin])) ++begin;
  while (end > begin && IsSpace(text[end - 1])) --end;
  std::string inner(text.substr(begin, end - begin));
  if (inner == "True") inner = "true";  // as templates print what is no string
  if (inner == "False") inner = "false";
  if (inner == "None") inner = "null";
  if (inner.empty()) return JsonString(text);
  uint8_t kind = kJsonNumber;
  if (inner[0] == '"') kind = kJsonString;
  if (inner[0] == '{') kind = kJsonObject;
  if (inner[0] == '[') kind = kJsonArray;
  if (inner == "true" || inner == "false") kind = kJsonBoolean;
  if (inner == "null") kind = kJsonNull;
  const bool may_be_text = (kinds & kJsonString) != 0;
  const bool wanted = may_be_text ? kind != kJsonString && (kinds & kind) != 0 : true;
  std::optional<std::string> value;
  if (wanted) value = MendValue(inner, /*whole=*/true);
  return value ? *std::move(value) : JsonString(text);
}

class XmlCallReader final : public CallReader {
 public:
  XmlCallReader(const XmlForm& form, bool bare, const std::vector<Tool>& tools, CallSink* sink)
      : form_(form),
        bare_(bare),
        tools_(tools),
        sink_(sink),
        state_(bare || form.function.empty() ? State::kName : State::kOpen) {}

  Step Push(char c) override {
    switch (state_) {
      case State::kOpen:
        return Expect(c, {form_.function, kRegionEnd}, /*spaces=*/true);
      case State::kName:
        return Name(c);
      case State::kBody:
        return Expect(c, {form_.parameter, form_.function_end, kRegionEnd}, /*spaces=*/true);
      case State::kKey:
        return Key(c);
      case State::kValueBegin:
        return Expect(c, {form_.value_begin}, /*spaces=*/true);
      case State::kValue:
        return Value(c);
    }
    return Step::kFail;
  }

  bool Finish(std::string_view) override {
    if (state_ == State::kValue) {  // what there is of it
      const std::string_view whole = held_;
      const std::string_view text = whole.substr(0, whole.size() - UndecidedEnd());
      std::optional<std::string> value;
      if ((kinds_ & kJsonString) == 0) value = MendValue(text, /*whole=*/false);
      if (streams_) {
        AppendText(text);
      } else if (value) {
        sink_->Arguments(KeyPrefix() + *value);
      } else {
        std::string out = KeyPrefix() + "\"";
        AppendJsonEscaped(text, &out);
        sink_->Arguments(out);
      }
      return true;
    }
    return started_ && state_ != State::kName;
  }

 private:
  enum class State : uint8_t { kOpen, kName, kBody, kKey, kValueBegin, kValue };

  // One of the tags, perhaps behind white space.
  Step Expect(char c, std::initializer_list<std::string_view> tags, bool spaces) {
    if (held_.empty() && spaces && IsSpace(c)) return Step::kMore;
    held_ += c;
    bool may = false;
    for (const std::string_view tag : tags) {
      if (tag.empty()) continue;
      if (tag == held_) {
        held_.clear();
        return Found(tag);
      }
      may = may || tag.substr(0, held_.size()) == held_;
    }
    return may ? Step::kMore : Step::kFail;
  }

  Step Found(std::string_view tag) {
    if (tag == kRegionEnd) {  // also where the function's own end was forgotten
      if (!started_) return Step::kFail;
      if (state_ == State::kBody) EndFunction();
      sink_->Markup();
      return Step::kDone;
    }
    if (tag == form_.function_end) {
      EndFunction();
      if (bare_) return Step::kDone;
      state_ = State::kOpen;
    } else if (tag == form_.function) {
      state_ = State::kName;
    } else if (tag == form_.parameter) {
      state_ = State::kKey;
    } else {  // value_begin
      BeginValue();
    }
    return Step::kMore;
  }

  Step Name(char c) {
    const bool glm = form_.function.empty();
    if (c != form_.name_end && !(glm && c == '<')) {
      held_ += c;
      const bool bad = c == '<' || c == '\n' || held_.size() > kMaxCallName;
      return bad ? Step::kFail : Step::kMore;
    }
    if (held_.empty()) return Step::kFail;
    tool_ = FindTool(tools_, held_);
    // Where little stands around a name it must be one that the request has.
    if (tool_ == nullptr && (glm || bare_)) return Step::kFail;
    const bool next_tag = c == '<';
    sink_->Start(std::exchange(held_, {}), "", next_tag ? 1 : 0);
    Begin();
    return next_tag ? Push(c) : Step::kMore;
  }

  void Begin() {
    started_ = true;
    any_ = false;
    state_ = State::kBody;
  }

  void EndFunction() { sink_->Arguments(any_ ? "}" : "{}"); }

  Step Key(char c) {
    held_ += c;
    const std::string_view end = form_.key_end;
    if (held_.size() > kMaxCallName + end.size() || (c == '\n' && end.size() == 1)) {
      return Step::kFail;
    }
    if (held_.size() <= end.size() ||
        std::string_view(held_).substr(held_.size() - end.size()) != end) {
      return Step::kMore;
    }
    held_.resize(held_.size() - end.size());
    key_ = std::exchange(held_, {});
    if (!form_.value_begin.empty()) {
      state_ = State::kValueBegin;
    } else {
      BeginValue();
    }
    return Step::kMore;
  }

  std::string KeyPrefix() {
    std::string out = any_ ? ", " : "{";
    any_ = true;
    return out + JsonString(key_) + ": ";
  }

  void BeginValue() {
    state_ = State::kValue;
    first_ = true;
    kinds_ = tool_ != nullptr ? tool_->KindsOf(key_) : kJsonAny;
    streams_ = kinds_ == kJsonString;
    if (streams_) sink_->Arguments(KeyPrefix() + "\"");
  }

  void AppendText(std::string_view text) {
    std::string out;
    AppendJsonEscaped(text, &out);
    sink_->Arguments(out);
  }

  // How much of held_'s end may be the beginning of the value's end.
  size_t UndecidedEnd() const {
    const std::string_view held = held_;
    for (size_t n = std::min(held.size(), form_.value_end.size()); n > 0; --n) {
      if (held.substr(held.size() - n) == form_.value_end.substr(0, n)) {
        return n + LineBreakAt(held.size() - n);
      }
    }
    return LineBreakAt(held.size());
  }
  size_t LineBreakAt(size_t end) const {
    return form_.value_lines && end > 0 && held_[end - 1] == '\n' ? 1 : 0;
  }

  Step Value(char c) {
    if (std::exchange(first_, false) && form_.value_lines && c == '\n') return Step::kMore;
    held_ += c;
    const size_t end = form_.value_end.size();
    const bool ends = held_.size() >= end && c == form_.value_end.back() &&
                      std::string_view(held_).substr(held_.size() - end) == form_.value_end;
    if (!ends) {
      if (!streams_) return Step::kMore;
      const size_t decided = held_.size() - UndecidedEnd();
      if (decided > 0) AppendText(std::string_view(held_).substr(0, decided));
      held_.erase(0, decided);
      return Step::kMore;
    }
    held_.resize(held_.size() - end);
    if (LineBreakAt(held_.size()) != 0) held_.pop_back();
    if (streams_) {
      std::string out;
      AppendJsonEscaped(held_, &out);
      sink_->Arguments(out + "\"");
    } else {
      sink_->Arguments(KeyPrefix() + ValueAsJson(held_, kinds_));
    }
    held_.clear();
    state_ = State::kBody;
    return Step::kMore;
  }

  const XmlForm& form_;
  const bool bare_;  // <function=...> without <tool_call>
  const std::vector<Tool>& tools_;
  CallSink* const sink_;
  State state_;
  std::string held_;  // of a tag, a name, a key or a value
  bool started_ = false;
  const Tool* tool_ = nullptr;  // null: not of this request
  bool any_ = false;            // the call has an argument
  std::string key_;
  uint8_t kinds_ = 0;
  bool streams_ = false;  // the value is given out as it comes
  bool first_ = false;    // of the value
};

}  // namespace

std::unique_ptr<CallReader> MakeXmlCallReader(ToolStyle style, bool bare,
                                              const std::vector<Tool>& tools, CallSink* sink) {
  return std::make_unique<XmlCallReader>(style == ToolStyle::kGlm ? kGlm : kQwen3Coder, bare, tools,
                                         sink);
}

}  // namespace weir::text
