// How commands reach a server elsewhere: TLS and the API key.
#pragma once

#include <memory>
#include <string>

#include "core/status.h"

namespace CLI {
class App;
}
namespace grpc {
class Channel;
class ChannelArguments;
}  // namespace grpc

namespace weir::server {

struct ClientFlags {
  bool tls = false;     // also on with any of the files
  std::string ca;       // PEM authorities of the server; empty: the system's
  std::string cert;     // the client's own PEM certificate, where the server asks for one
  std::string key;      // and its key
  std::string api_key;  // empty: none
};

// --tls, --tls-ca, --tls-cert, --tls-key, --api-key (or WEIR_API_KEY).
void AddClientFlags(CLI::App* command, ClientFlags* flags);

// Every call on the channel carries the API key. NOT_FOUND: a file that cannot be read. Does not
// connect.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeClientChannel(
    const std::string& address, const ClientFlags& flags, const grpc::ChannelArguments& arguments);

}  // namespace weir::server
