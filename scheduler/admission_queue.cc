#include "scheduler/admission_queue.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace weir::scheduler {

void AdmissionQueue::Push(Waiting waiting) {
  const RequestId id = waiting.request.id;
  const Order order = next_order_++;
  const Key key{true, -static_cast<int64_t>(waiting.request.priority), order};
  WEIR_CHECK(keys_.emplace(id, key).second) << "request " << id << " waits already";
  by_arrival_.emplace(order, id);
  entries_.emplace(key, std::move(waiting));
}

std::vector<WaitingView> AdmissionQueue::View(size_t limit) const {
  std::vector<WaitingView> view;
  view.reserve(std::min(limit, entries_.size()));
  for (const auto& [key, waiting] : entries_) {
    if (view.size() == limit) break;
    view.push_back({waiting.need, std::get<0>(key) ? kMaxPasses - waiting.passes : 0});
  }
  return view;
}

std::vector<Waiting> AdmissionQueue::Admit(absl::Span<const int32_t> places) {
  std::vector<RequestId> chosen;  // by id: promoting the oldest changes its key
  auto entry = entries_.begin();
  int32_t place = 0;
  for (size_t i = 0; i < places.size(); ++entry, ++place) {
    if (place == places[i]) {
      chosen.push_back(entry->second.request.id);
      ++i;
    } else {
      entry->second.passes += static_cast<int32_t>(places.size() - i);
    }
  }
  std::vector<Waiting> admitted;
  for (const RequestId id : chosen) {
    const Key key = keys_.at(id);
    const Order oldest = by_arrival_.begin()->first;
    admitted.push_back(Extract(key));
    if (std::get<2>(key) != oldest && ++overtakes_ >= kMaxOvertakes) PromoteOldest();
  }
  return admitted;
}

Waiting AdmissionQueue::Remove(RequestId id) {
  const auto found = keys_.find(id);
  WEIR_CHECK(found != keys_.end()) << "request " << id << " does not wait";
  return Extract(Key(found->second));
}

Waiting AdmissionQueue::Extract(const Key& key) {
  auto node = entries_.extract(key);
  WEIR_CHECK(!node.empty()) << "no entry";
  keys_.erase(node.mapped().request.id);
  if (by_arrival_.begin()->first == std::get<2>(key)) overtakes_ = 0;
  by_arrival_.erase(std::get<2>(key));
  return std::move(node.mapped());
}

void AdmissionQueue::PromoteOldest() {
  const RequestId id = by_arrival_.begin()->second;
  Key& key = keys_.at(id);
  if (!std::get<0>(key)) return;
  auto node = entries_.extract(key);
  std::get<0>(key) = false;
  node.key() = key;
  entries_.insert(std::move(node));
}

std::vector<RequestId> AdmissionQueue::Ids() const {
  std::vector<RequestId> ids;
  ids.reserve(entries_.size());
  for (const auto& [key, waiting] : entries_) ids.push_back(waiting.request.id);
  return ids;
}

void AdmissionQueue::CheckIntegrity() const {
  WEIR_CHECK(entries_.size() == keys_.size() && entries_.size() == by_arrival_.size())
      << entries_.size() << " entries, " << keys_.size() << " keys, " << by_arrival_.size()
      << " arrivals";
  for (const auto& [key, waiting] : entries_) {
    WEIR_CHECK(keys_.at(waiting.request.id) == key) << "request " << waiting.request.id;
    WEIR_CHECK(by_arrival_.at(std::get<2>(key)) == waiting.request.id) << "order of arrival";
  }
}

}  // namespace weir::scheduler
