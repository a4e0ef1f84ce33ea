// The HTTP door of `weir serve`.
#pragma once

#include <memory>
#include <string>

#include "core/status.h"
#include "gateway/authorizer.h"
#include "gateway/gateway.h"
#include "server/commands/stack.h"

namespace weir {
class AccessKeys;
}

namespace weir::server {

// The keys of the gRPC port, asked for at the HTTP door; null for null. `keys` outlives it.
std::unique_ptr<gateway::Authorizer> MakeKeyAuthorizer(AccessKeys* keys);
// "http://127.0.0.1:8080".
std::string HttpUrl(const gateway::Gateway& gateway);

struct HttpDoor {
  std::unique_ptr<gateway::Authorizer> authorizer;  // null: no keys are asked for
  std::unique_ptr<gateway::Gateway> gateway;        // null: there is no door

  std::string address() const { return gateway == nullptr ? "" : gateway->address(); }
  // "http://127.0.0.1:8080"; empty without a door.
  std::string url() const;
};

// Opens it over the stack's own server, which outlives it. Errors are Gateway::Start's.
absl::StatusOr<HttpDoor> OpenHttpDoor(const ServerOptions& options, Stack* stack);

}  // namespace weir::server
