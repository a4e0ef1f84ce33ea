// WorkPool: threads for text work (templates, tokenizing, detokenizing), so that neither the engine
// thread nor gRPC's threads do any.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weir::server {

class WorkPool {
 public:
  // `num_threads` >= 1. TryAdd refuses when `max_waiting` tasks wait.
  WorkPool(int num_threads, size_t max_waiting);
  ~WorkPool();  // runs what waits, then joins
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // Any thread. Tasks start in order; they must not throw. False: too many wait, `task` is not
  // taken.
  bool TryAdd(std::function<void()> task);
  // The same without a limit, for callers that bound themselves (one task per stream).
  void Add(std::function<void()> task);

  size_t waiting() const;

 private:
  void Loop();

  const size_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace weir::server
