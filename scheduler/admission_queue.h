// AdmissionQueue: requests that wait for memory, in the order in which they are considered: higher
// priority first, then first come, first served. Its bounds are kept at the door (mailbox.h).
//
// Nothing waits for ever. Two rules, both counted here and documented in docs/scheduler.md:
//   * a request that does not fit yet may be passed by later ones that do, kMaxPasses times;
//   * of those waiting, the one that came first may be overtaken by later ones (of higher priority,
//   or
//     smaller) kMaxOvertakes times, then it goes to the front.
// Engine thread.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "cache/sequence_cache.h"
#include "scheduler/planner.h"
#include "scheduler/request.h"

namespace weir::scheduler {

struct Waiting {
  Request request;
  int64_t arrived_us = 0;
  cache::FamilyShape shape;
  cache::MemoryNeed need;
  int32_t passes = 0;  // later requests admitted while this one did not fit
};

class AdmissionQueue {
 public:
  static constexpr int32_t kMaxPasses = 16;
  static constexpr int32_t kMaxOvertakes = 64;

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  bool Contains(RequestId id) const { return keys_.contains(id); }

  // REQUIRES: no request with the same id is waiting.
  void Push(Waiting waiting);
  // The first `limit` in order, for the planner.
  std::vector<WaitingView> View(size_t limit) const;
  // Takes those that the planner chose: ascending places in the order of View. Counts passes and
  // overtakes of those that stay.
  std::vector<Waiting> Admit(absl::Span<const int32_t> places);
  // Takes one that ends without having run. REQUIRES: Contains(id).
  Waiting Remove(RequestId id);
  std::vector<RequestId> Ids() const;

  // Aborts if the indices do not agree.
  void CheckIntegrity() const;

 private:
  using Order = uint64_t;  // of arrival
  // front first: not promoted, -priority, order of arrival
  using Key = std::tuple<bool, int64_t, Order>;

  Waiting Extract(const Key& key);
  void PromoteOldest();

  std::map<Key, Waiting> entries_;
  std::unordered_map<RequestId, Key> keys_;
  std::map<Order, RequestId> by_arrival_;
  Order next_order_ = 0;
  int32_t overtakes_ = 0;  // of the one that came first
};

}  // namespace weir::scheduler
