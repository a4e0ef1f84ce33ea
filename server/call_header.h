// A header on every call of a channel.
#pragma once

#include <grpcpp/support/client_interceptor.h>

#include <memory>
#include <string>
#include <vector>

namespace weir::server {

// What channels with interceptors take: adds `name: value` to the metadata of every call. `name` in
// lower case.
std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> WithHeader(
    const std::string& name, const std::string& value);

}  // namespace weir::server
