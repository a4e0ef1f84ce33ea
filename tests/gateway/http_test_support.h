// The HTTP door over fake servers, and clients made of bare sockets.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gateway/gateway.h"
#include "gateway/options.h"
#include "metrics/registry.h"
#include "tests/gateway/fake_backend.h"

namespace weir::testing {

struct HttpReply {
  int status = 0;          // 0: there was none
  std::string head, body;  // the body without its chunks
  bool whole = false;      // it came to its end
  // A field's value; "" when it is not there. `name` as it is written.
  std::string Field(const std::string& name) const;
};

// A connection of the test's own making. Reading gives up after 10 seconds.
class RawClient {
 public:
  explicit RawClient(const std::string& address);
  ~RawClient();
  RawClient(const RawClient&) = delete;

  // False: the other side has closed.
  bool Send(const std::string& bytes);
  void CloseSending();
  void Close();
  // The next answer; `head_only` for the answer to HEAD.
  HttpReply Read(bool head_only = false);
  // Reads until `text` has come; false: the end or the time-out came first.
  bool ReadUntil(const std::string& text);
  // Whether the server closes, within `limit`. What it sends until then is dropped.
  bool ClosesWithin(std::chrono::milliseconds limit);
  void SetReceiveBuffer(int bytes);

 private:
  bool More();
  int fd_ = -1;
  std::string input_;
};

std::string Get(const std::string& path, const std::string& fields = "");
std::string Post(const std::string& path, const std::string& body, const std::string& fields = "");
// A chat of `tokens` tokens.
std::string ChatBody(int tokens, bool stream, const std::string& model = "fake");

// One request on a connection of its own.
HttpReply Ask(const std::string& address, const std::string& request);

struct TestDoor {
  explicit TestDoor(FakeBackend::Options backend = {}, gateway::Options options = {},
                    gateway::Authorizer* authorizer = nullptr);
  // Over several servers, in this order.
  TestDoor(gateway::Options options, std::vector<FakeBackend*> servers);
  ~TestDoor();

  const std::string& address() const { return gateway->address(); }
  double Metric(const std::string& series) const;  // -1: it is not there
  // Waits until no connection is left.
  bool AllGone() const;

  metrics::Registry registry;
  std::unique_ptr<FakeBackend> backend;  // null with several
  std::unique_ptr<gateway::Gateway> gateway;

 private:
  void Start(const std::vector<FakeBackend*>& servers, gateway::Options options,
             gateway::Authorizer* authorizer);
};

int64_t ResidentBytes();  // of this process

}  // namespace weir::testing
