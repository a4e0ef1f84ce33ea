#include "gateway/http_metrics.h"

#include "absl/strings/str_cat.h"
#include "metrics/registry.h"

namespace weir::gateway {
namespace {

std::string Name(Route route) {
  const std::string_view name = RouteName(route);
  return std::string(name);
}

}  // namespace

HttpMetrics::HttpMetrics(metrics::Registry* registry) : registry_(registry) {
  metrics::Histogram* others = registry->AddHistogram(
      "weir_http_request_seconds", "From the request's header to the end of its answer.",
      metrics::LatencyBuckets(), {{"path", "other"}});
  seconds_.fill(others);
  for (const Route route : {Route::kChat, Route::kCompletions}) {
    const size_t index = static_cast<size_t>(route);
    seconds_[index] = registry->AddHistogram("weir_http_request_seconds",
                                             "From the request's header to the end of its answer.",
                                             metrics::LatencyBuckets(), {{"path", Name(route)}});
    first_token_[index] =
        registry->AddHistogram("weir_http_time_to_first_token_seconds",
                               "From the request's header to the first token of its answer.",
                               metrics::LatencyBuckets(), {{"path", Name(route)}});
    RequestCounter(route, 200);
  }
  connections_ = registry->AddGauge("weir_http_connections", "HTTP connections that are open.");
  in_flight_ = registry->AddGauge("weir_http_requests_in_flight", "HTTP requests being answered.");
  const std::string help = "HTTP connections, taken and refused because there were too many.";
  opened_ = registry->AddCounter("weir_http_connections_total", help, {{"outcome", "taken"}});
  refused_ = registry->AddCounter("weir_http_connections_total", help, {{"outcome", "refused"}});
  received_bytes_ = registry->AddCounter("weir_http_received_bytes_total",
                                         "Bytes of HTTP requests, headers included.");
  sent_bytes_ = registry->AddCounter("weir_http_sent_bytes_total",
                                     "Bytes of HTTP answers, headers included.");
  retries_ = registry->AddCounter(
      "weir_http_retries_total",
      "Generations sent to another backend because the first one had not begun them.");
  dropped_lines_ = registry->AddCounter("weir_http_access_log_dropped_total",
                                        "Lines of the access log that were not written.");
}

metrics::Counter* HttpMetrics::RequestCounter(Route route, int status) {
  std::lock_guard<std::mutex> lock(mutex_);
  metrics::Counter*& counter = requests_[{route, status}];
  if (counter == nullptr) {
    counter = registry_->AddCounter("weir_http_requests_total", "HTTP requests, answered.",
                                    {{"path", Name(route)}, {"status", absl::StrCat(status)}});
  }
  return counter;
}

void HttpMetrics::ConnectionOpened() {
  opened_->Increment();
  connections_->Set(static_cast<double>(++num_connections_));
}

void HttpMetrics::ConnectionClosed() { connections_->Set(static_cast<double>(--num_connections_)); }

void HttpMetrics::ConnectionRefused() { refused_->Increment(); }

void HttpMetrics::RequestBegun() { in_flight_->Set(static_cast<double>(++num_in_flight_)); }

void HttpMetrics::RequestEnded(Route route, int status, double seconds, double first_token_s,
                               int64_t received_bytes, int64_t sent_bytes) {
  in_flight_->Set(static_cast<double>(--num_in_flight_));
  const size_t index = static_cast<size_t>(route);
  RequestCounter(route, status)->Increment();
  seconds_[index]->Observe(seconds);
  if (first_token_s >= 0 && first_token_[index] != nullptr) {
    first_token_[index]->Observe(first_token_s);
  }
  received_bytes_->Increment(static_cast<double>(received_bytes));
  sent_bytes_->Increment(static_cast<double>(sent_bytes));
}

metrics::Gauge* HttpMetrics::AddBackend(const std::string& address) {
  return registry_->AddGauge("weir_http_backend_healthy",
                             "1: the gateway may call this server; 0: it does not.",
                             {{"backend", address}});
}

void HttpMetrics::Retried() { retries_->Increment(); }
void HttpMetrics::LogLineDropped() { dropped_lines_->Increment(); }

}  // namespace weir::gateway
