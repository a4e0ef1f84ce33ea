#include "tests/support/raw_call.h"

#include <grpcpp/generic/generic_stub.h>

#include <vector>

#include "core/check.h"

namespace weir::testing {

grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& request, std::string* answer) {
  grpc::ClientContext rpc;
  const grpc::Slice slice(request);
  const grpc::ByteBuffer bytes(&slice, 1);
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel);
  const auto call = stub.PrepareUnaryCall(&rpc, method, bytes, &queue);
  call->StartCall();
  grpc::ByteBuffer got;
  grpc::Status status;
  call->Finish(&got, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  WEIR_CHECK(queue.Next(&tag, &ok));
  std::vector<grpc::Slice> slices;
  answer->clear();
  if (got.Valid() && got.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) {
      answer->append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
  }
  return status;
}

}  // namespace weir::testing
