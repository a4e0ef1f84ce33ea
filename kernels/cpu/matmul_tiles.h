// The blocked product over packed tiles and panels, written once over the vector operations `Ops`
// of an instruction set. Included by the files of each set; everything is local to the includer.
//
//   Ops::Acc                     sums of 16 neighbouring outputs
//   Ops::Weight                  one depth step of a panel, 64 bytes
//   Ops::Input                   one depth step of one row, in all lanes
//   Zero, LoadAcc, StoreAcc      lanes [0, n) of y
//   LoadWeight, LoadInput, Mac   acc + weight * input
//   kElementBytes                bytes of an input element
//   kTallest                     tallest tile
//   Group(rows)                  panels that a tile of that height works on at once
//   PrefetchBytes(rows)          how far ahead in each panel weights are asked for
//   kDepthBlock                  steps of two panels that leave room in half a second-level cache
#pragma once

#include "kernels/cpu/matmul_panels.h"

#define WEIR_INLINE inline __attribute__((always_inline))

namespace weir::kernels {
namespace {

struct TileArgs {
  const char* x;
  const char* w;
  int64_t panel_bytes;  // from panel to panel
  int64_t depth;        // steps of this call
  float* y;             // first row, first column
  int64_t y_stride;
  int last_lanes;     // of the last panel of the group
  bool resume;        // start from the sums in y
  const float* bias;  // at the first column, or null
  int64_t distance;   // weights are asked for this many bytes ahead of the step
  // And, where `every` > 0, one step of each panel from `next` on for `every` steps of the tile.
  const char* next;
  int64_t every;
};

template <typename Ops, int R, int P>
WEIR_INLINE void RunStep(typename Ops::Acc (&acc)[R][P], const char* x, const char* const (&w)[P],
                         int64_t offset) {
  typename Ops::Weight weight[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) weight[p] = Ops::LoadWeight(w[p] + offset);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const typename Ops::Input input = Ops::LoadInput(x + r * Ops::kElementBytes);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) acc[r][p] = Ops::Mac(acc[r][p], weight[p], input);
  }
}

template <typename Ops, int R, int P>
void RunTile(const TileArgs& a) {
  typename Ops::Acc acc[R][P];
  if (a.resume) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        acc[r][p] =
            Ops::LoadAcc(a.y + r * a.y_stride + p * kPanel, p == P - 1 ? a.last_lanes : kPanel);
      }
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) acc[r][p] = Ops::Zero();
    }
  }
  const char* x = a.x;
  const char* w[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) w[p] = a.w + p * a.panel_bytes;
  int64_t offset = 0;
  const int64_t end = a.depth * 64;
  if (a.every > 0) {
    const char* next = a.next;
    while (offset < end) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) __builtin_prefetch(next + p * a.panel_bytes);
      next += 64;
      const int64_t pause = end - offset < a.every * 64 ? end : offset + a.every * 64;
      for (; offset < pause; offset += 64, x += R * Ops::kElementBytes) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) __builtin_prefetch(w[p] + offset + a.distance);
        RunStep<Ops, R, P>(acc, x, w, offset);
      }
    }
  } else {
    // Near the end of the panels, the start of the panels of the next group is ahead.
    int64_t ahead = a.distance;
    int64_t until = end > ahead ? end - ahead : 0;
    for (;;) {
      for (; offset < until; offset += 64, x += R * Ops::kElementBytes) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) __builtin_prefetch(w[p] + offset + ahead);
        RunStep<Ops, R, P>(acc, x, w, offset);
      }
      if (until == end) break;
      until = end;
      ahead += (P - 1) * a.panel_bytes;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    const int lanes = p == P - 1 ? a.last_lanes : kPanel;
    if (a.bias != nullptr) {
      const typename Ops::Acc bias = Ops::LoadAcc(a.bias + p * kPanel, lanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][p] = Ops::Add(acc[r][p], bias);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) Ops::StoreAcc(a.y + r * a.y_stride + p * kPanel, lanes, acc[r][p]);
  }
}

using TileFn = void (*)(const TileArgs&);

// fns[height][panels]: a group has Ops::Group of its tallest tile panels or less.
template <typename Ops>
struct TileTable {
  template <int R, int P>
  constexpr void Fill() {
    if constexpr (R <= Ops::kTallest) {
      fns[R][P] = RunTile<Ops, R, P>;
      if constexpr (P < Ops::Group(R)) {
        Fill<R, P + 1>();
      } else {
        Fill<R + 1, 1>();
      }
    }
  }
  constexpr TileTable() { Fill<1, 1>(); }
  TileFn fns[kMaxTile + 1][kMaxGroup + 1] = {};
};

// A group of panels stays in the second-level cache while the tiles pass by, and each of them asks
// for its share of the next group, so that memory is never idle. Where the depth is too long for
// that it is cut into blocks, and sums wait in y between them. One tile uses nothing twice and asks
// a short distance ahead.
template <typename Ops>
void RunProduct(const PanelProduct& p) {
  static constexpr TileTable<Ops> kTable;
  const int64_t panel_bytes = p.depth * 64;
  const int64_t tallest = (p.rows + p.tiles - 1) / p.tiles;  // others are one row less
  const int64_t group = Ops::Group(static_cast<int>(tallest));
  const int64_t tiles = p.last_tile - p.first_tile;
  const int64_t block = 2 * Ops::kDepthBlock / group;
  const int64_t blocks = tiles == 1 ? 1 : (p.depth + block - 1) / block;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = p.depth * b / blocks, end = p.depth * (b + 1) / blocks;
    TileArgs a;
    a.panel_bytes = panel_bytes;
    a.depth = end - begin;
    a.y_stride = p.y_stride;
    a.resume = b > 0;
    a.distance = Ops::PrefetchBytes(static_cast<int>(tallest));
    a.every = tiles > 1 ? tiles : 0;
    for (int64_t panel = p.first_panel, count; panel < p.last_panel; panel += count) {
      // A group of one panel keeps too few sums under way: the last two share evenly.
      const int64_t rest = p.last_panel - panel;
      count = rest >= 2 * group || rest == group ? group : rest < group ? rest : (rest + 1) / 2;
      const int64_t left = p.out - (panel + count - 1) * kPanel;
      a.last_lanes = left < kPanel ? static_cast<int>(left) : kPanel;
      a.w = p.w + panel * panel_bytes + begin * 64;
      a.bias = b == blocks - 1 && p.bias != nullptr ? p.bias + panel * kPanel : nullptr;
      for (int64_t t = p.first_tile; t < p.last_tile; ++t) {
        const TileRows rows = RowsOfTile(p.rows, p.tiles, t);
        const int64_t height = rows.last - rows.first;
        a.x = p.x + (rows.first * p.depth + begin * height) * Ops::kElementBytes;
        a.y = p.y + rows.first * p.y_stride + panel * kPanel;
        a.next = a.w + count * panel_bytes + (a.depth * (t - p.first_tile) / tiles) * 64;
        kTable.fns[height][count](a);
      }
    }
  }
}

}  // namespace
}  // namespace weir::kernels
