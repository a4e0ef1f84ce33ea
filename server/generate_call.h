// One Generate call: from the request's bytes to the last event.
#pragma once

#include <grpcpp/grpcpp.h>

namespace weir::server {

struct ServiceContext;

// The reactor of a new call; it owns itself and goes when gRPC is done with the call. `request` is
// read before this returns.
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerateCall(ServiceContext* context,
                                                              grpc::CallbackServerContext* rpc,
                                                              const grpc::ByteBuffer& request);

}  // namespace weir::server
