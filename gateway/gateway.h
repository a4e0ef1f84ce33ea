// Gateway: the HTTP door. OpenAI's API, the web page and metrics, in front of one or more servers
// that speak weir.v1.
//
// Lifetime: what Parts point to outlives it. Start, then any number of connections, then BeginDrain
// and WaitIdle (or nothing), then destruction, which ends what is left.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "gateway/backends.h"
#include "gateway/options.h"

namespace weir::metrics {
class Registry;
}

namespace weir::gateway {

class Authorizer;

class Gateway {
 public:
  struct Parts {
    std::vector<Backends::Target> backends;
    metrics::Registry* registry = nullptr;
    Authorizer* authorizer = nullptr;  // null: everybody may do everything
    // The backend is this very process: when it stops being healthy, /health says so too.
    bool own_server = false;
  };

  // Listens. UNAVAILABLE, with a sentence: the address cannot be listened on, or the access log not
  // be written. INVALID_ARGUMENT: the certificates. From now on a broken pipe is no signal to this
  // process.
  static absl::StatusOr<std::unique_ptr<Gateway>> Start(const Options& options, Parts parts);
  ~Gateway();
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  // "127.0.0.1:8080" with the real port.
  const std::string& address() const;
  bool tls() const;

  // Any thread. Not ready from now on: new generations are refused, every answer ends its
  // connection, idle connections are closed. What runs goes on.
  void BeginDrain();
  // Waits until every request has its answer; false: that took longer than `us`.
  bool WaitIdle(int64_t us);

  // Opens the access log again and reads the certificates again, for connections that come. What
  // cannot be read stays as it was; the status says so.
  absl::Status Reload();

 private:
  struct Impl;
  explicit Gateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir::gateway
