#include "server/commands/ready_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace weir::server {

absl::Status ReadyFile::CheckWritable(const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  if (access(folder.c_str(), W_OK) == 0) return absl::OkStatus();
  const std::string sentence = absl::StrCat("cannot write the ready file ", path, ": folder ",
                                            folder, ": ", std::strerror(errno));
  return errno == ENOENT ? absl::NotFoundError(sentence) : absl::PermissionDeniedError(sentence);
}

absl::Status ReadyFile::Write(const std::string& path, const Addresses& addresses) {
  if (path.empty()) return absl::OkStatus();
  nlohmann::ordered_json json;
  const auto put = [&json](const char* name, const std::string& address) {
    if (address.empty()) {
      json[name] = nullptr;
    } else {
      json[name] = address;
    }
  };
  put("grpc", addresses.grpc);
  put("http", addresses.http);
  put("metrics", addresses.metrics);
  json["pid"] = getpid();
  const std::string next = absl::StrCat(path, ".", getpid(), ".tmp");
  std::ofstream file(next, std::ios::trunc);
  file << json.dump() << "\n";
  file.close();
  // Readers see the old file or the whole new one.
  if (!file || std::rename(next.c_str(), path.c_str()) != 0) {
    std::remove(next.c_str());
    return absl::UnavailableError(
        absl::StrCat("cannot write the ready file ", path, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

void ReadyFile::Remove(const std::string& path) {
  if (!path.empty()) std::remove(path.c_str());
}

}  // namespace weir::server
