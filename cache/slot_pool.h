// SlotPool: which slots of the device's state memory are taken. Bookkeeping of indices only; the
// bytes belong to the executor. One thread (the engine's).
#pragma once

#include <cstdint>
#include <vector>

namespace weir::cache {

class SlotPool {
 public:
  // REQUIRES: slots >= 0.
  explicit SlotPool(int32_t slots);

  int32_t total() const { return static_cast<int32_t>(taken_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t used() const { return total() - free(); }

  // Takes a slot; the one freed last comes first, its bytes are the likeliest to be in a cache.
  // REQUIRES: free() > 0.
  int32_t Take();
  // REQUIRES: `slot` is taken.
  void Free(int32_t slot);

  // Aborts unless every slot is exactly one of free and taken.
  void CheckIntegrity() const;

 private:
  std::vector<bool> taken_;    // by slot
  std::vector<int32_t> free_;  // a stack
};

}  // namespace weir::cache
