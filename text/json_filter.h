// Checks a JSON object while its characters come, and mends what models get wrong inside strings.
// Private to this folder.
//
// What comes out, joined, is valid JSON once the object is complete, and before that the beginning
// of valid JSON. It is what came in but for strings: a control character is written as its escape,
// a backslash that begins no escape is doubled, half a surrogate pair becomes \ufffd.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weir::text {

class JsonFilter {
 public:
  enum class Result : uint8_t {
    kMore,
    kDone,  // this character completed the object
    kBad,   // with this character it is no JSON object; the filter is of no more use
  };

  // Appends to *out what is decided by c. At most 12 bytes are undecided at any time: those of an
  // escape.
  Result Push(char c, std::string* out);

  // Brackets that are open.
  size_t depth() const { return open_.size(); }

 private:
  enum class State : uint8_t {
    kObject,  // the first character: {
    kFirstKey,
    kKey,
    kColon,
    kValue,
    kFirstItem,  // a value, or the end of an array
    kAfterValue,
    kString,
    kEscape,
    kUnicode,
    kPairEscape,   // after a high surrogate: the backslash of the low one
    kPairU,        // its u
    kPairUnicode,  // its digits
    kNumber,
    kLiteral,
  };
  enum class Number : uint8_t { kMinus, kZero, kInteger, kPoint, kFraction, kE, kSign, kExponent };

  Result Structure(char c, std::string* out);
  Result BeginValue(char c, std::string* out);
  Result InNumber(char c, std::string* out);
  Result InString(char c, std::string* out);
  Result InEscape(char c, std::string* out);
  Result InUnicode(char c, std::string* out);
  Result InPair(char c, std::string* out);
  Result Close(char open, char c, std::string* out);
  Result Take(char c, State next, std::string* out);
  bool NumberGoesOn(char c);
  bool NumberMayEnd() const;

  State state_ = State::kObject;
  Number number_ = Number::kMinus;
  std::string open_;     // the brackets that are open
  bool key_ = false;     // the string is a key
  std::string digits_;   // of \uXXXX so far
  std::string high_;     // the digits of a high surrogate
  std::string literal_;  // what is left of true, false, null
};

// A JSON string of the text, with quotes. Bytes of 128 and more stay as they are.
std::string JsonString(std::string_view text);
// The same without quotes, appended.
void AppendJsonEscaped(std::string_view text, std::string* out);

}  // namespace weir::text
