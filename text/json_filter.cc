#include "text/json_filter.h"

#include <string_view>

namespace weir::text {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHex(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// Of four hexadecimal digits: the first half of a pair (D800 to DBFF), the second (DC00 to DFFF).
bool IsSurrogate(const std::string& digits, bool high) {
  if (digits[0] != 'd' && digits[0] != 'D') return false;
  const char c = static_cast<char>(digits[1] | 0x20);  // lower case; digits stay
  return high ? c == '8' || c == '9' || c == 'a' || c == 'b'
              : c == 'c' || c == 'd' || c == 'e' || c == 'f';
}

void AppendEscaped(char c, std::string* out) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '\n':
      *out += "\\n";
      break;
    case '\t':
      *out += "\\t";
      break;
    case '\r':
      *out += "\\r";
      break;
    default:
      *out += "\\u00";
      *out += kHex[static_cast<unsigned char>(c) >> 4];
      *out += kHex[c & 15];
  }
}

}  // namespace

JsonFilter::Result JsonFilter::Take(char c, State next, std::string* out) {
  *out += c;
  state_ = next;
  return Result::kMore;
}

JsonFilter::Result JsonFilter::Push(char c, std::string* out) {
  switch (state_) {
    case State::kString:
      return InString(c, out);
    case State::kEscape:
      return InEscape(c, out);
    case State::kUnicode:
      return InUnicode(c, out);
    case State::kPairEscape:
    case State::kPairU:
    case State::kPairUnicode:
      return InPair(c, out);
    case State::kNumber:
      return InNumber(c, out);
    case State::kLiteral:
      if (c != literal_[0]) return Result::kBad;
      literal_.erase(0, 1);
      return Take(c, literal_.empty() ? State::kAfterValue : State::kLiteral, out);
    default:
      return Structure(c, out);
  }
}

JsonFilter::Result JsonFilter::Structure(char c, std::string* out) {
  if (IsSpace(c) && state_ != State::kObject) return Take(c, state_, out);
  switch (state_) {
    case State::kObject:
      if (c != '{') return Result::kBad;
      open_ += c;
      return Take(c, State::kFirstKey, out);
    case State::kFirstKey:
      if (c == '}') return Close('{', c, out);
      [[fallthrough]];
    case State::kKey:
      if (c != '"') return Result::kBad;
      key_ = true;
      return Take(c, State::kString, out);
    case State::kColon:
      return c == ':' ? Take(c, State::kValue, out) : Result::kBad;
    case State::kFirstItem:
      if (c == ']') return Close('[', c, out);
      [[fallthrough]];
    case State::kValue:
      return BeginValue(c, out);
    default:  // kAfterValue
      if (c == ',') return Take(c, open_.back() == '{' ? State::kKey : State::kValue, out);
      if (c == '}') return Close('{', c, out);
      if (c == ']') return Close('[', c, out);
      return Result::kBad;
  }
}

JsonFilter::Result JsonFilter::Close(char open, char c, std::string* out) {
  if (open_.back() != open) return Result::kBad;
  open_.pop_back();
  Take(c, State::kAfterValue, out);
  return open_.empty() ? Result::kDone : Result::kMore;
}

JsonFilter::Result JsonFilter::BeginValue(char c, std::string* out) {
  switch (c) {
    case '{':
      open_ += c;
      return Take(c, State::kFirstKey, out);
    case '[':
      open_ += c;
      return Take(c, State::kFirstItem, out);
    case '"':
      key_ = false;
      return Take(c, State::kString, out);
    case 't':
      literal_ = "rue";
      return Take(c, State::kLiteral, out);
    case 'f':
      literal_ = "alse";
      return Take(c, State::kLiteral, out);
    case 'n':
      literal_ = "ull";
      return Take(c, State::kLiteral, out);
    default:
      if (c != '-' && !IsDigit(c)) return Result::kBad;
      number_ = c == '-' ? Number::kMinus : c == '0' ? Number::kZero : Number::kInteger;
      return Take(c, State::kNumber, out);
  }
}

