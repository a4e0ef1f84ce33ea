#include "model/batch.h"

#include <algorithm>

namespace weir::model {
namespace {
// Arrays start where vector accesses like it.
int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
}  // namespace

absl::StatusOr<BatchStorage> BatchStorage::Make(int64_t max_tokens, int64_t max_sequences,
                                                int64_t columns, int copies, Stream stream) {
  BatchStorage storage;
  storage.columns = columns;
  storage.max_tokens_ = max_tokens;
  storage.max_sequences_ = max_sequences;
  storage.fixed_bytes_ =
      3 * Aligned((max_sequences + 1) * 4) + Aligned(max_sequences) + 5 * Aligned(max_tokens * 4);
  const auto bytes = static_cast<size_t>(storage.fixed_bytes_ + max_sequences * columns * 4);
  const bool gpu = stream.device == weir::Device::kCuda;
  for (int i = 0; i < copies; ++i) {
    ASSIGN_OR_RETURN(Buffer block, gpu ? cuda::AllocatePinned(bytes, "the batch's arrays")
                                       : Buffer::Allocate(bytes, "the batch's arrays"));
    storage.host_.push_back(std::move(block));
  }
  if (gpu) {
    ASSIGN_OR_RETURN(storage.device_, cuda::AllocateDevice(bytes, "the batch's arrays"));
  }
  storage.Select(0);
  return storage;
}

void BatchStorage::Select(int copy) {
  current_ = copy;
  std::byte* at = host_[static_cast<size_t>(copy)].data();
  const auto take = [&]<typename T>(T** array, int64_t count) {
    *array = reinterpret_cast<T*>(at);
    at += Aligned(count * static_cast<int64_t>(sizeof(T)));
  };
  take(&offsets, max_sequences_ + 1);
  take(&slots, max_sequences_ + 1);
  take(&cached, max_sequences_ + 1);
  take(&fresh, max_sequences_);
  take(&ids, max_tokens_);
  take(&sources, max_tokens_);
  take(&positions, max_tokens_);
  take(&rows, max_tokens_);
  take(&weights, max_tokens_);
  block_table = columns > 0 ? reinterpret_cast<int32_t*>(at) : nullptr;
}

std::byte* BatchStorage::At(const void* host) const {
  const std::byte* base = host_[static_cast<size_t>(current_)].data();
  if (device_.size_bytes() == 0) return const_cast<std::byte*>(static_cast<const std::byte*>(host));
  return device_.data() + (static_cast<const std::byte*>(host) - base);
}

void BatchStorage::Upload(int64_t tokens, int64_t sequences, Stream stream) const {
  if (stream.device != weir::Device::kCuda) return;
  const Buffer& from = host_[static_cast<size_t>(current_)];
  // Arrays of tokens are long and mostly unused in decode: up to the first of them in one piece.
  const auto copy = [&](const void* begin, int64_t bytes) {
    cuda::Copy(At(begin), begin, static_cast<size_t>(bytes), stream);
  };
  if (max_tokens_ <= 4 * tokens + 1024) {
    cuda::Copy(device_.data(), from.data(), static_cast<size_t>(fixed_bytes_), stream);
  } else {
    copy(offsets, reinterpret_cast<std::byte*>(ids) - reinterpret_cast<std::byte*>(offsets));
    for (const int32_t* array : {ids, sources, positions, rows}) copy(array, tokens * 4);
    copy(weights, tokens * 4);
  }
  if (columns > 0) copy(block_table, sequences * columns * 4);
  if (host_.size() == 1) cuda::Synchronize(stream);
}

BatchView BatchStorage::View(int tokens, int sequences, int singles) const {
  BatchView view;
  view.tokens = tokens;
  view.sequences = sequences;
  view.singles = singles;
  view.offsets = Device(offsets, sequences + 1);
  view.slots = Device(slots, sequences);
  view.fresh = TensorView(reinterpret_cast<uint8_t*>(At(fresh)), {sequences});
  view.cached = Device(cached, sequences);
  view.positions = Device(positions, tokens);
  if (columns > 0) {
    view.block_table =
        TensorView(reinterpret_cast<int32_t*>(At(block_table)), {sequences, columns});
  }
  view.host_offsets = offsets;
  view.host_cached = cached;
  view.host = this;
  for (int s = 0; s < sequences; ++s) {
    view.max_entries = std::max(view.max_entries, cached[s] + offsets[s + 1] - offsets[s]);
  }
  return view;
}

}  // namespace weir::model
