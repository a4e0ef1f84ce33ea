// A gRPC call as bytes: for what no generated stub would send.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

namespace weir::testing {

// A call with one request and at most one answer. `method` is "/package.Service/Method".
grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& request, std::string* answer);

}  // namespace weir::testing
