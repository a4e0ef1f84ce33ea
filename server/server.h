// Server: the gRPC front of one model. Owns the services, their threads and the port.
//
// Lifetime: the model, the scheduler, the clock and the registry outlive it. Start, then any number
// of calls from clients, then Drain (or nothing), then destruction.
#pragma once

#include <memory>
#include <string>

#include "core/status.h"

namespace grpc {
class Channel;
}
namespace weir {
class AccessKeys;
class Clock;
}  // namespace weir
namespace weir::metrics {
class Registry;
}
namespace weir::scheduler {
class Scheduler;
}

namespace weir::server {

struct ServedModel;
struct ServerOptions;

class Server {
 public:
  // `scheduler` runs (Start() was called). With an empty options.grpc only InProcessChannel leads
  // to it. UNAVAILABLE, with a sentence: the port is taken, or the address is not one of this
  // machine.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const ServedModel* model,
                                                       scheduler::Scheduler* scheduler,
                                                       const Clock* clock,
                                                       metrics::Registry* registry);
  // Ends calls that are still open.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "127.0.0.1:50051" with the real port; empty when it does not listen.
  const std::string& address() const;
  // A channel to this server that uses no socket.
  std::shared_ptr<grpc::Channel> InProcessChannel();
  // Of options.api_keys, for the other door and to be read again; null: everybody may call.
  AccessKeys* keys();

  // Health turns NOT_SERVING, new requests are refused with UNAVAILABLE; what runs or waits goes on
  // for at most `drain_us`. Returns when every call has got its end. Call once.
  void Drain(int64_t drain_us);

  // Health turns NOT_SERVING for good: the device failed and the process is about to end. Any
  // thread.
  void ReportBroken();

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir::server
