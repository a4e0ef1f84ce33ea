// SequenceCache: the memory of sequences, a slot each and the pages their tokens need, from two
// pools that are apart (a page never takes on the size of a slot, nor the other way round).
//
// Everything a family of sequences will ever need is taken at once, in Reserve, the one place where
// memory changes hands; so what has been admitted never runs out. Bookkeeping of indices only; the
// bytes belong to the executor. One thread (the engine's). Outlives its reservations.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "cache/layout.h"
#include "cache/page_pool.h"
#include "cache/slot_pool.h"

namespace weir::cache {

class SequenceCache;

// The memory of one sequence, given back when it dies. Movable.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept { *this = std::move(other); }
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { Release(); }

  bool held() const { return cache_ != nullptr; }
  int32_t slot() const { return slot_; }
  // The block table: entry i holds tokens [i * page_tokens, (i + 1) * page_tokens).
  const std::vector<int32_t>& pages() const { return pages_; }
  // Gives everything back; afterwards not held. Does nothing when not held.
  void Release();

 private:
  friend class SequenceCache;
  SequenceCache* cache_ = nullptr;
  int32_t slot_ = -1;
  std::vector<int32_t> pages_;
};

// Sequences that begin with the same tokens: the choices of one request.
struct FamilyShape {
  int32_t sequences = 1;
  int64_t tokens = 0;         // the longest each will grow, common prefix included
  int64_t shared_tokens = 0;  // common prefix; its whole pages are held once, if the layout allows
};

struct MemoryNeed {
  int32_t slots = 0;
  int64_t pages = 0;
};

// {from, to} indices for Executor::Copy.
struct ForkCopies {
  std::vector<std::pair<int32_t, int32_t>> slots;
  std::vector<std::pair<int32_t, int32_t>> pages;
};

class SequenceCache {
 public:
  SequenceCache(const StateLayout& layout, const CacheSize& size);
  SequenceCache(const SequenceCache&) = delete;
  SequenceCache& operator=(const SequenceCache&) = delete;

  const StateLayout& layout() const { return layout_; }
  const SlotPool& slots() const { return slots_; }
  const PagePool& pages() const { return pages_; }

  // Exact: what Reserve will take.
  MemoryNeed NeedOf(const FamilyShape& shape) const;
  MemoryNeed Free() const { return {slots_.free(), pages_.free()}; }
  MemoryNeed Total() const { return {slots_.total(), pages_.total()}; }

  // The commit point: takes the memory of the whole family, one reservation per sequence. The first
  // whole pages of the common prefix are the same in each block table, unless pages do not fill in
  // order.
  // REQUIRES: Fits(NeedOf(shape), Free()).
  std::vector<Reservation> Reserve(const FamilyShape& shape);

  // What has to be copied so that `to`, of the same family, stands where `from` stands after
  // `tokens` tokens: the slot, and the pages that are not shared (of those that fill in order, the
  // one that is only partly filled).
  // Appends to `copies`. REQUIRES: the pages before are shared by both.
  void Fork(const Reservation& from, const Reservation& to, int64_t tokens,
            ForkCopies* copies) const;

  // Aborts unless the pools are sound and `held` (every reservation alive) accounts for each taken
  // slot and each holder of a page.
  void CheckIntegrity(absl::Span<const Reservation* const> held) const;

 private:
  friend class Reservation;
  int32_t SharedPages(const FamilyShape& shape) const;
  int32_t SharedPages(int64_t tokens) const;  // of a common prefix

  const StateLayout layout_;
  SlotPool slots_;
  PagePool pages_;
};

inline bool Fits(const MemoryNeed& need, const MemoryNeed& there) {
  return need.slots <= there.slots && need.pages <= there.pages;
}

}  // namespace weir::cache
