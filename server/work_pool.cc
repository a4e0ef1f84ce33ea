#include "server/work_pool.h"

#include <algorithm>
#include <utility>

namespace weir::server {

WorkPool::WorkPool(int num_threads, size_t max_waiting, size_t max_waiting_bytes)
    : max_waiting_(max_waiting), max_waiting_bytes_(max_waiting_bytes) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Loop(); });
}

WorkPool::~WorkPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkPool::TryAdd(std::function<void()> task, size_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tasks_.size() >= max_waiting_) return false;
    const size_t left = max_waiting_bytes_ - std::min(waiting_bytes_, max_waiting_bytes_);
    if (waiting_bytes_ > 0 && bytes > left) return false;
    tasks_.push_back({std::move(task), bytes});
    waiting_bytes_ += bytes;
  }
  wake_.notify_one();
  return true;
}

void WorkPool::Add(std::function<void()> task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back({std::move(task), 0});
  }
  wake_.notify_one();
}

size_t WorkPool::waiting() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return tasks_.size();
}

void WorkPool::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front().run);
    waiting_bytes_ -= tasks_.front().bytes;
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it holds goes before the lock is taken
    lock.lock();
  }
}

}  // namespace weir::server
