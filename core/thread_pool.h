// ThreadPool: fork-join over a fixed set of threads, for kernels.
//
// One ParallelFor at a time, from one caller thread (the executor's); the caller works too, so a
// pool of n threads keeps n - 1 workers. Workers spin briefly between regions (decode steps are
// hundreds of short regions) and then sleep on a condition variable; an idle pool uses no CPU.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace weir {

class ThreadPool {
 public:
  // `num_threads` >= 1; 1 runs everything on the caller.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls fn(task) for every task in [0, num_tasks), each exactly once, on any thread of the pool;
  // returns when all are done. Tasks are handed out one by one: make them coarse enough (>= ~2 us).
  // `fn` must not throw and must not call ParallelFor.
  template <typename Fn>
  void ParallelFor(int64_t num_tasks, const Fn& fn) {
    Run(num_tasks, [](const void* f, int64_t task) { (*static_cast<const Fn*>(f))(task); }, &fn);
  }

  // Splits [0, n) into at most num_threads contiguous ranges of at least `min_per_range` and calls
  // fn(begin, end) for each. The split depends on n, min_per_range and num_threads only.
  template <typename Fn>
  void ParallelRanges(int64_t n, int64_t min_per_range, const Fn& fn) {
    if (n <= 0) return;
    int64_t ranges = n / (min_per_range > 0 ? min_per_range : 1);
    if (ranges > num_threads_) ranges = num_threads_;
    if (ranges <= 1) {
      fn(int64_t{0}, n);
      return;
    }
    ParallelFor(ranges, [&](int64_t r) { fn(n * r / ranges, n * (r + 1) / ranges); });
  }

 private:
  using TaskFn = void (*)(const void* fn, int64_t task);
  void Run(int64_t num_tasks, TaskFn call, const void* fn);
  void WorkerLoop();
  void Drain(uint64_t epoch);

  const int num_threads_;
  std::vector<std::thread> workers_;

  // The current region, written by Run before `epoch_` moves on.
  TaskFn call_ = nullptr;
  const void* fn_ = nullptr;
  int64_t num_tasks_ = 0;
  // High 24 bits: epoch of the region the ticket belongs to; low 40 bits: next task. 0: no region.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> unfinished_{0};
  std::atomic<int> active_workers_{0};
  // Regions so far. Begins shortly before its 24 bits in the ticket wrap around, which a server
  // reaches in minutes and a test would not.
  static constexpr uint64_t kFirstEpoch = (uint64_t{1} << 24) - 500;
  std::atomic<uint64_t> epoch_{kFirstEpoch};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Cores this process may use (affinity mask and cgroup quota respected), at least 1.
int UsableCores();

}  // namespace weir
