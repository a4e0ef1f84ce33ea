// A weir.v1 server without a model: emits tokens at a fixed rate, all streams together as the steps
// of a real engine do, and misbehaves on demand. For tests and measurements of the gateway.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace weir::testing {

class FakeBackend {
 public:
  struct Options {
    std::string model = "fake";
    double tokens_per_s = 0;  // of each stream; 0: as fast as they are read
    // Streams take turns within a period, as those of many servers would; 1: all at once.
    int phases = 1;
    int default_tokens = 4;  // where the request does not say max_tokens
    // The text of a token, at the moment it is written; empty: "w<index> ".
    std::function<std::string(int index)> text;
    bool listen = false;  // on a port of 127.0.0.1; else only channel() leads here
  };
  explicit FakeBackend(Options options);
  ~FakeBackend();

  std::shared_ptr<grpc::Channel> channel();
  const std::string& address() const;  // "127.0.0.1:PORT"; empty: does not listen

  void SetServing(bool serving);
  // The next call ends with `status` after `events` events.
  void FailNext(const grpc::Status& status, int events);

  int64_t started() const;
  int64_t running() const;    // Generate calls that have not ended
  int64_t cancelled() const;  // that the client ended
  // Of the last Generate call.
  std::multimap<std::string, std::string> last_metadata() const;
  // Waits until `what` holds, at most 10 seconds; false: it never did.
  static bool WaitFor(const std::function<bool()>& what);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir::testing
