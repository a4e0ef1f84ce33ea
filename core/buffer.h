// Buffer: owned, 64-byte aligned host memory, zeroed at allocation.
#pragma once

#include <cstddef>
#include <memory>

#include "core/status.h"

namespace weir {
namespace internal {
// Deleter that knows how much was mapped.
struct Unmap {
  size_t mapped_bytes = 0;
  void operator()(std::byte* p) const;
};
}  // namespace internal

class Buffer {
 public:
  Buffer() = default;

  // Large buffers ask the kernel for huge pages. ResourceExhausted when memory is not to be had,
  // naming the bytes asked for and `what` they were for.
  static absl::StatusOr<Buffer> Allocate(size_t bytes, const char* what);

  std::byte* data() const { return data_.get(); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<std::byte, internal::Unmap> data_;
  size_t size_bytes_ = 0;
};

}  // namespace weir
