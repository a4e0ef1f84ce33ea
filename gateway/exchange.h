// One request and its answer, as they pass through the door.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gateway/request.h"
#include "gateway/router.h"

namespace weir::gateway {

// What bodies of all requests together hold of Options::max_bodies_bytes. Any thread.
class BodyBudget {
 public:
  explicit BodyBudget(std::atomic<int64_t>* used) : used_(used) {}
  ~BodyBudget() { Hold(0); }
  BodyBudget(const BodyBudget&) = delete;
  BodyBudget& operator=(const BodyBudget&) = delete;

  // From now on `bytes` in all are held; returns what everybody holds together.
  int64_t Hold(int64_t bytes) {
    const int64_t more = bytes - held_;
    held_ = bytes;
    return used_->fetch_add(more, std::memory_order_relaxed) + more;
  }

 private:
  std::atomic<int64_t>* const used_;
  int64_t held_ = 0;
};

struct Response {
  int status = 200;
  std::string_view content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string_view, std::string>> headers;  // further ones
};

struct Exchange {
  using Clock = std::chrono::steady_clock;

  explicit Exchange(std::atomic<int64_t>* body_bytes) : budget(body_bytes) {}

  Request* request = nullptr;
  Route route = Route::kUnknown;
  std::string id;   // x-request-id: the client's, or ours
  std::string key;  // of the API key; empty: none
  Clock::time_point begin;
  BodyBudget budget;

  bool close = false;  // the connection ends with this answer
  bool whole = true;   // the request was read to its end

  // For the log.
  int status = 0;
  int64_t received_bytes = 0, sent_bytes = 0;
  double first_token_s = -1;
  int64_t prompt_tokens = -1, completion_tokens = -1;

  double Seconds() const { return std::chrono::duration<double>(Clock::now() - begin).count(); }
};

// The head of an answer, empty line included. `body_bytes` < 0: chunked, or for HTTP/1.0 until the
// connection ends. `cors`: what Access-Control-Allow-Origin says; empty: nothing.
std::string MakeHead(const Exchange& exchange, const Response& response, int64_t body_bytes,
                     std::string_view cors);

}  // namespace weir::gateway
