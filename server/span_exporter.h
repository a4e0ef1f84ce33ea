// SpanExporter: one OpenTelemetry span for every Generate call, to a collector over OTLP/gRPC.
//
// A call hands its facts over and goes on. A thread of the exporter's own makes spans of them and
// sends them in batches; what waits is bounded, and when the collector is slow or gone spans are
// dropped and counted, never waited for.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/status.h"

namespace weir {
class Clock;
}
namespace weir::metrics {
class Registry;
}

namespace weir::server {

// W3C trace context of the caller: https://www.w3.org/TR/trace-context/.
struct TraceParent {
  std::array<uint8_t, 16> trace_id{};
  std::array<uint8_t, 8> span_id{};
  bool sampled = false;
};
// False, and `out` untouched: not of the form 00-TRACE-SPAN-FLAGS, or ids of zeros.
bool ParseTraceParent(std::string_view header, TraceParent* out);

// Times in microseconds of the clock; 0: did not happen.
struct CallFacts {
  std::string traceparent, tracestate;  // headers of the call; empty: none
  std::string request_id;
  bool chat = false;
  int64_t received_us = 0, started_us = 0, first_token_us = 0, finished_us = 0;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  int32_t choices = 1;
  absl::Status status;  // as the client was told
};

class SpanExporter {
 public:
  // `endpoint`: "http://HOST:4317", "https://HOST:4317" (TLS with the system's authorities) or
  // HOST:PORT. `model` is the served name. `clock` and `registry` outlive it. INVALID_ARGUMENT: no
  // such form.
  static absl::StatusOr<std::unique_ptr<SpanExporter>> Start(const std::string& endpoint,
                                                             const std::string& model,
                                                             const Clock* clock,
                                                             metrics::Registry* registry);
  // Sends what waits, for at most two seconds.
  ~SpanExporter();

  // Returns at once. Nothing is sent of a call whose caller does not sample its trace.
  void Add(CallFacts facts);

 private:
  struct Impl;
  explicit SpanExporter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// INVALID_ARGUMENT: as Start.
absl::Status CheckOtlpEndpoint(const std::string& endpoint);

}  // namespace weir::server
