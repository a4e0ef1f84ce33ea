// How a server hears that it should end, or read its settings again.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace weir::server {

// SIGTERM and SIGINT, taken by a thread of their own. While starting the first one ends the
// process: there is nothing to drain. After Ready() the first one asks for an orderly end, the
// second ends it. SIGHUP asks to read settings again.
class StopSignals {
 public:
  // Blocks the signals for this thread and all that it starts. `command` is who says that it ends:
  // "weir serve".
  explicit StopSignals(const std::string& command);

  void Ready();
  // The first signal after Ready() that ends; `on_hangup` runs for every SIGHUP before.
  int Wait(const std::function<void()>& on_hangup);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace weir::server
