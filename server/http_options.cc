#include "server/http_options.h"

#include "server/option_kinds.h"

namespace weir::server {

void AddHttpOptions(gateway::Options* o, std::vector<OptionSpec>* table) {
  table->push_back(Text("http", &o->http,
                        "Address of the OpenAI API and web page, host:port; port 0: any free one; "
                        "\"\": none."));
  table->push_back(
      Text("http-tls-cert", &o->tls_cert, "PEM certificate chain of HTTP; \"\": no TLS."));
  table->push_back(Text("http-tls-key", &o->tls_key, "PEM private key of it."));
  table->push_back(Text("http-client-ca", &o->client_ca,
                        "PEM authorities whose certificate HTTP clients must show; \"\": none."));
  table->push_back(Text("cors", &o->cors,
                        "Origins whose pages may call, parted by commas; *: all; \"\": none."));
  table->push_back(Text("access-log", &o->access_log,
                        "One JSON line per HTTP request: a file, - for stdout, or off."));
  table->push_back(Integer("http-threads", &o->threads, 0, 256,
                           "Threads that carry HTTP connections; 0: one for eight cores, at most "
                           "four."));
  table->push_back(Integer("http-max-connections", &o->max_connections, 1, 1 << 24,
                           "HTTP connections at once; more are refused."));
  table->push_back(Bytes("http-max-header", &o->max_header_bytes, 1024, 1 << 20,
                         "Largest header of an HTTP request."));
  table->push_back(Bytes("http-max-body", &o->max_body_bytes, 1024, 1 << 30,
                         "Largest body of an HTTP request."));
  table->push_back(Bytes("http-max-bodies", &o->max_bodies_bytes, 1024, int64_t{1} << 40,
                         "Bodies in memory, all HTTP requests together; more are refused."));
  table->push_back(Duration("http-header-time", &o->header_us, 10'000,
                            "Time for a client to send a request's header."));
  table->push_back(Duration("http-body-time", &o->body_us, 10'000,
                            "Time for a client to send a request's body."));
  table->push_back(Duration("http-write-time", &o->write_us, 10'000,
                            "Time for a client to take 64 KiB of an answer."));
  table->push_back(Duration("http-idle-time", &o->idle_us, 10'000,
                            "Time after which a connection without requests is closed."));
  table->push_back(Duration("http-comment-time", &o->comment_us, 10'000,
                            "Time between comments that keep a waiting stream open."));
}

absl::Status CheckHttpOptions(const gateway::Options& options) {
  if (!options.http.empty()) RETURN_IF_ERROR(CheckAddress("http", options.http));
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError(
        "http-tls-cert and http-tls-key: TLS needs both; one of them is missing");
  }
  if (!options.client_ca.empty() && options.tls_cert.empty()) {
    return absl::InvalidArgumentError(
        "http-client-ca: client certificates need TLS; give http-tls-cert and http-tls-key too");
  }
  if (options.max_bodies_bytes < options.max_body_bytes) {
    return absl::InvalidArgumentError(
        "http-max-bodies: less than http-max-body, so that the largest body never fits");
  }
  return absl::OkStatus();
}

}  // namespace weir::server
