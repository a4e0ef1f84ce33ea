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

template <bool kBf16>
WEIR_VEC Vec::F LoadKv(const void* row, int64_t i, int64_t n) {
  if (row == nullptr) return Vec::Set1(0.0f);
  if constexpr (kBf16) return Vec::LoadBf16N(static_cast<const uint16_t*>(row) + i, n - i);
  return Vec::LoadN(static_cast<const float*>(row) + i, n - i);
}

template <bool kBf16>
void GatherRows(const void* const* key_rows, const void* const* value_rows, const KeyBlock& block) {
  constexpr int kLanes = Vec::kLanes;
  const int64_t dim = block.head_dim;
  for (int j = 0; j < kKeyBlock; j += kLanes) {
    for (int64_t i = 0; i < dim; i += kLanes) {
      Vec::F r[kLanes];
      for (int l = 0; l < kLanes; ++l) r[l] = LoadKv<kBf16>(key_rows[j + l], i, dim);
      Vec::Transpose(r);
      const int64_t count = dim - i < kLanes ? dim - i : kLanes;
      for (int64_t l = 0; l < count; ++l) Vec::Store(block.keys + (i + l) * kKeyBlock + j, r[l]);
    }
  }
  for (int j = 0; j < kKeyBlock; ++j) {
    if (value_rows[j] == nullptr) continue;  // nobody sees it, so nobody reads it
    float* out = block.values + j * block.padded_dim;
    for (int64_t i = 0; i < block.padded_dim; i += kLanes) {
      Vec::Store(out + i, LoadKv<kBf16>(value_rows[j], i, dim));
    }
  }
}

void Gather(const void* const* key_rows, const void* const* value_rows, bool bf16,
            const KeyBlock& block) {
  bf16 ? GatherRows<true>(key_rows, value_rows, block)
       : GatherRows<false>(key_rows, value_rows, block);
}

// score[r][j] for the first `entries` entries (rounded up to whole vectors).
template <int R>
WEIR_VEC void Scores(const KeyBlock& block, const float* q, int entries, float* score) {
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
    for (int64_t d = 0; d < block.head_dim; ++d) {
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
// kVectors vectors of columns.
template <int R, int kVectors>
WEIR_VEC void AddValues(const float* weight, const float* factor, int begin, int end,
                        const float* values, int64_t padded_dim, float* out) {
  Vec::F acc[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      acc[r][c] = Vec::Mul(Vec::Load(out + r * padded_dim + c * Vec::kLanes), Vec::Set1(factor[r]));
    }
  }
  for (int j = begin; j < end; ++j) {
    Vec::F value[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      value[c] = Vec::Load(values + j * padded_dim + c * Vec::kLanes);
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

template <int R>
void AttendTile(const KeyBlock& block, const QueryTile& tile) {
  alignas(64) float weight[R * kKeyBlock];
  float factor[R];
  int begin = kKeyBlock, end = 0;
  for (int r = 0; r < R; ++r) {
    begin = tile.first[r] < begin ? tile.first[r] : begin;
    end = tile.last[r] > end ? tile.last[r] : end;
  }
  Scores<R>(block, tile.q, end, weight);
  for (int r = 0; r < R; ++r) {
    factor[r] =
        Weigh(weight + r * kKeyBlock, end, tile.first[r], tile.last[r], tile.max + r, tile.sum + r);
  }
  constexpr int kWide = Vec::kTileVectors * Vec::kLanes;
  int64_t i = 0;
  for (; i + kWide <= block.padded_dim; i += kWide) {
    AddValues<R, Vec::kTileVectors>(weight, factor, begin, end, block.values + i, block.padded_dim,
                                    tile.acc + i);
  }
  for (; i < block.padded_dim; i += Vec::kLanes) {
    AddValues<R, 1>(weight, factor, begin, end, block.values + i, block.padded_dim, tile.acc + i);
  }
}

void Attend(const KeyBlock& block, const QueryTile& tile) {
  switch (tile.rows) {
    case 1:
      return AttendTile<1>(block, tile);
    case 2:
      return AttendTile<2>(block, tile);
    case 3:
      return AttendTile<3>(block, tile);
    case 4:
      return AttendTile<4>(block, tile);
    case 5:
      return AttendTile<5>(block, tile);
    default:
      return AttendTile<6>(block, tile);
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
