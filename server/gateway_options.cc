#include "server/gateway_options.h"

#include "absl/strings/str_split.h"
#include "server/http_options.h"
#include "server/option_kinds.h"

namespace weir::server {

std::vector<OptionSpec> GatewayOptionTable(GatewayOptions* o) {
  std::vector<OptionSpec> table;
  table.push_back(
      Text("backend", &o->backend, "gRPC addresses of the servers, host:port, parted by commas."));
  AddHttpOptions(&o->http, &table);
  table.push_back(Text("api-keys", &o->api_keys,
                       "File of API keys and their limits (weir keys add); \"\": none needed."));
  table.push_back(Bool("backend-tls", &o->backend_tls, "Talk TLS to the servers."));
  table.push_back(
      Text("backend-ca", &o->backend_ca, "PEM authorities of the servers; \"\": the system's."));
  table.push_back(
      Text("backend-cert", &o->backend_cert, "PEM certificate to show to the servers."));
  table.push_back(Text("backend-key", &o->backend_key, "PEM private key of it."));
  table.push_back(Text("backend-api-key", &o->backend_api_key,
                       "API key of the gateway itself, for servers that ask for one."));
  table.push_back(Text("ready-file", &o->ready_file,
                       "File to write once it listens: JSON with the address and the pid."));
  table.push_back(Choice("log-level", &o->log_level, {"debug", "info", "warning", "error"},
                         "Log lines below it are dropped."));
  table.push_back(
      Duration("drain-time", &o->drain_us, 0, "What runs may go on this long after SIGTERM."));
  return table;
}

absl::Status CheckGatewayOptions(const GatewayOptions& options) {
  const std::vector<std::string> backends = absl::StrSplit(options.backend, ',', absl::SkipEmpty());
  if (backends.empty()) {
    return absl::InvalidArgumentError(
        "backend: which server? Name its gRPC address: weir gateway --backend HOST:PORT");
  }
  for (const std::string& address : backends) RETURN_IF_ERROR(CheckAddress("backend", address));
  if (options.http.http.empty()) {
    return absl::InvalidArgumentError("http: a gateway without an address is of no use");
  }
  if (options.backend_cert.empty() != options.backend_key.empty()) {
    return absl::InvalidArgumentError(
        "backend-cert and backend-key: one does not work without the other");
  }
  return CheckHttpOptions(options.http);
}

}  // namespace weir::server
