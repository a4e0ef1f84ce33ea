// PagePool: who holds which pages of the device's KV memory. A page may have several holders (forks
// share the pages of their common prefix); it is free when the last one lets go. Bookkeeping of
// indices only; the bytes belong to the executor. One thread (the engine's).
#pragma once

#include <cstdint>
#include <vector>

namespace weir::cache {

class PagePool {
 public:
  // REQUIRES: pages >= 0.
  explicit PagePool(int32_t pages);

  int32_t total() const { return static_cast<int32_t>(holders_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t used() const { return total() - free(); }
  int32_t holders(int32_t page) const { return holders_[page]; }

  // Takes a page with one holder. REQUIRES: free() > 0.
  int32_t Take();
  // One holder more. REQUIRES: the page is taken.
  void Share(int32_t page);
  // One holder less; the last frees it. REQUIRES: the page is taken.
  void Release(int32_t page);

  // Aborts unless every page is free exactly when it has no holder.
  void CheckIntegrity() const;

 private:
  std::vector<int32_t> holders_;  // by page
  std::vector<int32_t> free_;     // a stack
};

}  // namespace weir::cache
