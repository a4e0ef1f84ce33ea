#include "cache/sequence_cache.h"

#include "core/check.h"

namespace weir::cache {

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  Release();
  cache_ = std::exchange(other.cache_, nullptr);
  slot_ = std::exchange(other.slot_, -1);
  pages_ = std::exchange(other.pages_, {});
  return *this;
}

void Reservation::Release() {
  if (cache_ == nullptr) return;
  cache_->slots_.Free(slot_);
  for (const int32_t page : pages_) cache_->pages_.Release(page);
  cache_ = nullptr;
  slot_ = -1;
  pages_.clear();
}

SequenceCache::SequenceCache(const StateLayout& layout, const CacheSize& size)
    : layout_(layout), slots_(size.slots), pages_(size.pages) {
  WEIR_CHECK(layout.page_bytes == 0 || layout.page_tokens > 0) << "pages of no tokens";
}

int32_t SequenceCache::SharedPages(const FamilyShape& shape) const {
  return shape.sequences < 2 ? 0 : SharedPages(shape.shared_tokens);
}

int32_t SequenceCache::SharedPages(int64_t tokens) const {
  if (layout_.page_bytes == 0 || !layout_.pages_fill_in_order) return 0;
  return static_cast<int32_t>(tokens / layout_.page_tokens);
}

MemoryNeed SequenceCache::NeedOf(const FamilyShape& shape) const {
  const int64_t shared = SharedPages(shape);
  const int64_t own = layout_.PagesFor(shape.tokens) - shared;
  return {shape.sequences, shared + own * shape.sequences};
}

std::vector<Reservation> SequenceCache::Reserve(const FamilyShape& shape) {
  WEIR_CHECK(shape.sequences > 0 && shape.shared_tokens <= shape.tokens)
      << shape.sequences << " sequences, " << shape.shared_tokens << " of " << shape.tokens
      << " tokens shared";
  const MemoryNeed need = NeedOf(shape);
  WEIR_CHECK(Fits(need, Free())) << "needs " << need.slots << " slots and " << need.pages
                                 << " pages, free are " << slots_.free() << " and "
                                 << pages_.free();
  const int32_t shared = SharedPages(shape);
  const int32_t each = layout_.PagesFor(shape.tokens);
  std::vector<Reservation> family(shape.sequences);
  for (Reservation& reservation : family) {
    reservation.cache_ = this;
    reservation.slot_ = slots_.Take();
    reservation.pages_.reserve(each);
    for (int32_t i = 0; i < each; ++i) {
      if (i < shared && &reservation != &family.front()) {
        reservation.pages_.push_back(family.front().pages_[i]);
        pages_.Share(reservation.pages_.back());
      } else {
        reservation.pages_.push_back(pages_.Take());
      }
    }
  }
  return family;
}

void SequenceCache::Fork(const Reservation& from, const Reservation& to, int64_t tokens,
                         ForkCopies* copies) const {
  copies->slots.emplace_back(from.slot_, to.slot_);
  const size_t shared = static_cast<size_t>(SharedPages(tokens));
  const size_t all = static_cast<size_t>(layout_.PagesFor(tokens));
  WEIR_CHECK(all <= from.pages_.size() && all <= to.pages_.size()) << tokens << " tokens";
  for (size_t i = 0; i < all; ++i) {
    const bool same = from.pages_[i] == to.pages_[i];
    WEIR_CHECK(same == (i < shared)) << "page " << i << (same ? " is" : " is not") << " shared";
    if (!same) copies->pages.emplace_back(from.pages_[i], to.pages_[i]);
  }
}

void SequenceCache::CheckIntegrity(absl::Span<const Reservation* const> held) const {
  slots_.CheckIntegrity();
  pages_.CheckIntegrity();
  std::vector<bool> slot_seen(slots_.total(), false);
  std::vector<int32_t> holders(pages_.total(), 0);
  int32_t slots = 0;
  for (const Reservation* reservation : held) {
    if (!reservation->held()) continue;
    WEIR_CHECK(reservation->cache_ == this) << "a reservation of another cache";
    WEIR_CHECK(!slot_seen.at(reservation->slot_)) << "slot " << reservation->slot_ << " held twice";
    slot_seen[reservation->slot_] = true;
    ++slots;
    for (const int32_t page : reservation->pages_) ++holders.at(page);
  }
  WEIR_CHECK(slots == slots_.used()) << slots << " slots held, " << slots_.used() << " taken";
  for (int32_t page = 0; page < pages_.total(); ++page) {
    WEIR_CHECK(holders[page] == pages_.holders(page))
        << "page " << page << ": " << holders[page] << " reservations, " << pages_.holders(page)
        << " holders";
  }
}

}  // namespace weir::cache
