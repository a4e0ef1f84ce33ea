// Addresses to listen on.
#pragma once

#include <string>

#include "core/status.h"

namespace weir::server {

// Whether `address` ("host:port") can be bound now. UNAVAILABLE says why not and what to do: in
// use, not of this machine, not allowed. `what` names the thing that wants it: "gRPC".
absl::Status CheckCanListen(const std::string& what, const std::string& address);

// "host:0", 50051 -> "host:50051".
std::string WithPort(const std::string& address, int port);

}  // namespace weir::server
