// The HTTP door's own numbers. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "gateway/router.h"

namespace weir::metrics {
class Counter;
class Gauge;
class Histogram;
class Registry;
}  // namespace weir::metrics

namespace weir::gateway {

class HttpMetrics {
 public:
  explicit HttpMetrics(metrics::Registry* registry);

  // A connection was opened or closed; and one that was refused because there are too many.
  void ConnectionOpened();
  void ConnectionClosed();
  void ConnectionRefused();

  void RequestBegun();
  // `first_token_s` < 0: the answer has no tokens.
  void RequestEnded(Route route, int status, double seconds, double first_token_s,
                    int64_t received_bytes, int64_t sent_bytes);

  // Whether a backend takes calls: 1 or 0. At the start, once for each.
  metrics::Gauge* AddBackend(const std::string& address);
  void Retried();         // a generation was sent to another backend
  void LogLineDropped();  // the access log could not keep up

  int64_t connections() const { return num_connections_.load(std::memory_order_relaxed); }
  int64_t in_flight() const { return num_in_flight_.load(std::memory_order_relaxed); }

 private:
  metrics::Counter* RequestCounter(Route route, int status);

  metrics::Registry* const registry_;
  std::mutex mutex_;
  std::map<std::pair<Route, int>, metrics::Counter*> requests_;  // guarded by mutex_
  std::array<metrics::Histogram*, kNumRoutes> seconds_{};
  std::array<metrics::Histogram*, kNumRoutes> first_token_{};  // null: no generation
  metrics::Gauge* connections_;
  metrics::Gauge* in_flight_;
  metrics::Counter* opened_;
  metrics::Counter* refused_;
  metrics::Counter* received_bytes_;
  metrics::Counter* sent_bytes_;
  metrics::Counter* retries_;
  metrics::Counter* dropped_lines_;
  std::atomic<int64_t> num_connections_{0}, num_in_flight_{0};
};

}  // namespace weir::gateway
