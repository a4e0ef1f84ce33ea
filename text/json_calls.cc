// Calls that are JSON objects: {"name": ..., "arguments": {...}} in the tags of some style; and
// Kimi's, whose arguments alone are JSON.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "text/call_reader.h"
#include "text/json_filter.h"

namespace weir::text {
namespace {

using Json = nlohmann::json;

// The arguments of one call on their way to the sink.
class ArgumentStream {
 public:
  explicit ArgumentStream(CallSink* sink) : sink_(sink) {}

  JsonFilter::Result Push(char c) {
    out_.clear();
    const JsonFilter::Result result = filter_.Push(c, &out_);
    if (result != JsonFilter::Result::kBad && !out_.empty()) sink_->Arguments(out_);
    return result;
  }
  void Reset() { filter_ = JsonFilter(); }

 private:
  CallSink* const sink_;
  JsonFilter filter_;
  std::string out_;
};

class JsonCallReader final : public CallReader {
 public:
  JsonCallReader(const JsonForm& form, const std::vector<Tool>* known, CallSink* sink)
      : known_(known), sink_(sink), end_({form.end}), has_end_(!form.end.empty()), args_(sink) {}

  Step Push(char c) override {
    switch (state_) {
      case State::kOpen:
        return Open(c);
      case State::kArguments:
        return Arguments(c);
      case State::kTail:
      case State::kBetween:
      case State::kAfterList:
        return Behind(c);
      case State::kEnd:
        return End(c);
      default:
        return Head(c);
    }
  }

  bool Finish(std::string_view unsettled) override {
    if (called_ && state_ != State::kArguments) return true;
    switch (state_) {
      case State::kArguments:  // in the middle of an escape
        if (!unsettled.empty()) sink_->Arguments(unsettled);
        return true;
      case State::kTail:
      case State::kBetween:
      case State::kAfterList:
      case State::kEnd:
        return true;
      default:
        return false;
    }
  }

 private:
  enum class State : uint8_t {
    kOpen,  // before the first object
    kFirstKey,
    kKey,
    kKeyText,
    kColon,
    kValue,
    kText,       // a string value
    kWord,       // a number, true, false or null
    kEarly,      // arguments in front of the name
    kNextOrEnd,  // behind a value of the head
    kArguments,
    kTail,       // behind the arguments, inside the object
    kBetween,    // behind an object
    kAfterList,  // behind ]
    kEnd,        // inside the closing tag
  };

  Step Open(char c) {
    if (IsSpace(c)) return Step::kMore;
    if (c == '[' && !list_) {
      list_ = true;
      return Step::kMore;
    }
    return BeginObject(c);
  }

  Step BeginObject(char c) {
    if (c != '{') return Step::kFail;
    name_.reset();
    early_.clear();
    has_early_ = called_ = false;
    state_ = State::kFirstKey;
    return Step::kMore;
  }

  // The object up to its arguments.
  Step Head(char c) {
    switch (state_) {
      case State::kFirstKey:
      case State::kKey:
        if (IsSpace(c)) return Step::kMore;
        if (c != '"') return Step::kFail;
        raw_.clear();
        return Go(State::kKeyText);
      case State::kKeyText:
        if (c == '"') return Go(State::kColon);
        raw_ += c;
        return raw_.size() > kMaxKey || c == '\\' ? Step::kFail : Step::kMore;
      case State::kColon:
        if (IsSpace(c)) return Step::kMore;
        if (c != ':') return Step::kFail;
        key_ = raw_;
        return Go(State::kValue);
      case State::kValue:
        return IsSpace(c) ? Step::kMore : Value(c);
      case State::kText:
        return Text(c);
      case State::kWord:
        if (c == ',' || c == '}' || IsSpace(c)) return EndWord(c);
        raw_ += c;
        return raw_.size() > kMaxKey ? Step::kFail : Step::kMore;
      case State::kEarly:
        return Early(c);
      default:  // kNextOrEnd
        return NextOrEnd(c);
    }
  }

  Step Go(State next) {
    state_ = next;
    return Step::kMore;
  }

  bool IsArgumentsKey() const { return key_ == "arguments" || key_ == "parameters"; }

  Step Value(char c) {
    raw_.clear();
    if (called_ && (IsArgumentsKey() || key_ == "name")) return Step::kFail;
    if (IsArgumentsKey()) {
      if (has_early_) return Step::kFail;
      if (c == '{' && name_) {
        sink_->Start(*name_, "", 0);
        called_ = true;
        args_.Reset();
        state_ = State::kArguments;
        return Arguments(c);
      }
      if (c == '{') {
        early_filter_ = JsonFilter();
        state_ = State::kEarly;
        return Early(c);
      }
      if (c == '"') return BeginText();
      if (c != 'n') return Step::kFail;
    } else if (key_ == "name") {
      return c == '"' && !name_ ? BeginText() : Step::kFail;
    } else if (key_ != "type" && key_ != "id" && key_ != "index") {
      return Step::kFail;
    } else if (c == '"') {
      return BeginText();
    }
    raw_ += c;
    return Go(State::kWord);
  }

