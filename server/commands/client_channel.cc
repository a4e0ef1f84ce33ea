#include "server/commands/client_channel.h"

#include <grpcpp/grpcpp.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "server/call_header.h"

namespace weir::server {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ClientFlags& flags) {
  if (!flags.tls && flags.ca.empty() && flags.cert.empty()) {
    return grpc::InsecureChannelCredentials();
  }
  if (flags.cert.empty() != flags.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key: give both or neither");
  }
  grpc::SslCredentialsOptions options;
  ASSIGN_OR_RETURN(options.pem_root_certs, ReadFile(flags.ca));
  ASSIGN_OR_RETURN(options.pem_cert_chain, ReadFile(flags.cert));
  ASSIGN_OR_RETURN(options.pem_private_key, ReadFile(flags.key));
  return grpc::SslCredentials(options);
}

}  // namespace

void AddClientFlags(CLI::App* command, ClientFlags* flags) {
  command->add_flag("--tls", flags->tls, "With a server: talk TLS to it");
  command->add_option("--tls-ca", flags->ca, "PEM authorities of the server [the system's]");
  command->add_option("--tls-cert", flags->cert, "PEM certificate to show to the server");
  command->add_option("--tls-key", flags->key, "PEM key of that certificate");
  command->add_option("--api-key", flags->api_key, "API key for the server")
      ->envname("WEIR_API_KEY");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeClientChannel(
    const std::string& address, const ClientFlags& flags, const grpc::ChannelArguments& arguments) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials,
                   MakeCredentials(flags));
  if (flags.api_key.empty()) return grpc::CreateCustomChannel(address, credentials, arguments);
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      address, credentials, arguments,
      WithHeader("authorization", absl::StrCat("Bearer ", flags.api_key)));
}

}  // namespace weir::server
