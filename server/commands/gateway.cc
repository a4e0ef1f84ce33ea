// `weir gateway`: the HTTP door as a process of its own, in front of servers elsewhere.
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/access_keys.h"
#include "core/clock.h"
#include "core/log.h"
#include "gateway/gateway.h"
#include "metrics/registry.h"
#include "server/commands/client_channel.h"
#include "server/commands/commands.h"
#include "server/commands/http_door.h"
#include "server/commands/ready_file.h"
#include "server/commands/settings.h"
#include "server/commands/stop_signals.h"
#include "server/gateway_options.h"
#include "server/listen.h"

namespace weir::server {
namespace {

struct GatewayArguments {
  Settings settings;
};

absl::Status Resolve(const GatewayArguments& arguments, GatewayOptions* options) {
  RETURN_IF_ERROR(arguments.settings.Apply(GatewayOptionTable(options)));
  RETURN_IF_ERROR(CheckGatewayOptions(*options));
  return SetLogLevel(std::string_view(options->log_level));
}

absl::StatusOr<std::vector<gateway::Backends::Target>> MakeTargets(const GatewayOptions& options) {
  ClientFlags flags;
  flags.tls = options.backend_tls;
  flags.ca = options.backend_ca;
  flags.cert = options.backend_cert;
  flags.key = options.backend_key;
  flags.api_key = options.backend_api_key;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  // A server that comes back is found soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  std::vector<gateway::Backends::Target> targets;
  for (const absl::string_view part : absl::StrSplit(options.backend, ',', absl::SkipEmpty())) {
    const std::string address(part);
    ASSIGN_OR_RETURN(auto channel, MakeClientChannel(address, flags, arguments));
    targets.push_back({address, std::move(channel)});
  }
  return targets;
}

void ReadAgain(const GatewayArguments& arguments, AccessKeys* keys, gateway::Gateway* door) {
  GatewayOptions fresh;
  for (const absl::Status& status :
       {Resolve(arguments, &fresh), keys == nullptr ? absl::OkStatus() : keys->Reload(),
        door->Reload()}) {
    if (!status.ok()) LogError("SIGHUP: this stays as it is: ", status.message());
  }
  LogInfo("SIGHUP: log level ", fresh.log_level);
}

absl::Status Serve(const GatewayArguments& arguments) {
  GatewayOptions options;
  RETURN_IF_ERROR(Resolve(arguments, &options));
  RETURN_IF_ERROR(CheckCanListen("HTTP", options.http.http));
  RETURN_IF_ERROR(ReadyFile::CheckWritable(options.ready_file));

  StopSignals signals("weir gateway");
  SteadyClock clock;
  metrics::Registry registry;
  std::unique_ptr<AccessKeys> keys;
  if (!options.api_keys.empty()) {
    ASSIGN_OR_RETURN(keys, AccessKeys::Load(options.api_keys, &clock));
  }
  const auto authorizer = MakeKeyAuthorizer(keys.get());
  gateway::Gateway::Parts parts;
  ASSIGN_OR_RETURN(parts.backends, MakeTargets(options));
  parts.registry = &registry;
  parts.authorizer = authorizer.get();
  ASSIGN_OR_RETURN(const std::unique_ptr<gateway::Gateway> door,
                   gateway::Gateway::Start(options.http, std::move(parts)));
  signals.Ready();
  RETURN_IF_ERROR(ReadyFile::Write(options.ready_file, {"", door->address(), ""}));
  std::printf("OpenAI API and web page on %s, for %s\n", HttpUrl(*door).c_str(),
              options.backend.c_str());
  std::fflush(stdout);

  const int signal = signals.Wait([&] { ReadAgain(arguments, keys.get(), door.get()); });
  LogInfo(signal == SIGINT ? "SIGINT" : "SIGTERM",
          ": no new requests from now on; a second one ends at once");
  ReadyFile::Remove(options.ready_file);
  door->BeginDrain();
  LogInfo(door->WaitIdle(options.drain_us) ? "drained" : "the drain time is over");
  return absl::OkStatus();
}

}  // namespace

void AddGatewayCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<GatewayArguments>();
  CLI::App* command =
      app.add_subcommand("gateway", "The HTTP door alone, in front of servers elsewhere");
  GatewayOptions defaults;
  arguments->settings.AddFlags(command, GatewayOptionTable(&defaults));
  command->callback([arguments, exit_code] {
    const absl::Status status = Serve(*arguments);
    if (!status.ok()) {
      std::fprintf(stderr, "weir gateway: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
