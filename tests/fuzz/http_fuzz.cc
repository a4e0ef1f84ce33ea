// libFuzzer target for what a client's bytes reach first: the HTTP parser and, behind it, the JSON
// of every POST. Built and run by `make fuzz`.
//
// The first byte says into how many pieces the rest is cut: a parser must not see where a packet
// ends.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <variant>

#include "gateway/openai/call.h"
#include "gateway/request_id.h"
#include "gateway/request_parser.h"
#include "gateway/router.h"

namespace {

using namespace weir::gateway;  // the target is all about it

void Check(bool holds) {
  if (!holds) std::abort();
}

const ModelFacts& Facts() {
  static const ModelFacts facts = [] {
    ModelFacts made;
    made.id = "m";
    made.model.set_name("m");
    made.model.set_vocab_size(1000);
    made.model.set_max_position(4096);
    made.model.set_has_tokenizer(true);
    made.model.set_chat_template("t");
    made.limits.set_max_choices(16);
    made.limits.set_max_logprobs(20);
    made.limits.set_max_stop_strings(16);
    made.limits.set_max_logit_bias(1024);
    made.limits.set_max_position(4096);
    return made;
  }();
  return facts;
}

// A refusal is an error for the client, never a fault of the server.
template <typename Parsed>
void CheckRefusal(const std::variant<Parsed, ApiError>& parsed) {
  const auto* error = std::get_if<ApiError>(&parsed);
  if (error == nullptr) return;
  Check(error->status >= 400 && error->status < 500);
  Check(!ErrorBody(*error).empty());
}

void ParseBody(Route route, std::string_view body) {
  switch (route) {
    case Route::kChat:
      return CheckRefusal(ParseChatCompletion(body, Facts()));
    case Route::kCompletions:
      return CheckRefusal(ParseCompletion(body, Facts()));
    case Route::kTokenize:
      return CheckRefusal(ParseTokenize(body, Facts()));
    case Route::kDetokenize:
      return CheckRefusal(ParseDetokenize(body, Facts()));
    default:
      return;
  }
}

// Every whole request in the bytes, as the parser told it. What is refused is not part of it: when
// an unfinished header is refused may depend on the packets.
std::string Read(std::string_view input, size_t piece) {
  constexpr RequestParser::Limits kLimits{.header_bytes = 2048, .body_bytes = 8192};
  std::string told, waiting;
  size_t given = 0;
  while (true) {  // one request after the other
    RequestParser parser(kLimits);
    while (parser.state() != RequestParser::State::kDone &&
           parser.state() != RequestParser::State::kFailed) {
      const size_t taken = parser.Put(waiting);
      Check(taken <= waiting.size());
      waiting.erase(0, taken);
      if (taken > 0) continue;
      if (parser.state() == RequestParser::State::kDone ||
          parser.state() == RequestParser::State::kFailed) {
        break;
      }
      if (given == input.size()) return told;
      const size_t more = std::min(piece, input.size() - given);
      waiting.append(input.substr(given, more));
      given += more;
    }
    if (parser.state() == RequestParser::State::kFailed) {
      Check(parser.status() >= 400 && parser.status() <= 505 && !parser.error().empty());
      return told;
    }
    const Request& request = parser.request();
    Check(request.body.size() <= kLimits.body_bytes);
    Check(request.target.size() <= kLimits.header_bytes);
    const Route route = FindRoute(request.path());
    if (IsAllowed(route, request.method)) ParseBody(route, request.body);
    IsRequestId(request.request_id);
    told += request.method + " " + request.target + " " + request.authorization + " " +
            request.body + (request.keep_alive ? "\n" : "!\n");
    if (!request.keep_alive) return told;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t piece = data[0] % 64 + 1;
  Check(Read(input, input.size() + 1) == Read(input, piece));
  return 0;
}