  Step BeginText() {
    raw_ = "\"";
    escaped_ = false;
    return Go(State::kText);
  }

  Step Text(char c) {
    raw_ += c;
    if (escaped_ || c != '"') {
      escaped_ = !escaped_ && c == '\\';
      return raw_.size() > kMaxCallName && !IsArgumentsKey() ? Step::kFail : Step::kMore;
    }
    if (key_ == "name") {
      const Json name = Json::parse(raw_, nullptr, /*allow_exceptions=*/false);
      if (!name.is_string()) return Step::kFail;
      name_ = name.get<std::string>();
      if (name_->empty() || (known_ != nullptr && FindTool(*known_, *name_) == nullptr)) {
        return Step::kFail;
      }
    } else if (IsArgumentsKey()) {
      // Some models write the object as a string of JSON.
      const Json text = Json::parse(raw_, nullptr, /*allow_exceptions=*/false);
      if (!text.is_string() || !IsObject(text.get_ref<const std::string&>())) return Step::kFail;
    }
    return EndValue();
  }

  // Whether the text is an object and nothing else; then it waits as early arguments.
  bool IsObject(const std::string& text) {
    JsonFilter filter;
    early_.clear();
    JsonFilter::Result result = JsonFilter::Result::kMore;
    for (const char c : text) {
      if (result == JsonFilter::Result::kDone) {
        if (!IsSpace(c)) return false;
        continue;
      }
      if (early_.empty() && IsSpace(c)) continue;
      result = filter.Push(c, &early_);
      if (result == JsonFilter::Result::kBad) return false;
    }
    has_early_ = result == JsonFilter::Result::kDone;
    return has_early_;
  }

  Step EndWord(char c) {
    const bool any = Json::accept(raw_);
    if (!any || (IsArgumentsKey() && raw_ != "null")) return Step::kFail;
    state_ = State::kNextOrEnd;
    return NextOrEnd(c);
  }

  Step Early(char c) {
    const JsonFilter::Result result = early_filter_.Push(c, &early_);
    if (result == JsonFilter::Result::kBad) return Step::kFail;
    if (result == JsonFilter::Result::kMore) return Step::kMore;
    has_early_ = true;
    return EndValue();
  }

  // Behind a string, or arguments that came early.
  Step EndValue() {
    state_ = State::kNextOrEnd;
    if (called_ || !name_ || !has_early_) return Step::kMore;
    sink_->Start(*name_, "", 0);
    sink_->Arguments(early_);
    called_ = true;
    return Go(State::kTail);
  }

  Step NextOrEnd(char c) {
    if (called_) {
      state_ = State::kTail;
      return Behind(c);
    }
    if (IsSpace(c)) return Step::kMore;
    if (c == ',') return Go(State::kKey);
    if (c != '}' || !name_) return Step::kFail;
    sink_->Start(*name_, "", 0);
    sink_->Arguments("{}");
    return Go(State::kBetween);
  }

  Step Arguments(char c) {
    const JsonFilter::Result result = args_.Push(c);
    if (result == JsonFilter::Result::kBad) return Step::kFail;
    if (result == JsonFilter::Result::kDone) state_ = State::kTail;
    return Step::kMore;
  }

  // What stands between the arguments and the next call or the closing tag. A brace too few or too
  // many is let pass.
  Step Behind(char c) {
    if (has_end_ && c == '<') {
      end_.Reset();
      state_ = State::kEnd;
      return End(c);
    }
    if (IsSpace(c)) return Step::kMore;
    if (state_ == State::kTail) {
      if (c == ',') return Go(State::kKey);  // an id or the like
      if (c != '}') return Step::kFail;
      sink_->Markup();
      return Go(State::kBetween);
    }
    if (state_ == State::kAfterList) return Step::kFail;
    if (c == ']' && list_) {
      sink_->Markup();
      if (!has_end_) return Step::kDone;
      return Go(State::kAfterList);
    }
    if (c == ',' || c == ';' || (c == '}' && has_end_)) return Step::kMore;
    return BeginObject(c);
  }

  Step End(char c) {
    switch (end_.Push(c)) {
      case LiteralMatcher::Step::kMore:
        return Step::kMore;
      case LiteralMatcher::Step::kMatch:
        sink_->Markup();
        return Step::kDone;
      default:
        return Step::kFail;
    }
  }

