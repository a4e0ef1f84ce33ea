// The gRPC services, for the server to register. Each shares the context, which outlives them.
#pragma once

#include <memory>

namespace grpc {
class Service;
}

namespace weir::server {

struct ServiceContext;

std::unique_ptr<grpc::Service> MakeGenerationService(ServiceContext* context);
std::unique_ptr<grpc::Service> MakeTokenizerService(ServiceContext* context);
std::unique_ptr<grpc::Service> MakeModelService(ServiceContext* context);

}  // namespace weir::server
