// --ready-file: tells whoever started the server that it is ready, and where it listens.
#pragma once

#include <string>

#include "core/status.h"

namespace weir::server {

class ReadyFile {
 public:
  // NOT_FOUND or PERMISSION_DENIED: the file's folder is not there or cannot be written. An empty
  // path is no file.
  static absl::Status CheckWritable(const std::string& path);

  // Where a server listens, "host:port"; empty: it does not.
  struct Addresses {
    std::string grpc, http, metrics;
  };
  // Writes {"grpc": ADDRESS or null, "http": ..., "metrics": ..., "pid": N} at once and whole.
  // Nothing without a path.
  static absl::Status Write(const std::string& path, const Addresses& addresses);
  // The server is not ready any more.
  static void Remove(const std::string& path);
};

}  // namespace weir::server
