// One HTTP request as the handlers see it.
#pragma once

#include <cstdint>
#include <string>

namespace weir::gateway {

struct Request {
  std::string method;  // "GET"; as it was sent
  std::string target;  // "/v1/models?limit=1"
  bool http11 = true;
  bool keep_alive = true;
  bool expects_continue = false;

  // Header fields that somebody reads; absent ones are empty.
  std::string host, authorization, request_id, traceparent, tracestate, origin, if_none_match;
  std::string accept_encoding, preflight_method, preflight_headers;

  std::string body;

  // `target` without its query.
  std::string_view path() const {
    const std::string_view whole(target);
    return whole.substr(0, whole.find('?'));
  }
};

}  // namespace weir::gateway
