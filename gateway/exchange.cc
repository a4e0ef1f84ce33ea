#include "gateway/exchange.h"

#include <ctime>

#include "absl/strings/str_cat.h"

namespace weir::gateway {
namespace {

std::string_view Reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Error";
  }
}

// "Tue, 15 Nov 1994 08:12:31 GMT", formatted once a second.
std::string_view Date() {
  thread_local std::time_t formatted = 0;
  thread_local char text[40];
  const std::time_t now = std::time(nullptr);
  if (now != formatted) {
    std::tm utc{};
    gmtime_r(&now, &utc);
    std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc);
    formatted = now;
  }
  return text;
}

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

std::string MakeHead(const Exchange& exchange, const Response& response, int64_t body_bytes,
                     std::string_view cors) {
  const bool http11 = exchange.request == nullptr || exchange.request->http11;
  std::string head =
      absl::StrCat("HTTP/1.1 ", response.status, " ", View(Reason(response.status)),
                   "\r\nDate: ", View(Date()), "\r\nx-request-id: ", exchange.id, "\r\n");
  if (!response.content_type.empty()) {
    absl::StrAppend(&head, "Content-Type: ", View(response.content_type), "\r\n");
  }
  if (body_bytes >= 0) {
    absl::StrAppend(&head, "Content-Length: ", body_bytes, "\r\n");
  } else if (http11) {
    head += "Transfer-Encoding: chunked\r\n";
  }
  if (exchange.close) {
    head += "Connection: close\r\n";
  } else if (!http11) {
    head += "Connection: keep-alive\r\n";
  }
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&head, View(name), ": ", value, "\r\n");
  }
  if (!cors.empty()) {
    absl::StrAppend(&head, "Access-Control-Allow-Origin: ", View(cors),
                    "\r\nAccess-Control-Expose-Headers: x-request-id, retry-after\r\n"
                    "Vary: Origin\r\n");
  }
  head += "\r\n";
  return head;
}

}  // namespace weir::gateway
