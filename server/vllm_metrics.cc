#include "server/vllm_metrics.h"

#include <ctime>
#include <string>

#include "absl/strings/str_cat.h"
#include "metrics/registry.h"
#include "server/served_model.h"

namespace weir::server {
namespace {

struct Name {
  const char* theirs;
  const char* ours;
  const char* help;
};

constexpr Name kSame[] = {
    {"vllm:num_requests_running", "weir_running_requests", "Requests that hold memory."},
    {"vllm:num_requests_waiting", "weir_queue_requests", "Requests that wait for memory."},
    // Slots or pages: whichever is used up first blocks admission.
    {"vllm:kv_cache_usage_perc", "weir_memory_used_ratio", "Used share of the memory, 0 to 1."},
    {"vllm:prompt_tokens_total", "weir_prefill_tokens_total", "Prompt tokens run."},
    {"vllm:generation_tokens_total", "weir_decode_tokens_total", "Tokens generated."},
    {"vllm:time_to_first_token_seconds", "weir_time_to_first_token_seconds",
     "From arrival to the first token."},
    {"vllm:inter_token_latency_seconds", "weir_inter_token_seconds", "Between two tokens."},
    {"vllm:e2e_request_latency_seconds", "weir_request_seconds", "From arrival to the end."},
    {"vllm:request_queue_time_seconds", "weir_queue_wait_seconds", "From arrival to admission."},
    {"vllm:iteration_tokens_total", "weir_step_tokens", "Tokens in a step."},
};

// Outcome of weir_requests_total -> finished_reason.
constexpr const char* kReasons[][2] = {
    {"stop", "stop"},         {"length", "length"}, {"cancelled", "abort"}, {"deadline", "abort"},
    {"slow_reader", "abort"}, {"drained", "abort"}, {"error", "error"},
};

}  // namespace

void ExportVllmMetrics(const ServedModel& model, metrics::Registry* registry) {
  for (const Name& name : kSame) {
    registry->AddAlias({name.theirs, name.help, name.ours, {}, {{"model_name", model.name}}});
  }
  for (const auto& [outcome, reason] : kReasons) {
    registry->AddAlias({"vllm:request_success_total",
                        "Ended requests, by how.",
                        "weir_requests_total",
                        {{"outcome", outcome}},
                        {{"finished_reason", reason}, {"model_name", model.name}}});
  }
  registry
      ->AddGauge("vllm:cache_config_info", "Always 1; the labels say what holds keys and values.",
                 {{"block_size", absl::StrCat(model.limits.layout.page_tokens)},
                  {"num_gpu_blocks", absl::StrCat(model.limits.cache.pages)},
                  {"model_name", model.name}})
      ->Set(1);
  // Adapters are not served; pickers that ask for them want to hear so. The value is a time.
  registry
      ->AddGauge("vllm:lora_requests_info", "Time of the last change, seconds since the epoch.",
                 {{"max_lora", "0"},
                  {"running_lora_adapters", ""},
                  {"waiting_lora_adapters", ""},
                  {"model_name", model.name}})
      ->Set(static_cast<double>(std::time(nullptr)));
}

}  // namespace weir::server
