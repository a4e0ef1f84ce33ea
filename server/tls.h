// TLS of the gRPC port, from PEM files that may be replaced while it serves.
#pragma once

#include <memory>
#include <string>

#include "core/status.h"

namespace grpc {
class ServerCredentials;
}

namespace weir::server {

struct TlsFiles {
  std::string certificate;  // chain, the server's own first; empty: no TLS
  std::string key;
  std::string
      client_ca;  // clients must show a certificate of these authorities; empty: none is asked for
};

// INVALID_ARGUMENT or NOT_FOUND that names the file: not readable, not PEM, a key that is not the
// certificate's.
absl::Status CheckTlsFiles(const TlsFiles& files);

// Insecure ones without a certificate. Files that change are read again within a few seconds; new
// connections then use them. Errors as CheckTlsFiles.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files);

}  // namespace weir::server
