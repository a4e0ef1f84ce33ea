#include "server/generate_call.h"
#include "server/services.h"
#include "weir/v1/generate.grpc.pb.h"

namespace weir::server {
namespace {

// Raw: StartGenerateCall parses the request itself (see wire.h).
using Base = v1::GenerationService::WithRawCallbackMethod_Generate<v1::GenerationService::Service>;

class GenerationServiceImpl final : public Base {
 public:
  explicit GenerationServiceImpl(ServiceContext* context) : context_(context) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* rpc,
                                                       const grpc::ByteBuffer* request) override {
    return StartGenerateCall(context_, rpc, *request);
  }

 private:
  ServiceContext* const context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeGenerationService(ServiceContext* context) {
  return std::make_unique<GenerationServiceImpl>(context);
}

}  // namespace weir::server
