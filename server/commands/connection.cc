#include "server/commands/connection.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "core/log.h"

namespace weir::server {
namespace {

constexpr std::chrono::seconds kConnectTime{5};

// False as soon as one attempt has failed, or after kConnectTime.
bool WaitForConnected(grpc::Channel& channel) {
  const auto deadline = std::chrono::system_clock::now() + kConnectTime;
  while (true) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) return false;
    if (!channel.WaitForStateChange(state, deadline)) return false;
  }
}

absl::StatusOr<Connection> ConnectTo(const std::string& address, const ClientFlags& flags) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // One connection of its own: a pooled one may be in back-off.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  Connection connection;
  ASSIGN_OR_RETURN(connection.channel, MakeClientChannel(address, flags, arguments));
  if (!WaitForConnected(*connection.channel)) {
    return absl::UnavailableError(absl::StrCat(
        "no server answers at ", address, "; start one with: weir serve MODEL_DIR --grpc ", address,
        " (one with TLS is reached with --tls or --tls-ca, "
        "and may want --tls-cert and --tls-key)"));
  }
  return connection;
}

absl::StatusOr<Connection> StartInside(const ConnectionFlags& flags) {
  ServerOptions options;
  options.model = flags.model_dir;
  options.grpc = "";
  options.metrics = "";
  options.dtype = flags.dtype;
  options.threads = flags.threads;
  options.slots = std::max(1, flags.slots);
  options.step_sequences = std::max(1, flags.slots);
  SetLogLevel(LogLevel::kWarning);
  Connection connection;
  ASSIGN_OR_RETURN(connection.stack, Stack::Start(options, nullptr));
  connection.channel = connection.stack->server().InProcessChannel();
  return connection;
}

}  // namespace

Connection::~Connection() {
  channel.reset();
  stack.reset();
}

absl::StatusOr<Connection> Connect(const ConnectionFlags& flags) {
  if (flags.server.empty() == flags.model_dir.empty()) {
    return absl::InvalidArgumentError(
        flags.server.empty() ? "name a model folder, or a server with --server HOST:PORT"
                             : "name a model folder or a server, not both");
  }
  return flags.server.empty() ? StartInside(flags) : ConnectTo(flags.server, flags.client);
}

absl::Status StreamGenerate(const Connection& connection, const v1::GenerateRequest& request,
                            grpc::ClientContext* rpc,
                            const std::function<void(const v1::GenerateEvent&)>& on_event) {
  const auto stub = v1::GenerationService::NewStub(connection.channel);
  const auto reader = stub->Generate(rpc, request);
  v1::GenerateEvent event;
  while (reader->Read(&event)) on_event(event);
  const grpc::Status status = reader->Finish();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace weir::server
