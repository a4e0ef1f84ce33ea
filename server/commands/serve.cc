// `weir serve`: loads a model and answers until it is told to stop.
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/access_keys.h"
#include "core/log.h"
#include "server/commands/commands.h"
#include "server/commands/facts.h"
#include "server/commands/http_door.h"
#include "server/commands/progress.h"
#include "server/commands/ready_file.h"
#include "server/commands/stack.h"
#include "server/listen.h"
#include "server/tls.h"

namespace weir::server {
namespace {

struct ServeArguments {
  ServerOptions options;
  std::vector<OptionSpec> table;  // bound to `options`
  std::string config;
  std::string model;                                             // the positional argument
  std::vector<std::pair<const OptionSpec*, std::string>> given;  // flags, in order
};

// The file first, then the command line over it.
absl::Status Resolve(ServeArguments* arguments) {
  if (!arguments->config.empty()) {
    RETURN_IF_ERROR(ApplyYamlFile(arguments->config, arguments->table));
  }
  for (const auto& [spec, text] : arguments->given) {
    const absl::Status set = spec->set(text);
    if (!set.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--", spec->name, ": ", set.message()));
    }
  }
  if (!arguments->model.empty()) arguments->options.model = arguments->model;
  if (arguments->options.model.empty()) {
    return absl::InvalidArgumentError(
        "which model? Name its folder: weir serve MODEL_DIR, or model: in the configuration file");
  }
  RETURN_IF_ERROR(CheckOptions(arguments->options));
  return SetLogLevel(std::string_view(arguments->options.log_level));
}

// SIGTERM and SIGINT, taken by a thread of their own. While loading the first one ends the process:
// there is nothing to drain. After Ready() the first one asks for an orderly end, the second ends
// it. SIGHUP asks to read settings again.
class StopSignals {
 public:
  // Blocks the signals for this thread and all that it starts.
  StopSignals() : state_(std::make_shared<State>()) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    // Waits for signals until the process ends, hence detached.
    std::thread([state = state_, set] {
      while (true) {
        int signal = 0;
        if (sigwait(&set, &signal) == 0) state->Take(signal);
      }
    }).detach();
  }

  void Ready() {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->ready = true;
  }

  // The first signal after Ready() that ends; `on_hangup` runs for every SIGHUP before.
  int Wait(const std::function<void()>& on_hangup) {
    std::unique_lock<std::mutex> lock(state_->mutex);
    while (true) {
      state_->changed.wait(lock, [this] { return state_->signal != 0 || state_->hangup; });
      if (state_->signal != 0) return state_->signal;
      state_->hangup = false;
      lock.unlock();
      on_hangup();
      lock.lock();
    }
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    bool ready = false;
    int signal = 0;
    bool hangup = false;

    void Take(int received) {
      std::lock_guard<std::mutex> lock(mutex);
      if (received == SIGHUP) {  // while loading: everything is read anyway
        hangup = ready;
        changed.notify_all();
        return;
      }
      if (!ready || signal != 0) {
        if (signal != 0) std::fprintf(stderr, "weir serve: second signal: ending now\n");
        _exit(128 + received);
      }
      signal = received;
      changed.notify_all();
    }
  };
  std::shared_ptr<State> state_;
};

// SIGHUP: the log level of the configuration file, the API keys, HTTP's certificates and its log.
// What cannot be read stays as it is. TLS files need no signal: they are read again when they
// change.
void ReadAgain(const ServeArguments& arguments, Server* server, gateway::Gateway* door) {
  ServeArguments fresh;
  fresh.table = OptionTable(&fresh.options);
  fresh.config = arguments.config;
  for (const auto& [spec, text] : arguments.given) {
    for (const OptionSpec& own : fresh.table) {
      if (own.name == spec->name) fresh.given.emplace_back(&own, text);
    }
  }
  fresh.model = arguments.model;
  const absl::Status status = Resolve(&fresh);
  if (!status.ok()) LogError("SIGHUP: the settings stay as they are: ", status.message());
  const absl::Status reloaded = door == nullptr ? absl::OkStatus() : door->Reload();
  if (!reloaded.ok()) LogError("SIGHUP: HTTP stays as it is: ", reloaded.message());
  if (server->keys() == nullptr) {
    LogInfo("SIGHUP: log level ", fresh.options.log_level);
    return;
  }
  const absl::Status keys = server->keys()->Reload();
  if (keys.ok()) {
    LogInfo("SIGHUP: log level ", fresh.options.log_level, ", ", server->keys()->num_keys(),
            " API keys");
  } else {
    LogError("SIGHUP: the API keys stay as they are: ", keys.message());
  }
}

absl::Status Serve(const std::string& program, const ServeArguments& arguments) {
  const ServerOptions& options = arguments.options;
  // First what would stop it at the end of a long load.
  RETURN_IF_ERROR(CheckCanListen("gRPC", options.grpc));
  RETURN_IF_ERROR(
      CheckTlsFiles({options.grpc_tls_cert, options.grpc_tls_key, options.grpc_client_ca}));
  if (!options.http.http.empty()) RETURN_IF_ERROR(CheckCanListen("HTTP", options.http.http));
  if (!options.metrics.empty()) RETURN_IF_ERROR(CheckCanListen("metrics", options.metrics));
  RETURN_IF_ERROR(ReadyFile::CheckWritable(options.ready_file));

  StopSignals signals;
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
  arguments->table = OptionTable(&arguments->options);
  CLI::App* serve = app.add_subcommand("serve", "Serve a model over gRPC and HTTP");
  serve->add_option("MODEL_DIR", arguments->model, "Model folder");
  serve->add_option(
      "--config", arguments->config,
      "YAML file with the same settings, \"name: value\" per line; flags come after it");
  for (const OptionSpec& spec : arguments->table) {
    if (spec.name == "model") continue;
    serve
        ->add_option_function<std::string>(
            "--" + spec.name,
            [given = &arguments->given, spec = &spec](const std::string& text) {
              given->emplace_back(spec, text);
            },
            absl::StrCat(spec.help, " [", spec.default_value.empty() ? "none" : spec.default_value,
                         "]"))
        ->type_name(spec.kind)
        ->take_last();
  }
  serve->callback([arguments, exit_code, &app] {
    absl::Status status = Resolve(arguments.get());
    if (status.ok()) status = Serve(app.get_name(), *arguments);
    if (!status.ok()) {
      std::fprintf(stderr, "weir serve: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
