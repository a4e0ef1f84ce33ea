// What the memory of one sequence looks like, declared by the model and summed over its layers. The
// cache counts slots and pages of these sizes; it never learns what the bytes mean.
#pragma once

#include <cstdint>

namespace weir::cache {

struct StateLayout {
  // All recurrent state of one sequence: matrices, conv windows, rings of local attention.
  int64_t slot_bytes = 0;
  // One page: `page_tokens` entries of K and V of every full-attention layer. 0: the model has none.
  int64_t page_bytes = 0;
  int32_t page_tokens = 0;
  // A page before a sequence's position is never written again, so that forks may share it. Not so
  // where attention is routed: it stores the tokens that picked it, one after another, and is
  // behind the position by those that did not.
  bool pages_fill_in_order = true;

  // Pages a sequence of `tokens` tokens holds.
  int32_t PagesFor(int64_t tokens) const {
    if (page_bytes == 0 || tokens <= 0) return 0;
    return static_cast<int32_t>((tokens + page_tokens - 1) / page_tokens);
  }
  // Exact bytes of a sequence of `tokens` tokens.
  int64_t BytesFor(int64_t tokens) const { return slot_bytes + PagesFor(tokens) * page_bytes; }
  int64_t KvBytesPerToken() const { return page_tokens == 0 ? 0 : page_bytes / page_tokens; }
};

struct CacheSize {
  int32_t slots = 0;
  int32_t pages = 0;
};

}  // namespace weir::cache
