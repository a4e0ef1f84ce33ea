// Work on a row of neighbouring items that lie one behind the other in memory: every thread walks
// through a stretch of its own, so that memory is read in long runs and what comes next is known,
// and helps the others in small pieces when it is through.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "core/thread_pool.h"

namespace weir::kernels {

// A stretch of items and how far it is taken. One cache line each.
struct alignas(64) OpenItems {
  std::atomic<int64_t> next{0};
  int64_t end = 0;

  void Reset(int64_t first, int64_t last) {
    end = last;
    next.store(first, std::memory_order_relaxed);
  }
  // The next `unit` items. What would leave less than a unit is shared evenly with the next taker.
  // False: nothing is left.
  bool Take(int64_t unit, int64_t* first, int64_t* last) {
    *first = next.load(std::memory_order_relaxed);
    do {
      if (*first >= end) return false;
      *last = *first + PieceOf(end - *first, unit);
    } while (!next.compare_exchange_weak(*first, *last, std::memory_order_relaxed));
    return true;
  }
  static constexpr int64_t PieceOf(int64_t left, int64_t unit) {
    return left >= 2 * unit || left == unit ? unit : left < unit ? left : (left + 1) / 2;
  }
};

// Calls fn(first, last) for pieces of about `unit` items that cover [0, n) once. Helpers take from
// the front as well: whoever takes a piece, the one behind it is most likely next. How [0, n) is
// cut differs from call to call.
template <typename Fn>
void ParallelPieces(ThreadPool& pool, int64_t n, int64_t unit, const Fn& fn) {
  const int stretches =
      static_cast<int>(std::min<int64_t>(pool.num_threads(), (n + unit - 1) / unit));
  if (stretches <= 1) {
    if (n > 0) fn(int64_t{0}, n);
    return;
  }
  static thread_local std::unique_ptr<OpenItems[]> memory;
  static thread_local int capacity = 0;
  if (capacity < stretches) {
    memory = std::make_unique<OpenItems[]>(stretches);
    capacity = stretches;
  }
  OpenItems* open = memory.get();
  for (int i = 0; i < stretches; ++i) open[i].Reset(n * i / stretches, n * (i + 1) / stretches);
  pool.ParallelFor(stretches, [&](int64_t mine) {
    int64_t first, last;
    for (int i = 0; i < stretches; ++i) {
      OpenItems& items = open[(mine + i) % stretches];
      while (items.Take(unit, &first, &last)) fn(first, last);
    }
  });
}

}  // namespace weir::kernels
