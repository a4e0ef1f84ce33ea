// How generate and chat reach a model: a server elsewhere, or one inside this process.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/status.h"
#include "server/commands/client_channel.h"
#include "server/commands/stack.h"
#include "weir/v1/generate.grpc.pb.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace weir::server {

struct Connection {
  std::unique_ptr<Stack> stack;  // null: the server is elsewhere
  std::shared_ptr<grpc::Channel> channel;

  Connection() = default;
  Connection(Connection&&) = default;
  Connection& operator=(Connection&&) = default;
  ~Connection();  // the channel first
};

// The flags that say where: a server's address, or a model folder and how to load it.
struct ConnectionFlags {
  std::string model_dir;
  std::string server;
  ClientFlags client;  // of `server`
  std::string dtype = "auto";
  int threads = 0;
  int slots = 0;  // 0: as many as the command needs
};

// UNAVAILABLE: nobody answers there. INVALID_ARGUMENT: both or neither are named. Loading errors.
absl::StatusOr<Connection> Connect(const ConnectionFlags& flags);

// Runs one Generate call and hands every event over; returns its status. `rpc` may be cancelled
// from another thread.
absl::Status StreamGenerate(const Connection& connection, const v1::GenerateRequest& request,
                            grpc::ClientContext* rpc,
                            const std::function<void(const v1::GenerateEvent&)>& on_event);

}  // namespace weir::server
