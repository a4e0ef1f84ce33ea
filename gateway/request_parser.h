// RequestParser: bytes of a connection -> one Request, within limits. Refuses what is not HTTP/1.0
// or 1.1, and whatever two parsers could read in two ways: a repeated or contradicting length,
// another transfer encoding than `chunked`. Keeps only the header fields that are read, so a flood
// of fields takes no memory. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "gateway/request.h"

namespace weir::gateway {

class RequestParser {
 public:
  struct Limits {
    size_t header_bytes = 0;  // request line and fields
    uint64_t body_bytes = 0;
  };
  enum class State : unsigned char {
    kHeader,  // the header is not complete
    kBody,    // the header is there, the body is not
    kDone,
    kFailed,  // see status() and error(); takes nothing more
  };

  explicit RequestParser(const Limits& limits);
  ~RequestParser();

  // Takes bytes from the front of `input` and returns how many; the rest belongs into the next
  // call, together with what follows it. Stops behind the header, and behind the request.
  size_t Put(std::string_view input);

  State state() const;
  bool started() const;  // has taken or seen any byte
  // Of kFailed: 400, 413, 431, 501 or 505, and a sentence.
  int status() const;
  const std::string& error() const;
  // Complete but for the body in kBody, whole in kDone.
  Request& request();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir::gateway
