#include "model/executor.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "kernels/copy.h"

namespace weir::model {
namespace {

using scheduler::SequenceInput;
using scheduler::StepPlan;
using scheduler::StepResult;

class CpuExecutor final : public scheduler::Executor {
 public:
  CpuExecutor(StepRunner runner, Stream stream)
      : runner_(std::move(runner)), stream_(stream), thread_([this] { Loop(); }) {}

  ~CpuExecutor() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    work_.notify_one();
    thread_.join();
  }

  const scheduler::ExecutorLimits& limits() const override { return runner_.limits(); }

  void Submit(const StepPlan& plan) override {
    WEIR_CHECK(!plan.sequences.empty()) << "an empty step";
    std::unique_lock lock(mutex_);
    WEIR_CHECK(in_flight_ < kMaxInFlight) << in_flight_ << " steps in flight";
    ++in_flight_;
    Job job;
    job.sequences = plan.sequences;
    Enqueue(std::move(job));
  }

  StepResult Wait() override {
    std::unique_lock lock(mutex_);
    WEIR_CHECK(in_flight_ > 0) << "no step in flight";
    done_.wait(lock, [this] { return !results_.empty(); });
    StepResult result = std::move(results_.front());
    results_.pop_front();
    --in_flight_;
    return result;
  }

  void Copy(absl::Span<const std::pair<int32_t, int32_t>> slots,
            absl::Span<const std::pair<int32_t, int32_t>> pages) override {
    Job job;
    for (const auto& [from, to] : slots) job.slots.push_back({from, to});
    for (const auto& [from, to] : pages) job.pages.push_back({from, to});
    std::lock_guard lock(mutex_);
    Enqueue(std::move(job));
  }

  void CopyOut(int32_t slot, absl::Span<const int32_t> pages, std::byte* to) override {
    WaitIdle();
    const StateMemory& state = runner_.state();
    std::memcpy(to, state.slots + slot * state.slot_bytes, static_cast<size_t>(state.slot_bytes));
    to += state.slot_bytes;
    for (const int32_t page : pages) {
      std::memcpy(to, state.pages + page * state.page_bytes, static_cast<size_t>(state.page_bytes));
      to += state.page_bytes;
    }
  }

  void CopyIn(int32_t slot, absl::Span<const int32_t> pages, const std::byte* from) override {
    WaitIdle();
    const StateMemory& state = runner_.state();
    std::memcpy(state.slots + slot * state.slot_bytes, from, static_cast<size_t>(state.slot_bytes));
    from += state.slot_bytes;
    for (const int32_t page : pages) {
      std::memcpy(state.pages + page * state.page_bytes, from,
                  static_cast<size_t>(state.page_bytes));
      from += state.page_bytes;
    }
  }

 private:
  // A step, or copies.
  struct Job {
    std::vector<SequenceInput> sequences;
    std::vector<kernels::BlockCopy> slots, pages;
  };

  // REQUIRES: mutex_ held.
  void Enqueue(Job job) {
    jobs_.push_back(std::move(job));
    work_.notify_one();
  }

  void WaitIdle() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return jobs_.empty() && !busy_; });
  }

  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (jobs_.empty()) return;  // stopped, and nothing is left to do
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      busy_ = true;
      lock.unlock();
      StepResult result;
      if (!job.sequences.empty()) {
        result = runner_.Run(job.sequences);
      } else {
        const StateMemory& state = runner_.state();
        kernels::CopyBlocks(state.slots, state.slot_bytes, job.slots, stream_);
        if (!job.pages.empty()) {
          kernels::CopyBlocks(state.pages, state.page_bytes, job.pages, stream_);
        }
      }
      lock.lock();
      busy_ = false;
      if (!job.sequences.empty()) results_.push_back(std::move(result));
      done_.notify_all();
    }
  }

  StepRunner runner_;
  const Stream stream_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Job> jobs_;
  std::deque<StepResult> results_;
  int in_flight_ = 0;
  bool busy_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<scheduler::Executor> MakeExecutor(StepRunner runner, Stream stream) {
  return std::make_unique<CpuExecutor>(std::move(runner), stream);
}

}  // namespace weir::model
