// Reads calls of tools, character by character, from where their opening tag has been seen. One
// class per form; AnswerParser feeds them. Private to this folder.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/answer_style.h"
#include "text/tools.h"

namespace weir::text {

// Where a reader tells what it has recognised. Each call also means: every character pushed so far
// is settled and will not be given out as text.
class CallSink {
 public:
  virtual ~CallSink() = default;
  // `id`: the model's own name for the call; empty: none. The last `unsettled` characters pushed
  // may still turn out to be text.
  virtual void Start(std::string name, std::string id, size_t unsettled) = 0;
  virtual void Arguments(std::string_view piece) = 0;
  virtual void Markup() = 0;
};

class CallReader {
 public:
  enum class Step : uint8_t {
    kMore,
    kDone,  // the character was the last of the calls
    kFail,  // the character and what is not settled are no part of a call
  };

  virtual ~CallReader() = default;
  virtual Step Push(char c) = 0;
  // The answer ends here. True: what is not settled belongs to a call (the reader has told the sink
  // what there was to tell); false: it is text.
  virtual bool Finish(std::string_view unsettled) = 0;
};

// `tools`: those of the request; they and `sink` outlive the reader. `tag`: what began the calls;
// empty: the first character pushed does.
std::unique_ptr<CallReader> MakeCallReader(ToolStyle style, std::string_view tag,
                                           const std::vector<Tool>& tools, CallSink* sink);

// Tags that begin calls in this style, wherever they stand in an answer.
std::vector<std::string_view> CallTags(ToolStyle style);

// One of several literals, none the beginning of another.
class LiteralMatcher {
 public:
  enum class Step : uint8_t { kMore, kMatch, kFail };
  explicit LiteralMatcher(std::vector<std::string_view> literals)
      : literals_(std::move(literals)) {}

  Step Push(char c) {
    seen_ += c;
    for (const std::string_view literal : literals_) {
      if (literal == seen_) return Step::kMatch;
    }
    for (const std::string_view literal : literals_) {
      if (literal.substr(0, seen_.size()) == seen_) return Step::kMore;
    }
    return Step::kFail;
  }
  void Reset() { seen_.clear(); }
  const std::string& seen() const { return seen_; }

 private:
  std::vector<std::string_view> literals_;
  std::string seen_;
};

inline bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// Names that are longer are none.
inline constexpr size_t kMaxCallName = 256;

// The forms, for MakeCallReader.
std::unique_ptr<CallReader> MakeJsonCallReader(const JsonForm& form, const std::vector<Tool>* known,
                                               CallSink* sink);
std::unique_ptr<CallReader> MakeKimiCallReader(CallSink* sink);
std::unique_ptr<CallReader> MakeXmlCallReader(ToolStyle style, bool bare,
                                              const std::vector<Tool>& tools, CallSink* sink);

}  // namespace weir::text
