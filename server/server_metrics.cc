#include "server/server_metrics.h"

#include <string>
#include <vector>

#include "metrics/registry.h"
#include "server/served_model.h"

namespace weir::server {
namespace {

using Code = absl::StatusCode;

struct MethodCodes {
  const char* name;
  std::vector<Code> codes;  // that it can give, beside UNKNOWN
};

const std::vector<MethodCodes>& Methods() {
  static const auto* methods = new std::vector<MethodCodes>{
      {"Generate",
       {Code::kOk, Code::kCancelled, Code::kInvalidArgument, Code::kDeadlineExceeded,
        Code::kResourceExhausted, Code::kFailedPrecondition, Code::kInternal, Code::kUnavailable}},
      {"Tokenize",
       {Code::kOk, Code::kInvalidArgument, Code::kResourceExhausted, Code::kFailedPrecondition,
        Code::kInternal}},
      {"Detokenize",
       {Code::kOk, Code::kInvalidArgument, Code::kResourceExhausted, Code::kFailedPrecondition,
        Code::kInternal}},
      {"GetModel", {Code::kOk}},
      {"GetServerInfo", {Code::kOk}}};
  return *methods;
}

void AddConstants(const ServedModel& model, metrics::Registry* registry) {
  registry
      ->AddGauge("weir_build_info", "Always 1; the labels say which build runs.",
                 {{"version", WEIR_VERSION}, {"compiler", __VERSION__}})
      ->Set(1);
  registry
      ->AddGauge("weir_model_info", "Always 1; the labels say what is served.",
                 {{"name", model.name},
                  {"family", model.family},
                  {"dtype", model.compute_dtype},
                  {"device", model.device}})
      ->Set(1);
  const auto memory = [&](const char* kind, double bytes) {
    registry
        ->AddGauge("weir_memory_bytes", "Memory set aside at start, in bytes, by what it is for.",
                   {{"kind", kind}})
        ->Set(bytes);
  };
  memory("weights", static_cast<double>(model.weight_bytes));
  memory("workspace", static_cast<double>(model.workspace_bytes));
  const auto& limits = model.limits;
  memory("state",
         static_cast<double>(limits.cache.slots) * static_cast<double>(limits.layout.slot_bytes));
  memory("kv",
         static_cast<double>(limits.cache.pages) * static_cast<double>(limits.layout.page_bytes));
  memory("graphs", static_cast<double>(model.graph_bytes));
  memory("device", static_cast<double>(model.device_bytes));
}

}  // namespace

ServerMetrics::ServerMetrics(const ServedModel& model, metrics::Registry* registry) {
  for (size_t method = 0; method < kNumMethods; ++method) {
    std::vector<Code> codes = Methods()[method].codes;
    codes.push_back(Code::kUnknown);
    for (const Code code : codes) {
      calls_[method][static_cast<size_t>(code)] = registry->AddCounter(
          "weir_grpc_calls_total", "Ended gRPC calls, by method and status code.",
          {{"method", Methods()[method].name}, {"code", absl::StatusCodeToString(code)}});
    }
  }
  open_streams =
      registry->AddGauge("weir_open_streams", "Generate calls that are not yet answered in full.");
  text_seconds = registry->AddHistogram(
      "weir_text_seconds", "Time to render and tokenize one prompt, in seconds.",
      {1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3});
  text_wait_seconds = registry->AddHistogram(
      "weir_text_wait_seconds", "Time that a prompt waited for a text thread, in seconds.",
      {1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3});
  constraint_compile_seconds = registry->AddHistogram(
      "weir_constraint_compile_seconds",
      "Time to compile one constraint that was not in the cache, in seconds.",
      {1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3, 10});
  constexpr char kLookups[] = "Constraints looked for among the compiled ones, by what was found.";
  constraint_cache_hits =
      registry->AddCounter("weir_constraint_cache_lookups_total", kLookups, {{"result", "hit"}});
  constraint_cache_misses =
      registry->AddCounter("weir_constraint_cache_lookups_total", kLookups, {{"result", "miss"}});
  AddConstants(model, registry);
}

void ServerMetrics::CallEnded(Method method, absl::StatusCode code) {
  const auto& counters = calls_[static_cast<size_t>(method)];
  size_t index = static_cast<size_t>(code);
  if (index >= kNumCodes || counters[index] == nullptr) index = static_cast<size_t>(Code::kUnknown);
  counters[index]->Increment();
}

}  // namespace weir::server
