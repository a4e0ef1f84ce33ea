#include "cache/slot_pool.h"

#include "core/check.h"

namespace weir::cache {

SlotPool::SlotPool(int32_t slots) {
  WEIR_CHECK(slots >= 0) << "slots " << slots;
  taken_.resize(slots, false);
  free_.reserve(slots);
  for (int32_t slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
}

int32_t SlotPool::Take() {
  WEIR_CHECK(!free_.empty()) << "all " << total() << " slots are taken";
  const int32_t slot = free_.back();
  free_.pop_back();
  taken_[slot] = true;
  return slot;
}

void SlotPool::Free(int32_t slot) {
  WEIR_CHECK(slot >= 0 && slot < total()) << "slot " << slot << " of " << total();
  WEIR_CHECK(taken_[slot]) << "slot " << slot << " freed twice";
  taken_[slot] = false;
  free_.push_back(slot);
}

void SlotPool::CheckIntegrity() const {
  std::vector<bool> seen(taken_.size(), false);
  for (const int32_t slot : free_) {
    WEIR_CHECK(slot >= 0 && slot < total()) << "free slot " << slot << " of " << total();
    WEIR_CHECK(!seen[slot]) << "slot " << slot << " is free twice";
    WEIR_CHECK(!taken_[slot]) << "slot " << slot << " is free and taken";
    seen[slot] = true;
  }
  for (int32_t slot = 0; slot < total(); ++slot) {
    WEIR_CHECK(taken_[slot] != seen[slot]) << "slot " << slot << " is neither free nor taken";
  }
}

}  // namespace weir::cache
