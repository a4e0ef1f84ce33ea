// What all calls of a server share. Owned by Server; outlives every call.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "server/open_streams.h"
#include "server/request_validator.h"

namespace weir {
class AccessKeys;
class Clock;
}  // namespace weir
namespace weir::text {
class GrammarCompiler;
}
namespace weir::scheduler {
class Scheduler;
}

namespace weir::server {

class ServerMetrics;
class SpanExporter;
class WorkPool;
struct ServedModel;

struct ServiceContext {
  const ServedModel* model = nullptr;
  scheduler::Scheduler* scheduler = nullptr;
  const Clock* clock = nullptr;
  AccessKeys* keys = nullptr;  // null: everybody may call
  std::string own_secret;      // see caller.h; random
  ServerMetrics* metrics = nullptr;
  SpanExporter* spans = nullptr;      // null: no tracing
  WorkPool* text_pool = nullptr;      // templates and tokenizing; bounded
  WorkPool* delivery_pool = nullptr;  // tokens to events; one task per stream at most
  // Null: the model has no tokenizer.
  text::GrammarCompiler* grammars = nullptr;
  RequestLimits limits;
  int32_t stream_buffer_tokens = 1024;
  int64_t slow_reader_us = 10'000'000;
  int64_t max_deadline_us = 0;  // 0: none
  int64_t drain_us = 0;
  int64_t max_request_bytes = 0;
  int32_t max_queued_requests = 0;
  int64_t max_queued_tokens = 0;
  uint64_t seed = 0;  // request i without a seed of its own draws one from (seed, i)

  std::atomic<uint64_t> next_request_id{1};
  OpenStreams open_streams;
  std::atomic<bool> draining{false};
  std::atomic<int64_t> ready_us{0};  // on the clock; 0: not yet
};

}  // namespace weir::server
