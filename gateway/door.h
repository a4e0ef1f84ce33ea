// What every connection of the HTTP door shares.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/options.h"

namespace weir::metrics {
class Registry;
}

namespace weir::gateway {

class AccessLog;
class Authorizer;
class Backends;
class HttpMetrics;

// A count that can be waited for. Any thread.
class WaitableCount {
 public:
  void Add(int64_t more) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      count_ += more;
    }
    if (more < 0) changed_.notify_all();
  }
  // False: it was not 0 within `us`.
  bool WaitZero(int64_t us) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::microseconds(us), [this] { return count_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t count_ = 0;
};

struct Door {
  Options options;
  HttpMetrics* metrics = nullptr;
  AccessLog* access_log = nullptr;
  Backends* backends = nullptr;
  Authorizer* authorizer = nullptr;  // null: everybody may
  metrics::Registry* registry = nullptr;
  bool own_server = false;           // the backend is this process
  std::vector<std::string> origins;  // options.cors, parted

  std::atomic<bool> draining{false};
  WaitableCount in_flight;             // requests being answered
  std::atomic<int64_t> body_bytes{0};  // in memory, all requests
  // For what takes longer than a connection's thread may be held up.
  boost::asio::thread_pool workers{2};

  // What Access-Control-Allow-Origin says to a request from `origin`; empty: it is not said.
  std::string_view CorsFor(const std::string& origin) const {
    if (origin.empty()) return {};
    for (const std::string& allowed : origins) {
      if (allowed == "*" || allowed == origin) return allowed;
    }
    return {};
  }
};

}  // namespace weir::gateway
