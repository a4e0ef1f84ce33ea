// Every setting of `weir gateway`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "gateway/options.h"
#include "server/options.h"

namespace weir::server {

struct GatewayOptions {
  std::string backend = "127.0.0.1:50051";  // addresses, parted by commas
  gateway::Options http;
  std::string api_keys;  // file; empty: everybody may call
  bool backend_tls = false;
  std::string backend_ca, backend_cert, backend_key;  // PEM files
  std::string backend_api_key;                        // the gateway's own
  std::string ready_file;
  std::string log_level = "info";
  int64_t drain_us = 30'000'000;
};

// Bound to `options`, which must outlive it.
std::vector<OptionSpec> GatewayOptionTable(GatewayOptions* options);
// What no single setting can tell.
absl::Status CheckGatewayOptions(const GatewayOptions& options);

}  // namespace weir::server
