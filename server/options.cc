#include "server/options.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/http_options.h"
#include "server/option_kinds.h"
#include "server/span_exporter.h"
#include "text/answer_style.h"

namespace weir::server {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

std::vector<std::string> WithAuto(std::vector<std::string> names) {
  names.insert(names.begin(), "auto");
  return names;
}

void AddModelOptions(ServerOptions* o, std::vector<OptionSpec>* table) {
  table->push_back(Text("model", &o->model, "Model folder (on the command line: the argument)."));
  table->push_back(Choice("device", &o->device, {"auto", "cpu", "cuda"},
                          "Where the model runs; auto: on a GPU where one is usable."));
  table->push_back(
      Bool("random-weights", &o->random_weights,
           "Serve random weights: the model may be a config.json alone. For benchmarks."));
  table->push_back(
      Bool("cuda-graphs", &o->cuda_graphs, "On a GPU, decode steps as captured graphs."));
  table->push_back(Choice("dtype", &o->dtype, {"auto", "f32", "bf16"},
                          "Number format of weights and products; auto: as the checkpoint."));
  table->push_back(
      Choice("tool-parser", &o->tool_parser, WithAuto(text::ToolStyleNames()),
             "How the model writes calls of tools; auto: as its chat template shows."));
  table->push_back(Choice("reasoning-parser", &o->reasoning_parser,
                          WithAuto(text::ReasoningStyleNames()),
                          "How the model writes its reasoning; auto: as its chat template shows."));
  table->push_back(Integer("slots", &o->slots, 0, 1 << 20,
                           "Sequences that run at once; 0: as many as the memory holds."));
  table->push_back(Integer("kv-pages", &o->kv_pages, 0, kMaxInt32,
                           "Pages of keys and values; 0: as many as the memory holds."));
  table->push_back(Bytes("memory", &o->memory_bytes, 0, int64_t{1} << 50,
                         "Memory for state and pages together; 0: a share of what is free."));
  table->push_back(Integer("page-tokens", &o->page_tokens, 1, 4096, "Tokens in one page."));
  table->push_back(Integer("max-position", &o->max_position, 0, kMaxInt32,
                           "Longest sequence in tokens, prompt and answer; 0: the model's own."));
  table->push_back(
      Integer("threads", &o->threads, 0, 1024, "Threads that compute; 0: all usable cores."));
}

void AddSchedulingOptions(ServerOptions* o, std::vector<OptionSpec>* table) {
  table->push_back(Integer("step-tokens", &o->step_tokens, 0, 1 << 20,
                           "Tokens in one step, prefill and decode together; 0: 512 on a CPU, "
                           "8192 on a GPU, 16384 on one of 60 GiB or more."));
  table->push_back(Integer("step-sequences", &o->step_sequences, 0, 1 << 16,
                           "Sequences in one step; 0: 64 on a CPU, 256 on a GPU."));
  table->push_back(Integer("prefill-chunk", &o->prefill_chunk_tokens, 0, 1 << 20,
                           "Longest piece of one prompt in a step, in tokens; 0: step-tokens."));
  table->push_back(Duration("target-inter-token", &o->target_inter_token_us, 0,
                            "Time between tokens that prefill must leave room for; 0: none."));
  table->push_back(Integer("max-queued-requests", &o->max_queued_requests, 1, 1 << 20,
                           "Requests that may wait; more are refused."));
  table->push_back(Integer("max-queued-tokens", &o->max_queued_tokens, 1, int64_t{1} << 40,
                           "Prompt tokens that may wait, all requests together."));
  table->push_back(
      Integer("mask-threads", &o->mask_threads, 0, 256,
              "Threads that say what constrained answers may go on with; 0: half of the "
              "machine's, at most 8."));
  table->push_back(Integer("max-choices", &o->max_choices, 1, 1024, "Largest n of a request."));
}

void AddCallOptions(ServerOptions* o, std::vector<OptionSpec>* table) {
  table->push_back(Integer("default-max-tokens", &o->default_max_tokens, 1, kMaxInt32,
                           "Tokens of an answer when the request does not say."));
  table->push_back(
      Integer("max-logprobs", &o->max_logprobs, 0, 1000, "Most log probabilities per token."));
  table->push_back(Integer("max-stop-strings", &o->max_stop_strings, 0, 1024,
                           "Most stop strings of a request."));
  table->push_back(
      Integer("max-logit-bias", &o->max_logit_bias, 0, 1 << 20, "Most logit biases of a request."));
  table->push_back(Bytes("max-constraint-bytes", &o->max_constraint_bytes, 64, 16 << 20,
                         "Largest schema, grammar or the like of a request."));
  table->push_back(Integer("constraint-cache", &o->constraint_cache, 0, 1 << 16,
                           "Compiled constraints that are kept, those used last."));
  table->push_back(Duration("max-deadline", &o->max_deadline_us, 0,
                            "Longest that a call may take; 0: as long as its own deadline."));
  table->push_back(
      Bytes("max-request-bytes", &o->max_request_bytes, 1024, 1 << 30, "Largest request message."));
  table->push_back(Integer("stream-buffer-tokens", &o->stream_buffer_tokens, 16, 1 << 24,
                           "Tokens that may wait for a slow reader before its call is ended."));
  table->push_back(Duration("slow-reader-time", &o->slow_reader_us, 10'000,
                            "How long an ended call waits for its reader to take the rest."));
  table->push_back(
      Integer("text-threads", &o->text_threads, 1, 256, "Threads for templates and tokenizing."));
  table->push_back(Integer("max-waiting-texts", &o->max_waiting_texts, 1, 1 << 20,
                           "Calls that may wait for those threads; more are refused."));
  table->push_back(Bytes("max-waiting-text-bytes", &o->max_waiting_text_bytes, 1024,
                         int64_t{1} << 40,
                         "Bytes of the requests that wait for them; more are refused."));
}

void AddAccessOptions(ServerOptions* o, std::vector<OptionSpec>* table) {
  table->push_back(Text("api-keys", &o->api_keys,
                        "File of API keys and their limits (weir keys add); \"\": none needed."));
  table->push_back(Text("grpc-tls-cert", &o->grpc_tls_cert,
                        "PEM certificate chain of the gRPC port; \"\": no TLS."));
  table->push_back(Text("grpc-tls-key", &o->grpc_tls_key, "PEM private key of it."));
  table->push_back(Text("grpc-client-ca", &o->grpc_client_ca,
                        "PEM authorities whose certificate gRPC clients must show; \"\": none."));
}

void AddProcessOptions(ServerOptions* o, std::vector<OptionSpec>* table) {
  table->push_back(Text("grpc", &o->grpc, "gRPC address, host:port; port 0: any free one."));
  table->push_back(Text("metrics", &o->metrics,
                        "Address of /metrics, host:port; port 0: any free one; \"\": none."));
  table->push_back(Choice("metrics-compat", &o->metrics_compat, {"none", "vllm"},
                          "Also export the main numbers under the names that routers look for."));
  table->push_back(Text("ready-file", &o->ready_file,
                        "File to write once ready: JSON with the addresses and the pid."));
  table->push_back(Text("otlp-endpoint", &o->otlp_endpoint,
                        "OpenTelemetry collector for spans, http://HOST:4317 (gRPC); \"\": none."));
  table->push_back(Choice("log-level", &o->log_level, {"debug", "info", "warning", "error"},
                          "Log lines below it are dropped."));
  table->push_back(Bool("reflection", &o->reflection, "Answer gRPC server reflection."));
  table->push_back(Duration("keepalive", &o->keepalive_us, 1'000'000,
                            "Idle time after which a connection is pinged."));
  table->push_back(Duration("keepalive-timeout", &o->keepalive_timeout_us, 100'000,
                            "Time without an answer after which it is closed."));
  table->push_back(Duration("min-ping-interval", &o->min_ping_interval_us, 0,
                            "Clients that ping more often than this are disconnected."));
  table->push_back(Duration(
      "stall-time", &o->stall_us, 0,
      "Health turns NOT_SERVING when there is work and no step ends for this long; 0: never."));
  table->push_back(
      Duration("drain-time", &o->drain_us, 0, "What runs may go on this long after SIGTERM."));
}

}  // namespace

