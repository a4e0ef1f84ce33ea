// WorkPool: threads for text work (templates, tokenizing, detokenizing), so that neither the engine
// thread nor gRPC's threads do any.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weir::server {

class WorkPool {
 public:
  // `num_threads` >= 1. TryAdd refuses when `max_waiting` tasks wait, or tasks that hold
  // `max_waiting_bytes`.
  WorkPool(int num_threads, size_t max_waiting, size_t max_waiting_bytes = SIZE_MAX);
  ~WorkPool();  // runs what waits, then joins
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // Any thread. Tasks start in order; they must not throw. `bytes`: what the task holds while it
  // waits; one that is larger than the bound is taken when no other waits. False: too many wait,
  // `task` is not taken.
  bool TryAdd(std::function<void()> task, size_t bytes = 0);
  // The same without a limit, for callers that bound themselves (one task per stream).
  void Add(std::function<void()> task);

  size_t waiting() const;

 private:
  void Loop();

  struct Task {
    std::function<void()> run;
    size_t bytes = 0;
  };

  const size_t max_waiting_;
  const size_t max_waiting_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  size_t waiting_bytes_ = 0;  // of tasks_
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace weir::server
