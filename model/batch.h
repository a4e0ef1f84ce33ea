// What one forward pass works on: the packed batch, the memory of states, and scratch space.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/cuda/runtime.h"
#include "core/dtype.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::model {

constexpr int64_t kStateAlignment = 64;
inline int64_t AlignState(int64_t bytes) {
  return (bytes + kStateAlignment - 1) / kStateAlignment * kStateAlignment;
}

class BatchStorage;

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
  // On a GPU the arrays above lie in its memory, and these are the host's copies, to plan by; null
  // inside graph capture, where every sequence has one token.
  const int32_t* host_offsets = nullptr;
  const int32_t* host_cached = nullptr;
  const BatchStorage* host = nullptr;  // all of them
  int32_t max_entries = 0;             // upper bound of cached + run over the sequences
};

// In which types a sequence's memory is kept.
struct StateTypes {
  DType kv = DType::kF32;
  DType window = DType::kF32;  // of short convolutions: the type of activations
};

// Slot-major: one contiguous block per sequence holds the state of all layers. Page-major: one page
// holds its tokens of all full-attention layers.
struct StateMemory {
  std::byte* slots = nullptr;
  int64_t slot_bytes = 0;
  std::byte* pages = nullptr;
  int64_t page_bytes = 0;
  int page_tokens = 0;
  StateTypes types;
};

// Bump allocator over one buffer of the executor. A Scope gives back what was taken inside it.
class Scratch {
 public:
  static constexpr int64_t kAlignFloats = 64;  // 256 bytes: what vector accesses and copies like

  // `activations`: the type of Activations(), kF32 or kBF16.
  static absl::StatusOr<Scratch> Allocate(int64_t floats, DType activations, Stream stream) {
    Scratch scratch;
    scratch.activations_ = activations;
    const auto bytes = static_cast<size_t>(floats) * 4;
    ASSIGN_OR_RETURN(scratch.buffer_, stream.device == Device::kCuda
                                          ? cuda::AllocateDevice(bytes, "activations")
                                          : Buffer::Allocate(bytes, "activations"));
    return scratch;
  }

  // [rows, width], contiguous, contents undefined. REQUIRES: it fits (layers declare what they
  // take, see MixerNeeds::scratch_floats).
  TensorView Floats(int64_t rows, int64_t width) { return Take(DType::kF32, rows, width); }
  // What passes between matrix products: f32, or bf16 on a GPU that computes in bf16.
  TensorView Activations(int64_t rows, int64_t width) { return Take(activations_, rows, width); }
  DType activations() const { return activations_; }

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
  TensorView Take(DType dtype, int64_t rows, int64_t width) {
    std::byte* at = buffer_.data() + used_ * 4;
    used_ += (rows * width + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    WEIR_CHECK(used_ * 4 <= static_cast<int64_t>(buffer_.size_bytes()))
        << "scratch of " << buffer_.size_bytes() << " bytes, [" << rows << ", " << width
        << "] more";
    return TensorView(at, dtype, {rows, width});
  }

  Buffer buffer_;
  DType activations_ = DType::kF32;
  int64_t used_ = 0;
};

// Room for the index arrays of one batch, taken once: written on the host, and on a GPU mirrored
// there by one copy.
class BatchStorage {
 public:
  // `copies`: host-side blocks, so that one can be written while the copy of another is under way.
  static absl::StatusOr<BatchStorage> Make(int64_t max_tokens, int64_t max_sequences,
                                           int64_t columns, int copies, Stream stream);

  // Which host-side block the pointers below show.
  void Select(int copy);

  int64_t columns = 0;  // of the block table; 0: none here
  int32_t *offsets = nullptr, *slots = nullptr, *cached = nullptr;  // [sequences (+ 1)]
  int32_t *ids = nullptr, *positions = nullptr;                     // [tokens]
  int32_t* sources = nullptr;  // [tokens] >= 0: the id is what that row of the last step sampled
  int32_t* rows = nullptr;     // [tokens] picked rows: of the head, or of a routed mixer
  float* weights = nullptr;    // [tokens] of routed rows
  uint8_t* fresh = nullptr;    // [sequences]
  int32_t* block_table = nullptr;  // [sequences, columns]

  // GPU: enqueues the copy of what `tokens` tokens and `sequences` sequences take. With one
  // host-side block it waits for the copy.
  void Upload(int64_t tokens, int64_t sequences, Stream stream) const;

  // Of the first `sequences` sequences and `tokens` tokens; on a GPU the device's arrays.
  BatchView View(int tokens, int sequences, int singles) const;
  TensorView Ids(int64_t tokens) const { return Device(ids, tokens); }
  TensorView Sources(int64_t tokens) const { return Device(sources, tokens); }
  TensorView Rows(int64_t begin, int64_t count) const { return Device(rows + begin, count); }
  TensorView Weights(int64_t count) const {
    return TensorView(reinterpret_cast<float*>(At(weights)), {count});
  }

 private:
  // Where an array that starts at `host` starts for the ops.
  std::byte* At(const void* host) const;
  TensorView Device(int32_t* host, int64_t count) const {
    return TensorView(reinterpret_cast<int32_t*>(At(host)), {count});
  }

  int64_t max_tokens_ = 0, max_sequences_ = 0, fixed_bytes_ = 0;
  std::vector<Buffer> host_;
  Buffer device_;
  int current_ = 0;
};

// Everything that a layer's forward needs beside its input.
struct StepContext {
  const BatchView& batch;
  const StateMemory& state;
  Scratch& scratch;
  BatchStorage& routed;  // for the part of the batch that picked one mixer of a routed layer
  Stream stream;
  void* op_scratch = nullptr;  // GPU: for one op at a time, as Mixer::OpScratchBytes asks
};

}  // namespace weir::model
