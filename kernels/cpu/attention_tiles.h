// Attention of query tiles over key blocks, written once over `Vec`: include a vector_*.h first.
// Local to the includer.
//
// A score is one chain of multiply-adds over head_dim, a weighted sum one chain over the entries:
// neither depends on how many rows share a tile.
#pragma once

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/vector_exp.h"

namespace weir::kernels {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

void ToBf16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += Vec::kLanes) {
    Vec::StoreBf16N(out + i, Vec::LoadN(x + i, n - i), n - i);
  }
}

// Elements [i, i + n) of a row, at most a vector of them.
template <bool kBf16>
WEIR_VEC Vec::F LoadKv(const void* row, int64_t i, int64_t n) {
  if constexpr (kBf16) return Vec::LoadBf16N(static_cast<const uint16_t*>(row) + i, n);
  return Vec::LoadN(static_cast<const float*>(row) + i, n);
}

// Memory is asked ahead, evenly over the work on a block, because a core drops or stalls on more
// requests than it can have under way:
//   while the scores are computed        even keys of the next block
//   while values are added               odd keys and even values of the next block
//   while the next keys are turned over  odd values of that block
WEIR_VEC void Ask(const void* row, int64_t byte) {
  if (row != nullptr) __builtin_prefetch(static_cast<const char*>(row) + byte);
}

// Keys of bf16 are turned around as pairs of neighbours, half the work.
template <bool kBf16>
WEIR_VEC void GatherRows(const KeyBlock& block, int j) {
  constexpr int kLanes = Vec::kLanes;
  constexpr int kStep = kBf16 ? 2 * kLanes : kLanes;
  const int64_t dim = block.head_dim;
  for (int64_t i = 0; i < dim; i += kStep) {
    Vec::F r[kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) {
      const void* row = block.rows->keys[j + l];
      if (l % 2 != 0) Ask(block.rows->values[j + l], i * (kBf16 ? 2 : 4));
      if (row == nullptr) {
        r[l] = Vec::Set1(0.0f);
      } else if (kBf16) {
        r[l] = Vec::LoadPairsN(static_cast<const uint16_t*>(row) + i, dim - i);
      } else {
        r[l] = Vec::LoadN(static_cast<const float*>(row) + i, dim - i);
      }
    }
    Vec::Transpose(r);
    float* out = block.keys + i * kKeyBlock + j;
    if (kBf16) {
      const int64_t count = dim - i < kStep ? dim - i : kStep;
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l) {
        if (2 * l < count) Vec::Store(out + 2 * l * kKeyBlock, Vec::EvenBf16(r[l]));
        if (2 * l + 1 < count) Vec::Store(out + (2 * l + 1) * kKeyBlock, Vec::OddBf16(r[l]));
      }
    } else {
      const int64_t count = dim - i < kStep ? dim - i : kStep;
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l) {
        if (l < count) Vec::Store(out + l * kKeyBlock, r[l]);
      }
    }
  }
}

void Gather(const KeyBlock& block) {
  for (int j = 0; j < kKeyBlock; j += Vec::kLanes) {
    block.bf16 ? GatherRows<true>(block, j) : GatherRows<false>(block, j);
  }
}

// score[r][j] for the first `entries` entries (rounded up to whole vectors).
template <int R, bool kAhead>
void Scores(const KeyBlock& block, const float* q, int entries, float* score) {
  constexpr int kVectors = Vec::kTileVectors;
  for (int j = 0; j < entries; j += kVectors * Vec::kLanes) {
    Vec::F acc[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) acc[r][c] = Vec::Set1(0.0f);
    }
    const float* keys = block.keys + j;
    const float* x = q;
    // 32 rows are as many cache lines as head_dim times half the bytes of an element.
    const int64_t lines = kAhead && j == 0 ? (block.bf16 ? 1 : 2) : 0;
    for (int64_t d = 0; d < block.head_dim; ++d) {
      for (int64_t n = d * lines; n < (d + 1) * lines; ++n) {
        Ask(block.next->keys[n % 32 * 2], n / 32 * 64);
      }
      Vec::F key[kVectors];
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) key[c] = Vec::Load(keys + c * Vec::kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec::F query = Vec::Set1(x[r]);
#pragma GCC unroll 8
        for (int c = 0; c < kVectors; ++c) acc[r][c] = Vec::Fma(query, key[c], acc[r][c]);
      }
      keys += kKeyBlock;
      x += R;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) {
        Vec::Store(score + r * kKeyBlock + j + c * Vec::kLanes, acc[r][c]);
      }
    }
  }
}

// Scores of one row become weights; returns what the row's earlier sums are to be multiplied by.
WEIR_VEC float Weigh(float* score, int entries, int first, int last, float* max, float* sum) {
  constexpr int kLanes = Vec::kLanes;
  const Vec::F never = Vec::Set1(kMinusInfinity);
  Vec::F largest = never;
  for (int j = 0; j < entries; j += kLanes) {
    Vec::F s = Vec::Load(score + j);
    if (first > j || last < j + kLanes) s = Vec::KeepRange(s, first - j, last - j, never);
    Vec::Store(score + j, s);
    largest = Vec::Max(s, largest);
  }
  const float block_max = Vec::ReduceMax(largest);
  const float old_max = *max;
  const float new_max = block_max > old_max ? block_max : old_max;
  // Nothing seen yet: any finite reference gives weights of zero.
  const float reference = new_max == kMinusInfinity ? 0.0f : new_max;
  Vec::F total = Vec::Set1(0.0f);
  for (int j = 0; j < entries; j += kLanes) {
    const Vec::F weight = Exp2(Vec::Sub(Vec::Load(score + j), Vec::Set1(reference)));
    Vec::Store(score + j, weight);
    total = Vec::Add(total, weight);
  }
  float factor[kLanes];
  Vec::Store(factor, Exp2(Vec::Set1(old_max - reference)));
  *max = new_max;
  *sum = *sum * factor[0] + Vec::ReduceAdd(total);
  return factor[0];
}

