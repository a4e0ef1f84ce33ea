#include "server/commands/http_door.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "core/access_keys.h"
#include "core/error_details.h"

namespace weir::server {
namespace {

class KeyAuthorizer final : public gateway::Authorizer {
 public:
  explicit KeyAuthorizer(AccessKeys* keys) : keys_(keys) {}

  std::variant<std::string, gateway::ApiError> Check(std::string_view authorization,
                                                     std::string_view) override {
    absl::StatusOr<std::string> name = keys_->Check(BearerSecret(authorization));
    if (name.ok()) return *std::move(name);
    return gateway::InvalidApiKey(std::string(name.status().message()));
  }

  std::variant<std::unique_ptr<Use>, gateway::ApiError> Admit(
      std::string_view authorization) override {
    absl::StatusOr<AccessKeys::Use> use = keys_->Admit(BearerSecret(authorization));
    if (use.ok()) return std::make_unique<KeyUse>(*std::move(use));
    const std::string message(use.status().message());
    if (absl::IsUnauthenticated(use.status())) return gateway::InvalidApiKey(message);
    return gateway::HttpError(429, message,
                              GetErrorDetails(use.status()).retry_after_ms.value_or(0));
  }

 private:
  class KeyUse final : public Use {
   public:
    explicit KeyUse(AccessKeys::Use use) : use_(std::move(use)) {}
    void AddTokens(int64_t tokens) override { use_.AddTokens(tokens); }

   private:
    AccessKeys::Use use_;
  };

  AccessKeys* const keys_;
};

}  // namespace

std::unique_ptr<gateway::Authorizer> MakeKeyAuthorizer(AccessKeys* keys) {
  return keys == nullptr ? nullptr : std::make_unique<KeyAuthorizer>(keys);
}

std::string HttpUrl(const gateway::Gateway& gateway) {
  return absl::StrCat(gateway.tls() ? "https://" : "http://", gateway.address());
}

std::string HttpDoor::url() const { return gateway == nullptr ? "" : HttpUrl(*gateway); }

absl::StatusOr<HttpDoor> OpenHttpDoor(const ServerOptions& options, Stack* stack) {
  HttpDoor door;
  if (options.http.http.empty()) return door;
  door.authorizer = MakeKeyAuthorizer(stack->server().keys());
  gateway::Gateway::Parts parts;
  parts.backends.push_back({"in-process", stack->server().InProcessChannel()});
  parts.registry = &stack->registry();
  parts.authorizer = door.authorizer.get();
  parts.own_server = true;
  ASSIGN_OR_RETURN(door.gateway, gateway::Gateway::Start(options.http, std::move(parts)));
  return door;
}

}  // namespace weir::server
