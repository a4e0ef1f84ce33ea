// The server's own numbers. The scheduler's are in scheduler/.
#pragma once

#include <array>
#include <string>

#include "core/status.h"

namespace weir::metrics {
class Counter;
class Gauge;
class Histogram;
class Registry;
}  // namespace weir::metrics

namespace weir::server {

struct ServedModel;

enum class Method : unsigned char { kGenerate, kTokenize, kDetokenize, kGetModel, kGetServerInfo };
inline constexpr int kNumMethods = 5;

class ServerMetrics {
 public:
  // Registers everything; also what is constant for the life of the server (build, model, memory).
  ServerMetrics(const ServedModel& model, metrics::Registry* registry);

  // A call has ended. Any thread.
  void CallEnded(Method method, absl::StatusCode code);

  metrics::Gauge* open_streams = nullptr;
  metrics::Histogram* text_seconds = nullptr;                // one prompt: template and tokenizer
  metrics::Histogram* constraint_compile_seconds = nullptr;  // one that was not in the cache
  metrics::Counter* constraint_cache_hits = nullptr;
  metrics::Counter* constraint_cache_misses = nullptr;  // refused ones included
  metrics::Histogram* text_wait_seconds = nullptr;      // waiting for a text thread

 private:
  static constexpr int kNumCodes = 17;  // of gRPC
  // Null: a code that the method cannot give; counted as UNKNOWN.
  std::array<std::array<metrics::Counter*, kNumCodes>, kNumMethods> calls_{};
};

}  // namespace weir::server
