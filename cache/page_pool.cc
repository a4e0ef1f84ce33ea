#include "cache/page_pool.h"

#include "core/check.h"

namespace weir::cache {

PagePool::PagePool(int32_t pages) {
  WEIR_CHECK(pages >= 0) << "pages " << pages;
  holders_.resize(pages, 0);
  free_.reserve(pages);
  for (int32_t page = pages - 1; page >= 0; --page) free_.push_back(page);
}

int32_t PagePool::Take() {
  WEIR_CHECK(!free_.empty()) << "all " << total() << " pages are taken";
  const int32_t page = free_.back();
  free_.pop_back();
  holders_[page] = 1;
  return page;
}

void PagePool::Share(int32_t page) {
  WEIR_CHECK(page >= 0 && page < total()) << "page " << page << " of " << total();
  WEIR_CHECK(holders_[page] > 0) << "page " << page << " is free";
  ++holders_[page];
}

void PagePool::Release(int32_t page) {
  WEIR_CHECK(page >= 0 && page < total()) << "page " << page << " of " << total();
  WEIR_CHECK(holders_[page] > 0) << "page " << page << " freed twice";
  if (--holders_[page] == 0) free_.push_back(page);
}

void PagePool::CheckIntegrity() const {
  std::vector<bool> seen(holders_.size(), false);
  for (const int32_t page : free_) {
    WEIR_CHECK(page >= 0 && page < total()) << "free page " << page << " of " << total();
    WEIR_CHECK(!seen[page]) << "page " << page << " is free twice";
    seen[page] = true;
  }
  for (int32_t page = 0; page < total(); ++page) {
    WEIR_CHECK(holders_[page] >= 0) << "page " << page << " has " << holders_[page] << " holders";
    WEIR_CHECK((holders_[page] == 0) == seen[page])
        << "page " << page << " with " << holders_[page] << " holders, free: " << seen[page];
  }
}

}  // namespace weir::cache
