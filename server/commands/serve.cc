// `weir serve`: loads a model and answers until it is told to stop.
#include <signal.h>

#include <cstdio>
#include <memory>
#include <string>

#include "core/access_keys.h"
#include "core/log.h"
#include "server/commands/commands.h"
#include "server/commands/facts.h"
#include "server/commands/http_door.h"
#include "server/commands/progress.h"
#include "server/commands/ready_file.h"
#include "server/commands/settings.h"
#include "server/commands/stack.h"
#include "server/commands/stop_signals.h"
#include "server/listen.h"
#include "server/tls.h"

namespace weir::server {
namespace {

struct ServeArguments {
  Settings settings;
  std::string model;  // the positional argument
};

absl::Status Resolve(const ServeArguments& arguments, ServerOptions* options) {
  RETURN_IF_ERROR(arguments.settings.Apply(OptionTable(options)));
  if (!arguments.model.empty()) options->model = arguments.model;
  if (options->model.empty()) {
    return absl::InvalidArgumentError(
        "which model? Name its folder: weir serve MODEL_DIR, or model: in the configuration file");
  }
  RETURN_IF_ERROR(CheckOptions(*options));
  return SetLogLevel(std::string_view(options->log_level));
}

// SIGHUP: the log level of the configuration file, the API keys, HTTP's certificates and its log.
// What cannot be read stays as it is. TLS files need no signal: they are read again when they
// change.
void ReadAgain(const ServeArguments& arguments, Server* server, gateway::Gateway* door) {
  ServerOptions fresh;
  const absl::Status status = Resolve(arguments, &fresh);
  if (!status.ok()) LogError("SIGHUP: the settings stay as they are: ", status.message());
  const absl::Status reloaded = door == nullptr ? absl::OkStatus() : door->Reload();
  if (!reloaded.ok()) LogError("SIGHUP: HTTP stays as it is: ", reloaded.message());
  if (server->keys() == nullptr) {
    LogInfo("SIGHUP: log level ", fresh.log_level);
    return;
  }
  const absl::Status keys = server->keys()->Reload();
  if (keys.ok()) {
    LogInfo("SIGHUP: log level ", fresh.log_level, ", ", server->keys()->num_keys(), " API keys");
  } else {
    LogError("SIGHUP: the API keys stay as they are: ", keys.message());
  }
}

absl::Status Serve(const std::string& program, const ServeArguments& arguments) {
  ServerOptions options;
  RETURN_IF_ERROR(Resolve(arguments, &options));
  // First what would stop it at the end of a long load.
  RETURN_IF_ERROR(CheckCanListen("gRPC", options.grpc));
  RETURN_IF_ERROR(
      CheckTlsFiles({options.grpc_tls_cert, options.grpc_tls_key, options.grpc_client_ca}));
  if (!options.http.http.empty()) RETURN_IF_ERROR(CheckCanListen("HTTP", options.http.http));
  if (!options.metrics.empty()) RETURN_IF_ERROR(CheckCanListen("metrics", options.metrics));
  RETURN_IF_ERROR(ReadyFile::CheckWritable(options.ready_file));

  StopSignals signals("weir serve");
  Progress progress(options.model);
  ASSIGN_OR_RETURN(std::unique_ptr<Stack> stack, Stack::Start(options, progress.Callback()));
  progress.Done(stack->load_seconds());
  std::string metrics_address;
  if (!options.metrics.empty()) {
    ASSIGN_OR_RETURN(const int port, stack->registry().Expose(options.metrics));
    metrics_address = WithPort(options.metrics, port);
  }
  ASSIGN_OR_RETURN(const HttpDoor door, OpenHttpDoor(options, stack.get()));
  PrintServerFacts(options, stack->info(), stack->served());
  signals.Ready();
  const std::string& grpc_address = stack->server().address();
  RETURN_IF_ERROR(
      ReadyFile::Write(options.ready_file, {grpc_address, door.address(), metrics_address}));
  PrintListening(program, stack->served(), grpc_address, door.url(), metrics_address);

  const int signal =
      signals.Wait([&] { ReadAgain(arguments, &stack->server(), door.gateway.get()); });
  LogInfo(signal == SIGINT ? "SIGINT" : "SIGTERM",
          ": no new requests from now on; a second one ends at once");
  ReadyFile::Remove(options.ready_file);
  if (door.gateway != nullptr) door.gateway->BeginDrain();
  stack->server().Drain(options.drain_us);
  // Every generation has its end; the last bytes are on their way to the clients.
  if (door.gateway != nullptr) door.gateway->WaitIdle(options.slow_reader_us);
  LogInfo("drained");
  return absl::OkStatus();
}

}  // namespace

void AddServeCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<ServeArguments>();
  CLI::App* serve = app.add_subcommand("serve", "Serve a model over gRPC and HTTP");
  serve->add_option("MODEL_DIR", arguments->model, "Model folder");
  ServerOptions defaults;
  arguments->settings.AddFlags(serve, OptionTable(&defaults), "model");
  serve->callback([arguments, exit_code, &app] {
    const absl::Status status = Serve(app.get_name(), *arguments);
    if (!status.ok()) {
      std::fprintf(stderr, "weir serve: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
