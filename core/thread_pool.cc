#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>

#include "core/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace weir {
namespace {

constexpr int kTaskBits = 40;
constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;
// A worker spins this long for the next region before it sleeps: longer than the gap between two
// ops of a step, shorter than anything a person or a power meter notices.
constexpr auto kSpin = std::chrono::microseconds(200);

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(std::max(1, num_threads)) {
  for (int i = 1; i < num_threads_; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(int64_t num_tasks, TaskFn call, const void* fn) {
  if (num_tasks <= 0) return;
  if (num_threads_ == 1 || num_tasks == 1) {
    for (int64_t i = 0; i < num_tasks; ++i) call(fn, i);
    return;
  }
  WEIR_CHECK(static_cast<uint64_t>(num_tasks) <= kTaskMask) << num_tasks << " tasks";
  // Close the previous region, then wait for whoever may still look at it: a worker that announces
  // itself after this finds no ticket of its epoch and reads no field.
  ticket_.store(0, std::memory_order_seq_cst);
  while (active_workers_.load(std::memory_order_seq_cst) != 0) Pause();
  uint64_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  // A region whose ticket begins at 0 could not be told from none, and its workers would go on after
  // its end.
  if (epoch << kTaskBits == 0) ++epoch;
  call_ = call;
  fn_ = fn;
  num_tasks_ = num_tasks;
  unfinished_.store(num_tasks, std::memory_order_relaxed);
  ticket_.store(epoch << kTaskBits, std::memory_order_release);
  epoch_.store(epoch, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  Drain(epoch);
  while (unfinished_.load(std::memory_order_acquire) != 0) Pause();
}

void ThreadPool::Drain(uint64_t epoch) {
  const uint64_t tag = epoch << kTaskBits;
  for (;;) {
    uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
    if ((ticket & ~kTaskMask) != tag || static_cast<int64_t>(ticket & kTaskMask) >= num_tasks_) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    call_(fn_, static_cast<int64_t>(ticket & kTaskMask));
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void ThreadPool::WorkerLoop() {
  uint64_t seen = kFirstEpoch;
  for (;;) {
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    int spins = 0;
    while (epoch_.load(std::memory_order_acquire) == seen && !stop_.load(std::memory_order_relaxed)) {
      Pause();
      if (++spins % 64 == 0 && std::chrono::steady_clock::now() > give_up) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return stop_.load() || epoch_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    // Announce first, then read the epoch: Run waits for announced workers before it changes a region.
    active_workers_.fetch_add(1, std::memory_order_seq_cst);
    seen = epoch_.load(std::memory_order_seq_cst);
    Drain(seen);
    active_workers_.fetch_sub(1, std::memory_order_release);
  }
}

int UsableCores() {
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = std::max(1, CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0) {
    const int limit = static_cast<int>(std::stod(quota) / period + 0.5);
    cores = std::clamp(limit, 1, cores);
  }
  return cores;
}

}  // namespace weir
