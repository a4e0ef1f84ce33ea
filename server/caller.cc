#include "server/caller.h"

#include <grpcpp/server_context.h>
#include <openssl/crypto.h>

#include <string_view>

#include "server/service_context.h"

namespace weir::server {
namespace {

std::string_view Header(const grpc::CallbackServerContext& rpc, const char* name) {
  const auto found = rpc.client_metadata().find(name);
  if (found == rpc.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

bool NeedsNoKey(const ServiceContext& context, const grpc::CallbackServerContext& rpc) {
  if (context.keys == nullptr) return true;
  const std::string_view own = Header(rpc, kOwnHeader);
  return own.size() == context.own_secret.size() && !own.empty() &&
         CRYPTO_memcmp(own.data(), context.own_secret.data(), own.size()) == 0;
}

}  // namespace

absl::Status CheckCaller(const ServiceContext& context, const grpc::CallbackServerContext& rpc) {
  if (NeedsNoKey(context, rpc)) return absl::OkStatus();
  return context.keys->Check(BearerSecret(Header(rpc, "authorization"))).status();
}

absl::StatusOr<AccessKeys::Use> AdmitCaller(const ServiceContext& context,
                                            const grpc::CallbackServerContext& rpc) {
  if (NeedsNoKey(context, rpc)) return AccessKeys::Use();
  return context.keys->Admit(BearerSecret(Header(rpc, "authorization")));
}

}  // namespace weir::server