bool JsonFilter::NumberGoesOn(char c) {
  const bool digit = IsDigit(c);
  const bool e = c == 'e' || c == 'E';
  switch (number_) {
    case Number::kMinus:
      if (digit) number_ = c == '0' ? Number::kZero : Number::kInteger;
      return digit;
    case Number::kInteger:
      if (digit) return true;
      [[fallthrough]];
    case Number::kZero:
      if (c == '.') number_ = Number::kPoint;
      if (e) number_ = Number::kE;
      return c == '.' || e;
    case Number::kPoint:
      if (digit) number_ = Number::kFraction;
      return digit;
    case Number::kFraction:
      if (e) number_ = Number::kE;
      return digit || e;
    case Number::kE:
      if (digit) number_ = Number::kExponent;
      if (c == '+' || c == '-') number_ = Number::kSign;
      return digit || c == '+' || c == '-';
    case Number::kSign:
      if (digit) number_ = Number::kExponent;
      return digit;
    case Number::kExponent:
      return digit;
  }
  return false;
}

bool JsonFilter::NumberMayEnd() const {
  return number_ == Number::kZero || number_ == Number::kInteger || number_ == Number::kFraction ||
         number_ == Number::kExponent;
}

JsonFilter::Result JsonFilter::InNumber(char c, std::string* out) {
  if (NumberGoesOn(c)) return Take(c, State::kNumber, out);
  if (!NumberMayEnd()) return Result::kBad;
  state_ = State::kAfterValue;
  return Structure(c, out);
}

JsonFilter::Result JsonFilter::InString(char c, std::string* out) {
  if (c == '"') return Take(c, key_ ? State::kColon : State::kAfterValue, out);
  if (c == '\\') {
    state_ = State::kEscape;
  } else if (static_cast<unsigned char>(c) < 0x20) {
    AppendEscaped(c, out);
  } else {
    *out += c;
  }
  return Result::kMore;
}

JsonFilter::Result JsonFilter::InEscape(char c, std::string* out) {
  if (c == 'u') {
    digits_.clear();
    state_ = State::kUnicode;
    return Result::kMore;
  }
  state_ = State::kString;
  if (std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos) {
    *out += '\\';
    *out += c;
    return Result::kMore;
  }
  *out += "\\\\";
  return InString(c, out);
}

JsonFilter::Result JsonFilter::InUnicode(char c, std::string* out) {
  if (!IsHex(c)) {
    *out += "\\\\u" + digits_;
    state_ = State::kString;
    return InString(c, out);
  }
  digits_ += c;
  if (digits_.size() < 4) return Result::kMore;
  if (IsSurrogate(digits_, /*high=*/true)) {
    high_ = digits_;
    state_ = State::kPairEscape;
    return Result::kMore;
  }
  *out += IsSurrogate(digits_, /*high=*/false) ? "\\ufffd" : "\\u" + digits_;
  state_ = State::kString;
  return Result::kMore;
}

// Between the halves of a surrogate pair.
JsonFilter::Result JsonFilter::InPair(char c, std::string* out) {
  if (state_ == State::kPairEscape) {
    if (c == '\\') {
      state_ = State::kPairU;
      return Result::kMore;
    }
    *out += "\\ufffd";
    state_ = State::kString;
    return InString(c, out);
  }
  if (state_ == State::kPairU) {
    if (c == 'u') {
      digits_.clear();
      state_ = State::kPairUnicode;
      return Result::kMore;
    }
    *out += "\\ufffd";
    state_ = State::kEscape;
    return InEscape(c, out);
  }
  if (IsHex(c) && digits_.size() < 3) {
    digits_ += c;
    return Result::kMore;
  }
  if (IsHex(c) && IsSurrogate(digits_ + c, /*high=*/false)) {
    *out += "\\u" + high_ + "\\u" + digits_ + c;
    state_ = State::kString;
    return Result::kMore;
  }
  *out += "\\ufffd";  // for the first half; what follows stands for itself
  state_ = State::kUnicode;
  return InUnicode(c, out);
}

void AppendJsonEscaped(std::string_view text, std::string* out) {
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      AppendEscaped(c, out);
    } else {
      *out += c;
    }
  }
}

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  AppendJsonEscaped(text, &out);
  return out + '"';
}

}  // namespace weir::text
