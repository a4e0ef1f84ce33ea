// Masks of constrained sequences, made beside the running step: when a token is committed, a thread
// of the pool takes it over and makes the mask of the next one, while the model already runs the
// step that will choose it. The executor waits for the mask just before it chooses.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/types/span.h"
#include "scheduler/executor.h"
#include "scheduler/token_constraint.h"

namespace weir::scheduler {

class MaskPool;
class SchedulerMetrics;

// The masks of one sequence, one after another. The engine calls Begin, Advance and Close; the
// executor Await.
class SequenceMask final : public PendingMask, public std::enable_shared_from_this<SequenceMask> {
 public:
  struct Limits {
    int32_t vocab = 0;
    int32_t min_tokens = 0;  // below it `stop_ids` are not chosen, unless nothing else can be
    std::vector<int32_t> stop_ids;  // sorted or not
  };
  // `pool` outlives it.
  SequenceMask(std::shared_ptr<const ConstraintSource> source, Limits limits, MaskPool* pool);
  ~SequenceMask() override;

  // Asks for the mask of the first token. Once.
  void Begin();
  // The token of the last mask was `token`: asks for the next. REQUIRES: that mask was awaited.
  void Advance(int32_t token);
  // Nothing more is chosen: whoever waits goes on. From now on Begin and Advance do nothing.
  void Close();

  absl::Span<const uint32_t> Await(uint64_t draw) override;

 private:
  friend class MaskPool;
  // Pool's threads, one at a time.
  void Make();
  bool Fill();

  const std::shared_ptr<const ConstraintSource> source_;
  const Limits limits_;
  MaskPool* const pool_;
  std::unique_ptr<TokenConstraint> constraint_;  // of the thread in Make
  std::vector<uint32_t> mask_;                   // written by Make, read between made_ and Advance
  std::vector<uint32_t> stops_;                  // bits of stop_ids; Make's
  bool failed_ = false;                          // Make's

  std::mutex mutex_;  // guards what follows
  std::condition_variable ready_;
  int64_t asked_ = 0;   // masks
  int64_t made_ = 0;    // of them
  int32_t token_ = -1;  // that led to the mask asked for last; -1: the first
  bool closed_ = false;
};

// Threads that make masks. Each sequence waits here at most once.
class MaskPool {
 public:
  // 0 threads: Add makes the mask itself (simulations). Threads start with the first Add.
  MaskPool(int32_t num_threads, SchedulerMetrics* metrics);
  ~MaskPool();  // makes what waits, then joins
  MaskPool(const MaskPool&) = delete;
  MaskPool& operator=(const MaskPool&) = delete;

  void Add(std::shared_ptr<SequenceMask> mask);  // the engine's thread

 private:
  void Loop();
  void Make(SequenceMask& mask);

  const int32_t num_threads_;
  SchedulerMetrics* const metrics_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<SequenceMask>> waiting_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace weir::scheduler
