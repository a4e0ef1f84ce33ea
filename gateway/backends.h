// The servers behind the gateway: which of them are healthy, what they serve, and who gets the next
// call.
//
// Each has one channel, watched through grpc.health.v1. A backend that turns healthy is asked for
// its model; it takes calls once that is known. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/openai/call.h"

namespace grpc {
class Channel;
}

namespace weir::gateway {

class HttpMetrics;

class Backend {
 public:
  Backend(std::string address, std::shared_ptr<grpc::Channel> channel);
  ~Backend();

  const std::string& address() const { return address_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // Null: it is not healthy, or its model is not known yet.
  std::shared_ptr<const ModelFacts> facts() const;
  // Tokens that calls in flight may still take.
  std::atomic<int64_t> outstanding_tokens{0};

 private:
  friend class Backends;

  const std::string address_;
  const std::shared_ptr<grpc::Channel> channel_;
  mutable std::mutex mutex_;
  bool healthy_ = false, was_healthy_ = false;
  std::shared_ptr<const ModelFacts> facts_;  // the last that were told
};

class Backends {
 public:
  struct Target {
    std::string address;  // for people: in logs and metrics
    std::shared_ptr<grpc::Channel> channel;
  };
  // Begins to watch. `metrics` outlives it and may be null.
  Backends(std::vector<Target> targets, HttpMetrics* metrics);
  // Ends the watching; calls must have ended.
  ~Backends();
  Backends(const Backends&) = delete;
  Backends& operator=(const Backends&) = delete;

  // Different models served now, one of each, in the order of the targets.
  std::vector<std::shared_ptr<const ModelFacts>> Models() const;
  // Every one has been healthy, and none is now.
  bool lost() const;
  bool ready() const { return !Models().empty(); }

  // The healthy backend with the model `id` that has the fewest outstanding tokens, other than
  // `tried`; null: none.
  std::shared_ptr<Backend> Pick(const std::string& id,
                                const std::vector<const Backend*>& tried) const;

 private:
  class Watcher;

  std::vector<std::shared_ptr<Backend>> backends_;
  std::vector<std::shared_ptr<Watcher>> watchers_;
  mutable std::atomic<uint32_t> next_{0};  // among equals
};

}  // namespace weir::gateway
