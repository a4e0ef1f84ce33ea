// Who makes a gRPC call: its API key, where the server asks for keys.
#pragma once

#include "core/access_keys.h"
#include "core/status.h"

namespace grpc {
class CallbackServerContext;
}

namespace weir::server {

struct ServiceContext;

// The header with which calls of this process to itself (Server::InProcessChannel) prove that they
// are that: its value is a secret of the process. The HTTP door uses them, and has asked for the
// key.
inline constexpr char kOwnHeader[] = "weir-own";

// Both take the key from the metadata `authorization: Bearer KEY`. Without keys everybody may call.

// UNAUTHENTICATED: no key, or an unknown one.
absl::Status CheckCaller(const ServiceContext& context, const grpc::CallbackServerContext& rpc);
// Also counts the request; RESOURCE_EXHAUSTED as AccessKeys::Admit says.
absl::StatusOr<AccessKeys::Use> AdmitCaller(const ServiceContext& context,
                                            const grpc::CallbackServerContext& rpc);

}  // namespace weir::server
