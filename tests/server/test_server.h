// A whole server on a fake executor, reached in-process: services, scheduler, metrics.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "metrics/registry.h"
#include "scheduler/scheduler.h"
#include "server/options.h"
#include "server/served_model.h"
#include "server/server.h"
#include "tests/support/fake_executor.h"
#include "tests/support/raw_call.h"
#include "weir/v1/generate.grpc.pb.h"

namespace weir::testing {

// One call, gathered.
struct Gathered {
  grpc::Status status;
  std::vector<v1::GenerateEvent> events;
  v1::Accepted accepted;
  v1::Finished finished;
  struct Choice {
    std::vector<int32_t> ids;
    std::string text;
    v1::Logprobs logprobs;
    v1::ChoiceFinished finished;
  };
  std::vector<Choice> choices;
  v1::Logprobs prompt_logprobs;
};

class TestServer {
 public:
  struct Options {
    server::ServedModel model;
    server::ServerOptions server;
    int64_t step_us = 0;  // how long a step takes
    bool listen = false;  // also on a socket: server().address()
  };
  explicit TestServer(Options options);
  ~TestServer();

  std::shared_ptr<grpc::Channel> channel() { return channel_; }
  v1::GenerationService::Stub& generation() { return *generation_; }
  scheduler::Scheduler& scheduler() { return *scheduler_; }
  server::Server& server() { return *server_; }
  metrics::Registry& registry() { return registry_; }
  const server::ServedModel& model() const { return options_.model; }

  Gathered Generate(const v1::GenerateRequest& request, grpc::ClientContext* rpc = nullptr);
  // Waits until nothing runs, then checks that no slot and no page is left in use.
  void ExpectNothingHeld();

 private:
  Options options_;
  SteadyClock clock_;
  metrics::Registry registry_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::unique_ptr<server::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
};

// grpc.health.v1: whether `service` ("": the server) is SERVING.
bool IsServing(const std::shared_ptr<grpc::Channel>& channel, const std::string& service);

// A request of ids that the fake answers with `max_tokens` tokens.
v1::GenerateRequest IdsRequest(const std::vector<int32_t>& ids, int max_tokens);

// The detail of type `Detail` in a status; false: it has none.
template <typename Detail>
bool GetDetail(const grpc::Status& status, Detail* detail);

}  // namespace weir::testing
