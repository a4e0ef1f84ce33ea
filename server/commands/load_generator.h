// Keeps a server busy over gRPC and measures what its clients see.
//
// Few threads carry all streams: each polls a completion queue of its own, and a stream belongs to
// one of them, so that measuring hundreds of streams takes little from a server on the same
// machine.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/status.h"
#include "server/commands/client_channel.h"

namespace weir::server {

class Workload;

struct LoadFlags {
  std::string address;
  ClientFlags client;
  // Closed loop: this many clients, each sends its next request when the last one has ended. 0:
  // open loop.
  int clients = 0;
  // Open loop: requests per second, with exponentially distributed gaps; 0 with a trace: as
  // recorded, divided by trace_speed.
  double rate = 0;
  bool replay = false;
  double trace_speed = 1;
  uint64_t seed = 1;

  int64_t requests = 0;  // ends after this many; 0: no such end
  double seconds = 0;    // ends after this long, running calls are cancelled; 0: no such end
  double warmup_s = 0;   // at the start, not measured
  double timeout_s = 0;  // deadline of a call; 0: none
  int connections = 4;   // streams share connections
  int threads = 2;
  int max_in_flight = 4096;  // open loop: arrivals past it are counted and not sent
};

// Times in milliseconds; every one a sample.
struct LoadSamples {
  // From sending (open loop: from when the request was due) to the first token.
  std::vector<float> first_token_ms;
  // Between a message and the one before it, divided by its tokens; once per token.
  std::vector<float> inter_token_ms;
  // The same gaps undivided: how long a stream stood still.
  std::vector<float> message_gap_ms;
  // Of a whole answer: (last - first token) / (tokens - 1).
  std::vector<float> mean_inter_token_ms;
  // From sending to the end of the call.
  std::vector<float> whole_ms;

  int64_t output_tokens = 0;  // that arrived
  int64_t prompt_tokens = 0;  // of requests whose first token arrived
  int64_t messages = 0;
  int64_t ok = 0;
  std::map<std::string, int64_t> errors;             // by status code, such as "RESOURCE_EXHAUSTED"
  std::map<std::string, std::string> error_message;  // the first of each code
  int64_t cut = 0;                                   // still running when the time was over

  void Add(const LoadSamples& other);
};

struct LoadResult {
  LoadSamples samples;
  double seconds = 0;  // that was measured
  int64_t sent = 0;
  int64_t unsent = 0;       // open loop, over max_in_flight
  double late_ms_max = 0;   // open loop: the latest send after its due time
  double client_cpu_s = 0;  // processor time of this process while it measured
};

// Runs to its end. UNAVAILABLE when nobody answers at the address.
absl::StatusOr<LoadResult> RunLoad(const LoadFlags& flags, const Workload& workload);

}  // namespace weir::server
