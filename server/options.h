// Every setting of `weir serve`: one table feeds the command line, the YAML file and the docs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "gateway/options.h"

namespace weir::server {

struct ServerOptions {
  std::string model;  // folder

  // Addresses "host:port"; port 0: any free one. An empty metrics address: no metrics port.
  std::string grpc = "127.0.0.1:50051";
  std::string metrics = "127.0.0.1:9464";
  std::string metrics_compat = "none";
  std::string ready_file;     // empty: none
  std::string otlp_endpoint;  // of a trace collector; empty: no tracing
  std::string api_keys;       // file of core/access_keys.h; empty: everybody may call
  // PEM files of the gRPC port; empty: no TLS, no client certificates.
  std::string grpc_tls_cert;
  std::string grpc_tls_key;
  std::string grpc_client_ca;
  std::string log_level = "info";
  bool reflection = true;

  gateway::Options http;  // the HTTP door

  // The model and its memory; 0: chosen by the model or by what the machine has.
  std::string device = "auto";
  bool random_weights = false;
  bool cuda_graphs = true;
  std::string dtype = "auto";
  std::string tool_parser = "auto";
  std::string reasoning_parser = "auto";
  int64_t slots = 0;
  int64_t kv_pages = 0;
  int64_t memory_bytes = 0;
  int64_t page_tokens = 16;
  int64_t max_position = 0;
  int64_t step_tokens = 0;
  int64_t step_sequences = 0;
  int64_t threads = 0;

  // Scheduling.
  int64_t prefill_chunk_tokens = 0;
  int64_t target_inter_token_us = 0;
  int64_t max_queued_requests = 1024;
  int64_t max_queued_tokens = 4 << 20;
  int64_t max_choices = 16;

  // Calls.
  int64_t default_max_tokens = 1024;
  int64_t max_logprobs = 20;
  int64_t max_stop_strings = 16;
  int64_t max_logit_bias = 1024;
  int64_t max_constraint_bytes = 256 << 10;
  int64_t constraint_cache = 128;
  int64_t mask_threads = 0;     // 0: chosen by the machine
  int64_t max_deadline_us = 0;  // 0: the client's deadline alone
  int64_t max_request_bytes = 16 << 20;
  int64_t stream_buffer_tokens = 1024;
  int64_t slow_reader_us = 10'000'000;
  int64_t text_threads = 2;
  int64_t max_waiting_texts = 1024;
  int64_t max_waiting_text_bytes = 256 << 20;

  // Connections and the end.
  int64_t keepalive_us = 30'000'000;
  int64_t keepalive_timeout_us = 10'000'000;
  int64_t min_ping_interval_us = 10'000'000;
  int64_t drain_us = 30'000'000;
  int64_t stall_us = 60'000'000;  // 0: never
};

// One setting: `--name VALUE` on the command line, `name: VALUE` in the file.
struct OptionSpec {
  std::string name;           // "max-queued-requests"
  std::string help;           // one sentence, with unit and meaning of 0
  std::string default_value;  // as it would be written
  std::string kind;  // "integer", "bytes", "duration", "true or false", "text", "auto|f32|bf16"
  // INVALID_ARGUMENT with what is allowed; the message does not name the setting.
  std::function<absl::Status(std::string_view text)> set;
};

// The table, bound to `options`, which must outlive it. Defaults are the values in `options` now.
std::vector<OptionSpec> OptionTable(ServerOptions* options);

// Sets what the YAML file says: a map of names to values. NOT_FOUND, or INVALID_ARGUMENT that names
// file, line and key: no YAML, not a map, unknown or repeated keys (all of them at once), values of
// a wrong kind or out of range.
absl::Status ApplyYamlFile(const std::string& path, const std::vector<OptionSpec>& table);

// What no single setting can tell: addresses without a port, settings that contradict each other.
absl::Status CheckOptions(const ServerOptions& options);

// "1.5 s", "250 ms", "2m": a duration in microseconds; 0 <= d <= 366 days.
absl::StatusOr<int64_t> ParseDurationUs(std::string_view text);
// The shortest exact form: "30s", "250ms", "0".
std::string FormatDurationUs(int64_t us);

}  // namespace weir::server
