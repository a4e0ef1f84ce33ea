// Buffer: owned, 64-byte aligned memory: of the host, zeroed at allocation, or what core/cuda hands
// out.
#pragma once

#include <cstddef>
#include <memory>

#include "core/status.h"

namespace weir {
namespace internal {
// Deleter that knows how much was taken, and from whom.
struct Release {
  size_t bytes = 0;
  void (*release)(std::byte* p, size_t bytes) = nullptr;
  void operator()(std::byte* p) const {
    if (p != nullptr) release(p, bytes);
  }
};
}  // namespace internal

class Buffer {
 public:
  Buffer() = default;

  // Large buffers ask the kernel for huge pages. ResourceExhausted when memory is not to be had,
  // naming the bytes asked for and `what` they were for.
  static absl::StatusOr<Buffer> Allocate(size_t bytes, const char* what);

  // Takes over memory of another allocator, given back as release(p, taken). `bytes` of it are in
  // use.
  static Buffer Adopt(std::byte* p, size_t taken, size_t bytes,
                      void (*release)(std::byte* p, size_t taken)) {
    Buffer buffer;
    buffer.data_ = {p, internal::Release{taken, release}};
    buffer.size_bytes_ = bytes;
    return buffer;
  }

  std::byte* data() const { return data_.get(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<std::byte, internal::Release> data_;
  size_t size_bytes_ = 0;
};

}  // namespace weir