  static constexpr size_t kMaxKey = 64;

  const std::vector<Tool>* const known_;  // null: any name will do
  CallSink* const sink_;
  LiteralMatcher end_;
  const bool has_end_;
  ArgumentStream args_;
  State state_ = State::kOpen;
  bool list_ = false;
  std::string raw_;  // the key or the value so far
  bool escaped_ = false;
  std::string key_;
  std::optional<std::string> name_;
  JsonFilter early_filter_;
  std::string early_;  // arguments that came before the name, or as a string
  bool has_early_ = false;
  bool called_ = false;  // this object's call has been told
};

class KimiCallReader final : public CallReader {
 public:
  explicit KimiCallReader(CallSink* sink)
      : sink_(sink), tag_({kKimiCallBegin, kKimiSectionEnd}), end_({kKimiCallEnd}), args_(sink) {}

  Step Push(char c) override {
    switch (state_) {
      case State::kBetween:
        if (tag_.seen().empty() && IsSpace(c)) return Step::kMore;
        return Between(c);
      case State::kId:
        return Id(c);
      case State::kBefore:
        if (IsSpace(c)) return Step::kMore;
        if (c != '{') return Step::kFail;
        sink_->Start(name_, id_, 0);
        args_.Reset();
        state_ = State::kArguments;
        [[fallthrough]];
      case State::kArguments: {
        const JsonFilter::Result result = args_.Push(c);
        if (result == JsonFilter::Result::kBad) return Step::kFail;
        if (result == JsonFilter::Result::kDone) state_ = State::kAfter;
        return Step::kMore;
      }
      case State::kAfter:
        if (end_.seen().empty() && IsSpace(c)) return Step::kMore;
        return After(c);
    }
    return Step::kFail;
  }

  bool Finish(std::string_view unsettled) override {
    if (state_ == State::kArguments && !unsettled.empty()) sink_->Arguments(unsettled);
    return state_ == State::kArguments || state_ == State::kAfter ||
           (state_ == State::kBetween && started_);
  }

 private:
  enum class State : uint8_t { kBetween, kId, kBefore, kArguments, kAfter };

  Step Between(char c) {
    switch (tag_.Push(c)) {
      case LiteralMatcher::Step::kMore:
        return Step::kMore;
      case LiteralMatcher::Step::kFail:
        return Step::kFail;
      case LiteralMatcher::Step::kMatch:
        break;
    }
    if (tag_.seen() == kKimiSectionEnd) {
      sink_->Markup();
      return Step::kDone;
    }
    id_.clear();
    state_ = State::kId;
    return Step::kMore;
  }

  // "functions.NAME:3", up to the tag in front of the arguments.
  Step Id(char c) {
    id_ += c;
    if (id_.size() > kMaxCallName + kKimiArgumentsBegin.size()) return Step::kFail;
    if (id_.size() < kKimiArgumentsBegin.size() ||
        id_.compare(id_.size() - kKimiArgumentsBegin.size(), std::string::npos,
                    kKimiArgumentsBegin) != 0) {
      return Step::kMore;
    }
    id_.resize(id_.size() - kKimiArgumentsBegin.size());
    while (!id_.empty() && IsSpace(id_.back())) id_.pop_back();
    id_.erase(0, std::min(id_.find_first_not_of(" \n\t\r"), id_.size()));
    name_ = id_.rfind("functions.", 0) == 0 ? id_.substr(10) : id_;
    const size_t colon = name_.rfind(':');
    if (colon != std::string::npos) name_.resize(colon);
    if (name_.empty()) return Step::kFail;
    state_ = State::kBefore;
    return Step::kMore;
  }

  Step After(char c) {
    switch (end_.Push(c)) {
      case LiteralMatcher::Step::kMore:
        return Step::kMore;
      case LiteralMatcher::Step::kFail:
        return Step::kFail;
      case LiteralMatcher::Step::kMatch:
        break;
    }
    sink_->Markup();
    started_ = true;
    tag_.Reset();
    end_.Reset();
    state_ = State::kBetween;
    return Step::kMore;
  }

  CallSink* const sink_;
  LiteralMatcher tag_, end_;
  ArgumentStream args_;
  State state_ = State::kBetween;
  bool started_ = false;  // a call is complete
  std::string id_, name_;
};

}  // namespace

std::unique_ptr<CallReader> MakeJsonCallReader(const JsonForm& form, const std::vector<Tool>* known,
                                               CallSink* sink) {
  return std::make_unique<JsonCallReader>(form, known, sink);
}

std::unique_ptr<CallReader> MakeKimiCallReader(CallSink* sink) {
  return std::make_unique<KimiCallReader>(sink);
}

}  // namespace weir::text
