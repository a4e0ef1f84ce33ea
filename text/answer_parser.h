// Takes an answer apart while it streams: reasoning, text, and calls of tools with their arguments
// as JSON.
//
// Every byte of the answer belongs to exactly one event, in order: the events' source_bytes add up
// to the answer. Of text and reasoning the event is those bytes, unchanged; of a call they are its
// notation; what is left is markup: tags, and the white space that touches a tag. So text and
// reasoning are the answer without its calls and tags, and nothing is lost:
//  * what begins like a call and cannot be one is text, tag and all;
//  * a call that breaks off inside its arguments (at the answer's end, or because what follows is
//  no
//    JSON) keeps the arguments as far as they came, and what follows is text;
//  * a call is told once its name and the beginning of its arguments are there.
//
// Whatever the pieces in which the answer is fed, the events joined (neighbours of one kind and
// call) are the same. Held back is only what can still become something else: white space and the
// beginning of a tag, the head of a call, an argument that is not a string.
//
// Arguments are streamed as they come. Once complete they are valid JSON, also where the model
// wrote control characters or wrong escapes into its strings (JsonFilter mends them).
//
// Reasoning is looked for at the answer's beginning only: <think> later on is text. Calls are
// looked for only where the request has tools, and not inside reasoning (except Kimi's, whose tags
// end it).
//
// Not thread-safe; one object per answer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/answer_style.h"
#include "text/call_reader.h"
#include "text/tools.h"

namespace weir::text {

struct AnswerEvent {
  enum class Kind : uint8_t {
    kText,
    kReasoning,
    kMarkup,     // nothing to show
    kCallStart,  // of call `call`, named `text`
    kArguments,  // `text` is a further piece of the arguments of `call`
  };
  Kind kind = Kind::kText;
  int32_t call = -1;  // of this answer, from 0; -1: no call
  std::string text;
  std::string id;           // kCallStart: the model's own name for the call; empty: none
  size_t source_bytes = 0;  // how much of the answer this is
};

class AnswerParser final : private CallSink {
 public:
  // `tools`: those that the prompt shows; empty or null: no calls are looked for. `in_reasoning`:
  // the prompt ends inside <think>.
  AnswerParser(AnswerStyle style, std::shared_ptr<const std::vector<Tool>> tools,
               bool in_reasoning);
  ~AnswerParser() override;

  // Appends the events that the next piece gives; `piece` in whole characters gives whole ones.
  void Feed(std::string_view piece, std::vector<AnswerEvent>* events);
  // The answer is complete; nothing may be fed after it.
  void Finish(std::vector<AnswerEvent>* events);

  int32_t calls() const { return calls_; }

  // Whether more of the answer's beginning may turn out to be reasoning.
  bool reasoning_open() const {
    const bool inside = state_ == State::kReasoning ||
                        (state_ == State::kCalls && !call_began_ && around_ == State::kReasoning);
    return inside || (at_start_ && thinks_);
  }
  // Of the answer's bytes, how many are known to be reasoning, tags included.
  int64_t reasoning_bytes() const { return reasoning_bytes_; }

 private:
  enum class State : uint8_t { kReasoning, kText, kCalls };

  // CallSink
  void Start(std::string name, std::string id, size_t unsettled) override;
  void Arguments(std::string_view piece) override;
  void Markup() override;

  void Run();
  void Scan(char c);
  void CallStep(char c);
  bool OnTag(std::string_view tag);
  void Content(size_t bytes);
  void EndCalls();
  void CallsFailed();
  void Emit(AnswerEvent::Kind kind, std::string_view text, size_t source_bytes);
  std::vector<std::string_view> TagsNow() const;
  void SetTags();
  std::string_view held() const { return std::string_view(buffer_).substr(begin_, next_ - begin_); }

  const AnswerStyle style_;
  const std::shared_ptr<const std::vector<Tool>> tools_;
  const bool thinks_;
  const bool calls_allowed_;

  State state_ = State::kText;
  State around_ = State::kText;         // in kCalls: where they were found
  bool at_start_ = true;                // nothing but white space so far
  bool after_tag_ = false;              // white space here belongs to the tag before it
  bool first_text_ = true;              // no text of the answer proper so far
  std::vector<std::string_view> tags_;  // looked for in this state
  int tags_key_ = -1;                   // what they depend on
  std::unique_ptr<CallReader> reader_;  // in kCalls
  bool call_began_ = false;             // in kCalls: a call has been told
  int32_t calls_ = 0;

  std::string buffer_;
  size_t begin_ = 0;   // what is before is settled
  size_t next_ = 0;    // what is before has been looked at
  size_t spaces_ = 0;  // white space at begin_, in kReasoning and kText
  int64_t settled_bytes_ = 0;
  int64_t reasoning_bytes_ = 0;
  std::vector<AnswerEvent>* events_ = nullptr;  // of the call that is running
};

}  // namespace weir::text
