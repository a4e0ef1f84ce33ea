// Progress of loading, on stderr: one line that moves on a terminal, a line now and then elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace weir::server {

class Progress {
 public:
  explicit Progress(std::string model);
  ~Progress();

  // For the loader; any thread. Lives as long as this object.
  std::function<void(int64_t bytes_done, int64_t bytes_total, int tensors_done)> Callback();
  // The last line: what was loaded, and in what time.
  void Done(double seconds);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weir::server
