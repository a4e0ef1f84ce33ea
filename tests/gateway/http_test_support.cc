#include "tests/gateway/http_test_support.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "gtest/gtest.h"

namespace weir::testing {
namespace {

constexpr int kReadMs = 10'000;

// Takes one chunked body from the front of `input`; false: it is not all there.
bool TakeChunks(std::string* input, std::string* body) {
  std::string rest = *input;
  std::string whole;
  while (true) {
    const size_t line = rest.find("\r\n");
    if (line == std::string::npos) return false;
    const size_t size = std::strtoul(rest.c_str(), nullptr, 16);
    if (rest.size() < line + 2 + size + 2) return false;
    whole += rest.substr(line + 2, size);
    rest.erase(0, line + 2 + size + 2);
    if (size == 0) break;
  }
  *input = rest;
  *body = whole;
  return true;
}

}  // namespace

std::string HttpReply::Field(const std::string& name) const {
  const size_t at = head.find("\r\n" + name + ": ");
  if (at == std::string::npos) return "";
  const size_t begin = at + 2 + name.size() + 2;
  return head.substr(begin, head.find("\r\n", begin) - begin);
}

RawClient::RawClient(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
}

RawClient::~RawClient() { Close(); }

void RawClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::CloseSending() { shutdown(fd_, SHUT_WR); }

void RawClient::SetReceiveBuffer(int bytes) {
  setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

bool RawClient::Send(const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t put = send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
    if (put <= 0) return false;
    done += static_cast<size_t>(put);
  }
  return true;
}

bool RawClient::More() {
  pollfd ready{fd_, POLLIN, 0};
  if (poll(&ready, 1, kReadMs) != 1) return false;
  char bytes[65536];
  const ssize_t got = recv(fd_, bytes, sizeof(bytes), 0);
  if (got <= 0) return false;
  input_.append(bytes, static_cast<size_t>(got));
  return true;
}

HttpReply RawClient::Read(bool head_only) {
  HttpReply reply;
  size_t end = 0;
  while ((end = input_.find("\r\n\r\n")) == std::string::npos) {
    if (!More()) return reply;
  }
  reply.head = input_.substr(0, end + 4);
  input_.erase(0, end + 4);
  reply.status = std::atoi(reply.head.c_str() + 9);
  if (reply.Field("Transfer-Encoding") == "chunked") {
    while (!(reply.whole = TakeChunks(&input_, &reply.body))) {
      if (!More()) {
        reply.body = input_;
        break;
      }
    }
    return reply;
  }
  const size_t size =
      head_only ? 0 : std::strtoul(reply.Field("Content-Length").c_str(), nullptr, 10);
  while (input_.size() < size) {
    if (!More()) return reply;
  }
  reply.body = input_.substr(0, size);
  input_.erase(0, size);
  reply.whole = true;
  return reply;
}

bool RawClient::ReadUntil(const std::string& text) {
  while (input_.find(text) == std::string::npos) {
    if (!More()) return false;
  }
  return true;
}

bool RawClient::ClosesWithin(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    pollfd ready{fd_, POLLIN, 0};
    if (left.count() <= 0 || poll(&ready, 1, static_cast<int>(left.count())) != 1) return false;
    char bytes[65536];
    if (recv(fd_, bytes, sizeof(bytes), 0) <= 0) return true;
  }
}

std::string Get(const std::string& path, const std::string& fields) {
  return "GET " + path + " HTTP/1.1\r\nHost: test\r\n" + fields + "\r\n";
}

std::string Post(const std::string& path, const std::string& body, const std::string& fields) {
  return "POST " + path + " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n" + fields +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::string ChatBody(int tokens, bool stream, const std::string& model) {
  return "{\"model\":\"" + model + "\",\"messages\":[{\"role\":\"user\",\"content\":\"secret\"}]," +
         "\"max_tokens\":" + std::to_string(tokens) + (stream ? ",\"stream\":true}" : "}");
}

HttpReply Ask(const std::string& address, const std::string& request) {
  RawClient client(address);
  client.Send(request);
  return client.Read();
}

TestDoor::TestDoor(FakeBackend::Options options, gateway::Options door,
                   gateway::Authorizer* authorizer) {
  backend = std::make_unique<FakeBackend>(std::move(options));
  Start({backend.get()}, std::move(door), authorizer);
}

TestDoor::TestDoor(gateway::Options options, std::vector<FakeBackend*> servers) {
  Start(servers, std::move(options), nullptr);
}

TestDoor::~TestDoor() { gateway.reset(); }

void TestDoor::Start(const std::vector<FakeBackend*>& servers, gateway::Options options,
                     gateway::Authorizer* authorizer) {
  options.http = "127.0.0.1:0";
  gateway::Gateway::Parts parts;
  for (size_t i = 0; i < servers.size(); ++i) {
    parts.backends.push_back({"server" + std::to_string(i), servers[i]->channel()});
  }
  parts.registry = &registry;
  parts.authorizer = authorizer;
  auto started = gateway::Gateway::Start(options, std::move(parts));
  ASSERT_TRUE(started.ok()) << started.status();
  gateway = *std::move(started);
  if (!options.tls_cert.empty()) return;
  EXPECT_TRUE(FakeBackend::WaitFor([this] { return Ask(address(), Get("/ready")).status == 200; }));
}

double TestDoor::Metric(const std::string& series) const {
  std::istringstream lines(registry.Serialize());
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size() + 1));
  }
  return -1;
}

bool TestDoor::AllGone() const {
  return FakeBackend::WaitFor([this] { return Metric("weir_http_connections") == 0; });
}

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace weir::testing
