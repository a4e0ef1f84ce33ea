// Settings of the HTTP door, the same in `weir serve` and `weir gateway`.
#pragma once

#include <cstdint>
#include <string>

namespace weir::gateway {

struct Options {
  std::string http = "127.0.0.1:8080";  // host:port; port 0: any free one; empty: no door

  // TLS: both or none of certificate and key (PEM files). With a client CA only clients whose
  // certificate it signed are let in.
  std::string tls_cert, tls_key, client_ca;
  std::string cors;                // "https://a.example,https://b.example" or "*"; empty: none
  std::string access_log = "off";  // "off", "-" (stdout) or a file

  int64_t threads = 0;  // that carry connections; 0: one for eight cores, at most four
  int64_t max_connections = 16384;
  int64_t max_header_bytes = 32 << 10;
  int64_t max_body_bytes = 16 << 20;
  int64_t max_bodies_bytes = 256 << 20;  // all requests together

  int64_t header_us = 10'000'000;   // from the first byte of a request to the end of its header
  int64_t body_us = 60'000'000;     // from there to the end of its body
  int64_t write_us = 30'000'000;    // for a client to take 64 KiB of an answer
  int64_t idle_us = 75'000'000;     // between two requests of a connection
  int64_t comment_us = 10'000'000;  // between keep-alive comments in a stream that waits
};

}  // namespace weir::gateway
