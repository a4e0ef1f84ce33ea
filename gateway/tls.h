// The TLS side of the HTTP door.
#pragma once

#include <openssl/types.h>

#include <memory>

#include "core/status.h"
#include "gateway/options.h"

namespace weir::gateway {

// TLS 1.2 and later with options.tls_cert and tls_key; clients must show a certificate that
// options.client_ca signed, where it is set. INVALID_ARGUMENT names the file and what is wrong.
absl::StatusOr<std::shared_ptr<SSL_CTX>> MakeTlsContext(const Options& options);

}  // namespace weir::gateway
