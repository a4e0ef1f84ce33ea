#include "scheduler/mask_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/check.h"
#include "scheduler/scheduler_metrics.h"

namespace weir::scheduler {

SequenceMask::SequenceMask(std::shared_ptr<const ConstraintSource> source, Limits limits,
                           MaskPool* pool)
    : source_(std::move(source)), limits_(std::move(limits)), pool_(pool) {}

SequenceMask::~SequenceMask() = default;

void SequenceMask::Begin() { Advance(-1); }

void SequenceMask::Advance(int32_t token) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    WEIR_CHECK(asked_ == made_ && (token < 0) == (asked_ == 0))
        << asked_ << " masks asked for, " << made_ << " made, then token " << token;
    token_ = token;
    ++asked_;
  }
  pool_->Add(shared_from_this());
}

void SequenceMask::Close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  ready_.notify_all();
}

absl::Span<const uint32_t> SequenceMask::Await(uint64_t draw) {
  std::unique_lock lock(mutex_);
  ready_.wait(lock, [&] { return closed_ || made_ > static_cast<int64_t>(draw); });
  if (closed_) return {};
  WEIR_CHECK(made_ == static_cast<int64_t>(draw) + 1) << "mask " << draw << " of " << made_;
  return mask_;
}

void SequenceMask::Make() {
  int32_t token = -1;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    token = token_;
  }
  if (token < 0) {
    const auto words = static_cast<size_t>((limits_.vocab + 31) / 32);
    mask_.resize(words);
    stops_.resize(words);
    for (const int32_t id : limits_.stop_ids) {
      stops_[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
    }
    constraint_ = source_->Start();
    failed_ = constraint_ == nullptr;
  } else if (!failed_) {
    failed_ = !constraint_->Accept(token);
  }
  failed_ = failed_ || !Fill();
  // Then nothing can be chosen.
  if (failed_) std::fill(mask_.begin(), mask_.end(), 0);
  {
    std::lock_guard lock(mutex_);
    ++made_;
  }
  ready_.notify_all();
}

bool SequenceMask::Fill() {
  if (!constraint_->FillMask(absl::MakeSpan(mask_))) return false;
  if (made_ >= limits_.min_tokens) return true;
  uint32_t others = 0;
  for (size_t i = 0; i < mask_.size(); ++i) others |= mask_[i] & ~stops_[i];
  if (others == 0) return true;  // the answer is complete: it ends, however short
  for (size_t i = 0; i < mask_.size(); ++i) mask_[i] &= ~stops_[i];
  return true;
}

MaskPool::MaskPool(int32_t num_threads, SchedulerMetrics* metrics)
    : num_threads_(num_threads), metrics_(metrics) {}

MaskPool::~MaskPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void MaskPool::Add(std::shared_ptr<SequenceMask> mask) {
  if (num_threads_ == 0) return Make(*mask);
  while (std::ssize(threads_) < num_threads_) threads_.emplace_back([this] { Loop(); });
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(mask));
  }
  wake_.notify_one();
}

void MaskPool::Make(SequenceMask& mask) {
  const auto begin = std::chrono::steady_clock::now();
  mask.Make();
  metrics_->OnMask(std::chrono::duration_cast<std::chrono::microseconds>(
                       std::chrono::steady_clock::now() - begin)
                       .count());
}

void MaskPool::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    std::shared_ptr<SequenceMask> mask = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    Make(*mask);
    mask = nullptr;  // what it holds goes before the lock is taken
    lock.lock();
  }
}

}  // namespace weir::scheduler
