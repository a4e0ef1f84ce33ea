// The whole server in one object: model, text, scheduler, metrics, gRPC. `weir serve` listens with
// it; generate and chat use it inside their own process, so there is one path to the model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/clock.h"
#include "core/status.h"
#include "metrics/registry.h"
#include "model/model.h"
#include "scheduler/scheduler.h"
#include "server/options.h"
#include "server/served_model.h"
#include "server/server.h"

namespace weir::server {

class Stack {
 public:
  // Loads options.model and starts everything; with an empty options.grpc without a port.
  // `progress` (may be empty) is called while weights load, from any thread.
  static absl::StatusOr<std::unique_ptr<Stack>> Start(
      const ServerOptions& options,
      std::function<void(int64_t bytes_done, int64_t bytes_total, int tensors_done)> progress);
  ~Stack();  // in the reverse order of construction

  const model::ModelInfo& info() const { return model_->info(); }
  const ServedModel& served() const { return served_; }
  metrics::Registry& registry() { return registry_; }
  Server& server() { return *server_; }
  double load_seconds() const { return load_seconds_; }

 private:
  Stack() = default;

  SteadyClock clock_;
  metrics::Registry registry_;
  std::unique_ptr<model::LoadedModel> model_;
  ServedModel served_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::unique_ptr<Server> server_;
  double load_seconds_ = 0;
};

// What the model folder says, for the loader.
absl::StatusOr<model::LoadOptions> ToLoadOptions(const ServerOptions& options);

}  // namespace weir::server
