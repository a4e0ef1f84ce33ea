#include "server/listen.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace weir::server {
namespace {

// "[::1]:80" -> {"::1", "80"}.
std::pair<std::string, std::string> Split(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return {address, ""};
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return {host, address.substr(colon + 1)};
}

// 0, or the errno of trying.
int TryBind(const addrinfo& info) {
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));  // not refused by old connections
  int error = bind(fd, info.ai_addr, info.ai_addrlen) == 0 ? 0 : errno;
  if (error == 0 && listen(fd, 1) != 0) error = errno;
  close(fd);
  return error;
}

}  // namespace

absl::Status CheckCanListen(const std::string& what, const std::string& address) {
  const auto [host, port] = Split(address);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (code != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve ", what, " on ", address, ": ", gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(found, freeaddrinfo);
  const int error = TryBind(*list);
  switch (error) {
    case 0:
      return absl::OkStatus();
    case EADDRINUSE:
      return absl::UnavailableError(absl::StrCat("cannot serve ", what, " on ", address,
                                                 ": another process listens there; stop it, choose "
                                                 "another port, or port 0 for any free one"));
    case EADDRNOTAVAIL:
      return absl::UnavailableError(absl::StrCat("cannot serve ", what, " on ", address,
                                                 ": that is no address of this machine"));
    case EACCES:
      return absl::UnavailableError(
          absl::StrCat("cannot serve ", what, " on ", address,
                       ": not allowed; ports below 1024 need privileges"));
    default:
      return absl::UnavailableError(
          absl::StrCat("cannot serve ", what, " on ", address, ": ", std::strerror(error)));
  }
}

std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

}  // namespace weir::server
