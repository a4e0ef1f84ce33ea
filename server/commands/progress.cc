#include "server/commands/progress.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <utility>

#include "core/bytes.h"

namespace weir::server {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

struct Progress::State {
  std::string model;
  bool terminal = false;
  Clock::time_point start = Clock::now();

  std::mutex mutex;
  double shown_at = 0;  // seconds after the start
  int64_t bytes_total = 0;
  int tensors = 0;

  void Update(int64_t bytes_done, int64_t total, int tensors_done) {
    std::lock_guard<std::mutex> lock(mutex);
    bytes_total = total;
    tensors = std::max(tensors, tensors_done);
    const double now = SecondsSince(start);
    if (now - shown_at < (terminal ? 0.1 : 5.0)) return;
    shown_at = now;
    std::fprintf(stderr, "%sloading %s: %s of %s, %d tensors, %.1f s%s", terminal ? "\r" : "",
                 model.c_str(), FormatBytes(bytes_done).c_str(), FormatBytes(total).c_str(),
                 tensors, now, terminal ? "\033[K" : "\n");
    std::fflush(stderr);
  }
};

Progress::Progress(std::string model) : state_(std::make_unique<State>()) {
  state_->model = std::move(model);
  state_->terminal = isatty(STDERR_FILENO) != 0;
}

Progress::~Progress() = default;

std::function<void(int64_t, int64_t, int)> Progress::Callback() {
  return [state = state_.get()](int64_t done, int64_t total, int tensors) {
    state->Update(done, total, tensors);
  };
}

void Progress::Done(double seconds) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::fprintf(stderr, "%sloaded %s: %s in %d tensors, %.2f s%s\n", state_->terminal ? "\r" : "",
               state_->model.c_str(), FormatBytes(state_->bytes_total).c_str(), state_->tensors,
               seconds, state_->terminal ? "\033[K" : "");
}

}  // namespace weir::server