std::vector<OptionSpec> OptionTable(ServerOptions* options) {
  std::vector<OptionSpec> table;
  AddProcessOptions(options, &table);
  AddAccessOptions(options, &table);
  AddHttpOptions(&options->http, &table);
  AddModelOptions(options, &table);
  AddSchedulingOptions(options, &table);
  AddCallOptions(options, &table);
  return table;
}

absl::Status CheckOptions(const ServerOptions& options) {
  RETURN_IF_ERROR(CheckAddress("grpc", options.grpc));
  if (!options.metrics.empty()) RETURN_IF_ERROR(CheckAddress("metrics", options.metrics));
  if (!options.otlp_endpoint.empty()) {
    const absl::Status endpoint = CheckOtlpEndpoint(options.otlp_endpoint);
    if (!endpoint.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("otlp-endpoint: ", endpoint.message()));
    }
  }
  if (options.grpc_tls_cert.empty() != options.grpc_tls_key.empty()) {
    return absl::InvalidArgumentError(
        "grpc-tls-cert and grpc-tls-key: TLS needs both; one of them is missing");
  }
  if (!options.grpc_client_ca.empty() && options.grpc_tls_cert.empty()) {
    return absl::InvalidArgumentError(
        "grpc-client-ca: client certificates need TLS; give grpc-tls-cert and grpc-tls-key too");
  }
  RETURN_IF_ERROR(CheckHttpOptions(options.http));
  if (options.memory_bytes > 0 && options.slots > 0 && options.kv_pages > 0) {
    return absl::InvalidArgumentError(
        "memory: slots and kv-pages already say how much memory is used; leave one of the three "
        "out");
  }
  if (options.step_tokens > 0 && options.prefill_chunk_tokens > options.step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("prefill-chunk: ", options.prefill_chunk_tokens, " is more than step-tokens, ",
                     options.step_tokens, ": such a piece never fits in a step"));
  }
  if (options.step_tokens > 0 && options.step_sequences > options.step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("step-sequences: ", options.step_sequences, " is more than step-tokens, ",
                     options.step_tokens, ": each sequence takes at least one token"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ParseDurationUs(std::string_view text) {
  const absl::string_view shown(text.data(), text.size());
  std::string compact(text);
  compact.erase(std::remove(compact.begin(), compact.end(), ' '), compact.end());
  absl::Duration duration;
  if (!absl::ParseDuration(compact, &duration)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", shown,
                     "\" is no duration; write a number and a unit, such as 30s, "
                     "250ms or 5m"));
  }
  if (duration < absl::ZeroDuration() || duration > absl::Hours(24 * 366)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", shown, "\" is out of range; allowed: 0 to 8784h"));
  }
  return absl::ToInt64Microseconds(duration);
}

std::string FormatDurationUs(int64_t us) {
  if (us == 0) return "0";
  if (us % 60'000'000 == 0) return absl::StrCat(us / 60'000'000, "m");
  if (us % 1'000'000 == 0) return absl::StrCat(us / 1'000'000, "s");
  if (us % 1000 == 0) return absl::StrCat(us / 1000, "ms");
  return absl::StrCat(us, "us");
}

}  // namespace weir::server
