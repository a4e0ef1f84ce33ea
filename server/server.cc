#include "server/server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/impl/service_type.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/access_keys.h"
#include "core/clock.h"
#include "core/log.h"
#include "metrics/registry.h"
#include "scheduler/scheduler.h"
#include "server/call_header.h"
#include "server/caller.h"
#include "server/listen.h"
#include "server/options.h"
#include "server/served_model.h"
#include "server/server_metrics.h"
#include "server/service_context.h"
#include "server/services.h"
#include "server/span_exporter.h"
#include "server/tls.h"
#include "server/vllm_metrics.h"
#include "server/watchdog.h"
#include "server/work_pool.h"
#include "text/grammar.h"

namespace weir::server {
namespace {

// How long the end waits for readers to take the last of their streams, and then for connections to
// close (idle clients may not notice that they should).
constexpr std::chrono::milliseconds kLastWrites{2000};
constexpr std::chrono::milliseconds kLastConnections{100};

int ToMs(int64_t us) { return static_cast<int>(std::min<int64_t>(us / 1000, 1 << 30)); }

void SetChannelOptions(const ServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.max_request_bytes));
  // Two servers on one port would share its calls between them.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, ToMs(options.keepalive_us));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, ToMs(options.keepalive_timeout_us));
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              ToMs(options.min_ping_interval_us));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A write is done when the connection took it: what a slow reader leaves lies in our own bounded
  // buffer, not in gRPC's.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 4096);
}

class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins,
                  [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
  }
};

// What the libraries have to say goes to our log, and only when somebody debugs: clients get a
// status for what they did, and the log is not theirs to fill.
void QuietLibraries() {
  gpr_set_log_function([](gpr_log_func_args* line) { LogDebug("grpc: ", line->message); });
  google::protobuf::SetLogHandler(
      [](google::protobuf::LogLevel, const char*, int, const std::string& message) {
        LogDebug("protobuf: ", message);
      });
}

}  // namespace

struct Server::Impl {
  std::unique_ptr<AccessKeys> keys;     // outlives every call
  std::unique_ptr<SpanExporter> spans;  // too
  ServiceContext context;
  scheduler::Scheduler* scheduler = nullptr;
  std::unique_ptr<ServerMetrics> metrics;
  std::unique_ptr<text::GrammarCompiler> grammars;
  std::thread prepares_grammars;
  std::unique_ptr<WorkPool> text_pool;
  std::unique_ptr<WorkPool> delivery_pool;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Watchdog> watchdog;

  void FillContext(const ServerOptions& options, const ServedModel* model, const Clock* clock);
  absl::Status Build(const ServerOptions& options);
  void SetHealth(bool serving);
  void StartWatchdog(int64_t stall_us);
};

void Server::Impl::SetHealth(bool serving) {
  grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
  if (health == nullptr) return;
  for (const char* service :
       {"", "weir.v1.GenerationService", "weir.v1.TokenizerService", "weir.v1.ModelService"}) {
    health->SetServingStatus(service, serving);
  }
}

void Server::Impl::StartWatchdog(int64_t stall_us) {
  if (stall_us == 0) return;
  watchdog = std::make_unique<Watchdog>(scheduler, context.clock, stall_us, [this](bool stalled) {
    if (stalled) {
      LogError("no step has ended for too long although there is work; health is NOT_SERVING");
    } else {
      LogInfo("steps end again; health is SERVING");
    }
    SetHealth(!stalled);
  });
}

void Server::Impl::FillContext(const ServerOptions& options, const ServedModel* model,
                               const Clock* clock) {
  context.model = model;
  context.scheduler = scheduler;
  context.clock = clock;
  context.metrics = metrics.get();
  context.open_streams.SetGauge(metrics->open_streams);
  context.text_pool = text_pool.get();
  context.delivery_pool = delivery_pool.get();
  context.grammars = grammars.get();
  context.limits.max_choices = static_cast<int32_t>(
      std::min<int64_t>(options.max_choices, std::max(1, model->limits.cache.slots)));
  context.limits.default_max_tokens = static_cast<int32_t>(options.default_max_tokens);
  context.limits.max_logprobs = static_cast<int32_t>(options.max_logprobs);
  context.limits.max_stop_strings = static_cast<int32_t>(options.max_stop_strings);
  context.limits.max_logit_bias = static_cast<int32_t>(options.max_logit_bias);
  context.limits.max_constraint_bytes = options.max_constraint_bytes;
  context.stream_buffer_tokens = static_cast<int32_t>(options.stream_buffer_tokens);
  context.slow_reader_us = options.slow_reader_us;
  context.max_deadline_us = options.max_deadline_us;
  context.drain_us = options.drain_us;
  context.max_request_bytes = options.max_request_bytes;
  context.max_queued_requests = static_cast<int32_t>(options.max_queued_requests);
  context.max_queued_tokens = options.max_queued_tokens;
  std::random_device random;
  context.seed = uint64_t{random()} << 32 | random();
  context.ready_us = clock->NowUs();
}

