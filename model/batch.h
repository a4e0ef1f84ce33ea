// What one forward pass works on: the packed batch, the memory of states, and scratch space.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/dtype.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::model {

constexpr int64_t kStateAlignment = 64;
inline int64_t AlignState(int64_t bytes) {
  return (bytes + kStateAlignment - 1) / kStateAlignment * kStateAlignment;
}

// Tokens of several sequences, one after another. Sequences with one token come first: they go
// through the step form of a recurrence and the others through the chunk form, so that which form a
// sequence gets depends on its own run alone. Sequences of a batch have at least one token each.
struct BatchView {
  int tokens = 0;
  int sequences = 0;
  int singles = 0;       // the first `singles` sequences have one token each
  TensorView offsets;    // [sequences + 1] i32: sequence s owns tokens [offsets[s], offsets[s + 1])
  TensorView slots;      // [sequences] i32
  TensorView fresh;      // [sequences] u8: 1: the state starts from zero
  TensorView cached;     // [sequences] i32: entries that attention has stored before
  TensorView positions;  // [tokens] i32, absolute
  TensorView block_table;  // [sequences, columns] i32; undefined when no layer uses pages
};

// Slot-major: one contiguous block per sequence holds the state of all layers. Page-major: one page
// holds its tokens of all full-attention layers.
struct StateMemory {
  std::byte* slots = nullptr;
  int64_t slot_bytes = 0;
  std::byte* pages = nullptr;
  int64_t page_bytes = 0;
  int page_tokens = 0;
  DType kv_dtype = DType::kF32;
};

// Bump allocator over one buffer of the executor. A Scope gives back what was taken inside it.
class Scratch {
 public:
  static constexpr int64_t kAlignFloats = 16;

  static absl::StatusOr<Scratch> Allocate(int64_t floats) {
    Scratch scratch;
    ASSIGN_OR_RETURN(scratch.buffer_,
                     Buffer::Allocate(static_cast<size_t>(floats) * 4, "activations"));
    return scratch;
  }

  // [rows, width] f32, contiguous, contents undefined. REQUIRES: it fits (layers declare what they
  // take, see MixerNeeds::scratch_floats).
  TensorView Floats(int64_t rows, int64_t width) {
    float* at = buffer_.as<float>() + used_;
    used_ += (rows * width + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    WEIR_CHECK(used_ * 4 <= static_cast<int64_t>(buffer_.size_bytes()))
        << "scratch of " << buffer_.size_bytes() << " bytes, [" << rows << ", " << width
        << "] more";
    return TensorView(at, {rows, width});
  }

  class Scope {
   public:
    explicit Scope(Scratch& scratch) : scratch_(scratch), mark_(scratch.used_) {}
    ~Scope() { scratch_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Scratch& scratch_;
    int64_t mark_;
  };

 private:
  Buffer buffer_;
  int64_t used_ = 0;
};

// Room for one batch's index arrays, taken once.
struct BatchStorage {
  BatchStorage(int max_tokens, int max_sequences, int max_columns)
      : columns(max_columns),
        offsets(static_cast<size_t>(max_sequences) + 1),
        slots(static_cast<size_t>(max_sequences)),
        cached(static_cast<size_t>(max_sequences)),
        positions(static_cast<size_t>(max_tokens)),
        rows(static_cast<size_t>(max_tokens)),
        block_table(static_cast<size_t>(max_sequences) * static_cast<size_t>(max_columns)),
        fresh(static_cast<size_t>(max_sequences)),
        weights(static_cast<size_t>(max_tokens)) {}

  // The first `sequences` sequences and `tokens` tokens of what the arrays hold.
  BatchView View(int tokens, int sequences, int singles) {
    BatchView view;
    view.tokens = tokens;
    view.sequences = sequences;
    view.singles = singles;
    view.offsets = TensorView(offsets.data(), {sequences + 1});
    view.slots = TensorView(slots.data(), {sequences});
    view.fresh = TensorView(fresh.data(), {sequences});
    view.cached = TensorView(cached.data(), {sequences});
    view.positions = TensorView(positions.data(), {tokens});
    if (columns > 0) view.block_table = TensorView(block_table.data(), {sequences, columns});
    return view;
  }

  int columns;  // of the block table
  std::vector<int32_t> offsets, slots, cached, positions, rows, block_table;
  std::vector<uint8_t> fresh;
  std::vector<float> weights;  // of routed rows
};

// Everything that a layer's forward needs beside its input.
struct StepContext {
  const BatchView& batch;
  const StateMemory& state;
  Scratch& scratch;
  BatchStorage& routed;  // for the part of the batch that picked one mixer of a routed layer
  Stream stream;
};

}  // namespace weir::model
