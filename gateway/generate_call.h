// GenerateCall: one Generate call on a backend. gRPC's threads bring the events, one other thread
// takes them out, many at a time.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gateway/backends.h"
#include "weir/v1/generate.grpc.pb.h"

namespace weir::gateway {

using CallMetadata = std::vector<std::pair<std::string, std::string>>;

class GenerateCall final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  // Starts. `ready` is called when Take has something to give, once until then; on any thread, also
  // from inside this function; it must not wait.
  static std::shared_ptr<GenerateCall> Start(std::shared_ptr<Backend> backend,
                                             const v1::GenerateRequest& request,
                                             const CallMetadata& metadata,
                                             std::function<void()> ready);
  ~GenerateCall() override;

  // Appends what has arrived to `events`. True: that was all, the call has ended with status().
  bool Take(std::vector<v1::GenerateEvent>* events);
  // REQUIRES: Take returned true.
  const grpc::Status& status() const { return status_; }
  // Any event has arrived at all: it cannot be asked for again elsewhere.
  bool begun() const { return begun_; }
  const Backend* backend() const { return backend_.get(); }

  // Ends the call as soon as possible. `ready` is not called any more once this has returned.
  void Cancel();

 private:
  GenerateCall(std::shared_ptr<Backend> backend, std::function<void()> ready);
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void Count(const v1::GenerateEvent& event);
  // REQUIRES: mutex_ held, so that Cancel can promise that `ready` is not called later.
  void Notify();
  void Resume();

  const std::shared_ptr<Backend> backend_;
  const std::unique_ptr<v1::GenerationService::Stub> stub_;
  grpc::ClientContext context_;
  v1::GenerateEvent event_;             // being read
  int64_t reserved_tokens_ = 0;         // counted at the backend; of gRPC's threads once it runs
  std::shared_ptr<GenerateCall> self_;  // until gRPC is done with it

  std::mutex mutex_;
  std::function<void()> ready_;  // empty: cancelled
  std::vector<v1::GenerateEvent> arrived_;
  bool notified_ = false, paused_ = false, ended_ = false;
  grpc::Status status_;
  bool begun_ = false;  // of the taker's thread
};

}  // namespace weir::gateway