absl::Status Server::Impl::Build(const ServerOptions& options) {
  services.push_back(MakeGenerationService(&context));
  services.push_back(MakeTokenizerService(&context));
  services.push_back(MakeModelService(&context));

  QuietLibraries();
  grpc::EnableDefaultHealthCheckService(true);
  // Linking the library registers the plugin for every server; naming it keeps it linked.
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetChannelOptions(options, &builder);
  if (!options.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  for (const auto& service : services) builder.RegisterService(service.get());
  int port = 0;
  if (!options.grpc.empty()) {
    RETURN_IF_ERROR(CheckCanListen("gRPC", options.grpc));
    ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                     MakeServerCredentials(
                         {options.grpc_tls_cert, options.grpc_tls_key, options.grpc_client_ca}));
    builder.AddListeningPort(options.grpc, credentials, &port);
  }
  server = builder.BuildAndStart();
  if (server == nullptr || (!options.grpc.empty() && port <= 0)) {
    return absl::UnavailableError(absl::StrCat("cannot serve gRPC on ", options.grpc));
  }
  if (!options.grpc.empty()) address = WithPort(options.grpc, port);
  SetHealth(true);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const ServedModel* model,
                                                      scheduler::Scheduler* scheduler,
                                                      const Clock* clock,
                                                      metrics::Registry* registry) {
  auto impl = std::make_unique<Impl>();
  impl->scheduler = scheduler;
  if (!options.api_keys.empty()) {
    ASSIGN_OR_RETURN(impl->keys, AccessKeys::Load(options.api_keys, clock));
  }
  impl->context.keys = impl->keys.get();
  impl->context.own_secret = NewSecret();
  impl->metrics = std::make_unique<ServerMetrics>(*model, registry);
  if (options.metrics_compat == "vllm") ExportVllmMetrics(*model, registry);
  if (!options.otlp_endpoint.empty()) {
    ASSIGN_OR_RETURN(impl->spans,
                     SpanExporter::Start(options.otlp_endpoint, model->name, clock, registry));
  }
  impl->context.spans = impl->spans.get();
  if (model->tokenizer != nullptr) {
    impl->grammars = std::make_unique<text::GrammarCompiler>(
        model->tokenizer, model->eos_ids, static_cast<size_t>(options.constraint_cache),
        static_cast<size_t>(options.max_request_bytes));
  }
  impl->text_pool = std::make_unique<WorkPool>(static_cast<int>(options.text_threads),
                                               static_cast<size_t>(options.max_waiting_texts),
                                               static_cast<size_t>(options.max_waiting_text_bytes));
  impl->delivery_pool = std::make_unique<WorkPool>(1, 0);
  impl->FillContext(options, model, clock);
  RETURN_IF_ERROR(impl->Build(options));
  impl->StartWatchdog(options.stall_us);
  if (impl->grammars != nullptr && !model->eos_ids.empty()) {
    // Serving does not wait for what only constraints need.
    impl->prepares_grammars =
        std::thread([grammars = impl->grammars.get()] { grammars->Prepare(); });
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  if (impl_->prepares_grammars.joinable()) impl_->prepares_grammars.join();
  impl_->watchdog.reset();
  // Whatever still runs ends now; then gRPC can wait for its calls.
  impl_->context.draining = true;
  impl_->scheduler->Drain(impl_->context.clock->NowUs());
  impl_->scheduler->WaitIdle();
  impl_->context.open_streams.WaitNone(kLastWrites);
  impl_->server->Shutdown(std::chrono::system_clock::now() + kLastConnections);
  impl_->server->Wait();
}

const std::string& Server::address() const { return impl_->address; }

std::shared_ptr<grpc::Channel> Server::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  return impl_->server->experimental().InProcessChannelWithInterceptors(
      arguments, WithHeader(kOwnHeader, impl_->context.own_secret));
}

AccessKeys* Server::keys() { return impl_->keys.get(); }

void Server::ReportBroken() {
  grpc::HealthCheckServiceInterface* health = impl_->server->GetHealthCheckService();
  if (health != nullptr) health->Shutdown();
}

void Server::Drain(int64_t drain_us) {
  impl_->watchdog.reset();
  impl_->SetHealth(false);
  impl_->context.draining = true;
  LogInfo("draining: ", impl_->context.open_streams.count(), " open streams, at most ",
          FormatDurationUs(drain_us));
  impl_->scheduler->Drain(impl_->context.clock->NowUs() + drain_us);
  impl_->scheduler->WaitIdle();
  // The last events are still on their way; a reader that takes nothing is not waited for.
  impl_->context.open_streams.WaitNone(std::chrono::microseconds(impl_->context.slow_reader_us) +
                                       kLastConnections);
  impl_->server->Shutdown(std::chrono::system_clock::now() + kLastConnections);
  impl_->server->Wait();
}

}  // namespace weir::server