// acc[r] = acc[r] * factor[r] + sum over entries [begin, end) of weight[r][j] * value[j], for
// kVectors vectors of columns from `column`; the last vector may be cut at head_dim.
template <int R, int kVectors, bool kBf16, bool kAhead>
void AddValues(const KeyBlock& block, const float* weight, const float* factor, int begin, int end,
               int64_t column, float* out) {
  const int64_t padded_dim = block.padded_dim;
  const int64_t left = kVectors > 1 ? kVectors * Vec::kLanes : block.head_dim - column;
  out += column;
  Vec::F acc[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      acc[r][c] = Vec::Mul(Vec::Load(out + r * padded_dim + c * Vec::kLanes), Vec::Set1(factor[r]));
    }
  }
  constexpr int64_t kBytes = kBf16 ? 2 : 4;
  for (int j = begin; j < end; ++j) {
    if (kAhead && kVectors > 1) {
      const void* next = j % 2 == 0 ? block.next->values[j] : block.next->keys[j];
      for (int64_t byte = (column * kBytes + 63) / 64 * 64;
           byte < (column + kVectors * Vec::kLanes) * kBytes; byte += 64) {
        Ask(next, byte);
      }
    }
    Vec::F value[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      value[c] =
          LoadKv<kBf16>(block.rows->values[j], column + c * Vec::kLanes, left - c * Vec::kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec::F w = Vec::Set1(weight[r * kKeyBlock + j]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) acc[r][c] = Vec::Fma(w, value[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      Vec::Store(out + r * padded_dim + c * Vec::kLanes, acc[r][c]);
    }
  }
}

template <int R, bool kBf16, bool kAhead>
WEIR_VEC void AddAllValues(const KeyBlock& block, const float* weight, const float* factor,
                           int begin, int end, float* out) {
  constexpr int kWide = Vec::kTileVectors * Vec::kLanes;
  int64_t i = 0;
  for (; i + kWide <= block.head_dim; i += kWide) {
    AddValues<R, Vec::kTileVectors, kBf16, kAhead>(block, weight, factor, begin, end, i, out);
  }
  for (; i < block.head_dim; i += Vec::kLanes) {
    AddValues<R, 1, kBf16, false>(block, weight, factor, begin, end, i, out);
  }
}

template <int R, bool kAhead>
void AttendTile(const KeyBlock& block, const QueryTile& tile) {
  alignas(64) float weight[R * kKeyBlock];
  float factor[R];
  int begin = kKeyBlock, end = 0;
  for (int r = 0; r < R; ++r) {
    begin = tile.first[r] < begin ? tile.first[r] : begin;
    end = tile.last[r] > end ? tile.last[r] : end;
  }
  Scores<R, kAhead>(block, tile.q, end, weight);
  for (int r = 0; r < R; ++r) {
    factor[r] =
        Weigh(weight + r * kKeyBlock, end, tile.first[r], tile.last[r], tile.max + r, tile.sum + r);
  }
  block.bf16 ? AddAllValues<R, true, kAhead>(block, weight, factor, begin, end, tile.acc)
             : AddAllValues<R, false, kAhead>(block, weight, factor, begin, end, tile.acc);
}

template <int R>
void AttendRows(const KeyBlock& block, const QueryTile& tile, bool first) {
  first ? AttendTile<R, true>(block, tile) : AttendTile<R, false>(block, tile);
}

void Attend(const KeyBlock& block, const QueryTile& tile, bool first) {
  switch (tile.rows) {
    case 1:
      return AttendRows<1>(block, tile, first);
    case 2:
      return AttendRows<2>(block, tile, first);
    case 3:
      return AttendRows<3>(block, tile, first);
    case 4:
      return AttendRows<4>(block, tile, first);
    case 5:
      return AttendRows<5>(block, tile, first);
    default:
      return AttendRows<6>(block, tile, first);
  }
}

void Merge(float* max, float* sum, float* acc, float part_max, float part_sum,
           const float* part_acc, int64_t padded_dim) {
  const float new_max = part_max > *max ? part_max : *max;
  const float reference = new_max == kMinusInfinity ? 0.0f : new_max;
  float factors[2][Vec::kLanes];
  Vec::Store(factors[0], Exp2(Vec::Set1(*max - reference)));
  Vec::Store(factors[1], Exp2(Vec::Set1(part_max - reference)));
  const Vec::F mine = Vec::Set1(factors[0][0]), its = Vec::Set1(factors[1][0]);
  for (int64_t i = 0; i < padded_dim; i += Vec::kLanes) {
    Vec::Store(acc + i, Vec::Fma(Vec::Load(part_acc + i), its, Vec::Mul(Vec::Load(acc + i), mine)));
  }
  *sum = *sum * factors[0][0] + part_sum * factors[1][0];
  *max = new_max;
}

void Finish(float sum, const float* acc, int64_t head_dim, float* out) {
  const Vec::F total = Vec::Set1(sum);
  for (int64_t i = 0; i < head_dim; i += Vec::kLanes) {
    Vec::StoreN(out + i, Vec::Div(Vec::Load(acc + i), total), head_dim - i);
  }
}

constexpr AttentionKernel kKernel = {
    Vec::kTileRows < kMaxQueryRows ? Vec::kTileRows : kMaxQueryRows,
    ToBf16,
    Gather,
    Attend,
    Merge,
    Finish};

}  // namespace
}  // namespace weir::kernels
