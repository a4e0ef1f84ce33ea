// How attention of single tokens is shared out: a sequence's entries in parts, the parts over the
// grid, and the loads of a warp's tiles in the order in which it meets them.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_softmax.cuh"

namespace weir::kernels::gpu::decode {

// How a sequence's entries are cut.
struct Cut {
  int slot, length, first, blocks, per_part, parts;
};
__device__ __forceinline__ Cut CutOf(const AttentionParams& p, int seq) {
  Cut c;
  const int begin = p.offsets[seq], end = p.offsets[seq + 1];
  c.slot = p.slots[seq];
  c.length = p.cached[seq] + 1;
  c.first = 0;
  c.blocks = c.per_part = c.parts = 0;
  if (end - begin != 1 || c.slot < 0) return c;
  if (p.kv.table == nullptr) c.first = max(0, c.length - p.kv.block_tokens);
  c.blocks = (c.length - 1) / kBlock - c.first / kBlock + 1;
  c.per_part = (c.blocks + kMaxParts - 1) / kMaxParts;
  c.parts = (c.blocks + c.per_part - 1) / c.per_part;
  return c;
}

// The whole work: units in order of sequence, then kv head, then block.
struct Work {
  unsigned total, grid;
  __device__ __forceinline__ unsigned Begin(unsigned cta) const { return total * cta / grid; }
  // The thread block that has a block of work.
  __device__ __forceinline__ unsigned Owner(unsigned at) const {
    return ((at + 1) * grid - 1) / total;
  }
};

// Where a walk over the parts of a thread block stands.
struct Walk {
  int seq, head, part;
  unsigned unit;  // first block of the unit in Work
  Cut cut;

  __device__ __forceinline__ bool HasPart(unsigned end) const {
    return part < cut.parts && unit + part * cut.per_part < end;
  }
  // To the next unit with work; false behind the last.
  __device__ __forceinline__ bool NextUnit(const AttentionParams& p, unsigned end) {
    unit += cut.blocks;
    part = 0;
    if (unit >= end) return false;
    if (++head < p.kv_heads) return true;
    head = 0;
#pragma unroll 1
    do {
      ++seq;
      cut = CutOf(p, seq);
    } while (cut.blocks == 0);
    return true;
  }
  // Tiles of the part: [first, end).
  __device__ __forceinline__ int FirstTile() const {
    const int entry = (cut.first / kBlock + part * cut.per_part) * kBlock;
    return max(entry, cut.first) / kTile;
  }
  __device__ __forceinline__ int EndTile() const {
    const int entry = (cut.first / kBlock + (part + 1) * cut.per_part) * kBlock;
    return (min(entry, cut.length) + kTile - 1) / kTile;
  }
};
// A warp's first tile at or behind `tile`.
__device__ __forceinline__ int OwnTile(int tile, int warp) {
  return tile + ((warp - tile) & (kWarps - 1));
}

// Loads a warp's tiles in order, a key tile, its value tile, the next key tile, ...
template <int kDim>
class Loader {
 public:
  static constexpr int kSlotBytes = kTile * kDim * 2;
  static constexpr int kSlots = kPipelineBytes / kSlotBytes;

  __device__ __forceinline__ Loader(const AttentionParams& p, const Walk& start, unsigned end,
                                    uint32_t memory)
      : p_(p), walk_(start), end_(end), memory_(memory) {
    warp_ = threadIdx.x / kWarp;
    row_stride_ = p.kv_heads * kDim;
    Settle(OwnTile(walk_.FirstTile(), warp_));
  }
  // One group of copies, empty behind the end.
  __device__ __forceinline__ void Issue() {
    if (value_) {
      from_ += ValueOffset(p_);
      Copy();
      value_ = false;
    } else if (more_) {
      const int lane = threadIdx.x % kWarp, entry = tile_ * kTile;
      from_ = reinterpret_cast<const bf16*>(p_.kv.base + int64_t{block_} * p_.kv.block_bytes) +
              (entry % p_.kv.block_tokens + lane / kChunks) * int64_t{row_stride_} +
              walk_.head * kDim + lane % kChunks * 8;
      // The new entry is put in by hand; rows that are not seen become zeros.
      first_row_ = walk_.cut.first - entry;
      end_row_ = walk_.cut.length - 1 - entry;
      Copy();
      value_ = true;
      Settle(tile_ + kWarps);
    }
    CommitCopies();
    slot_ = slot_ + 1 == kSlots ? 0 : slot_ + 1;
  }

 private:
  static constexpr int kChunks = kDim / 8, kRows = kWarp / kChunks;  // rows of one instruction

  // The tile, or the first one of a later part.
  __device__ __forceinline__ void Settle(int tile) {
#pragma unroll 1
    while (tile >= walk_.EndTile()) {
      ++walk_.part;
      if (!walk_.HasPart(end_) && !walk_.NextUnit(p_, end_)) {
        more_ = false;
        return;
      }
      tile = OwnTile(walk_.FirstTile(), warp_);
    }
    tile_ = tile;
    block_ = BlockOf(p_, walk_.seq, walk_.cut.slot, tile * kTile);  // first used two Issues later
  }
  __device__ __forceinline__ void Copy() const {
    const int lane = threadIdx.x % kWarp, chunk = lane % kChunks;
    const uint32_t to = memory_ + slot_ * kSlotBytes;
#pragma unroll
    for (int i = 0; i < kTile; i += kRows) {
      const int row = i + lane / kChunks;
      CopyAsync(to + row * kDim * 2 + ((chunk ^ (row & 7)) << 4), from_ + i * row_stride_,
                row >= first_row_ && row < end_row_ ? 16 : 0);
    }
  }

  const AttentionParams& p_;
  Walk walk_;
  bool more_ = true;
  unsigned end_;
  uint32_t memory_;
  int warp_, row_stride_, tile_ = 0, slot_ = 0, block_ = 0;
  bool value_ = false;
  // Of the tile whose keys went out last.
  const bf16* from_ = nullptr;
  int first_row_ = 0, end_row_ = 0;
};

}  // namespace weir::kernels::gpu::decode
