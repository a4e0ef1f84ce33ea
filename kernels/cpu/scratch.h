// Scratch memory of a kernel: grows to the largest request and is kept for the life of its owner
// (declare it `static thread_local`), so that a warm kernel allocates nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "core/check.h"

namespace weir::kernels {

class Scratch {
 public:
  // At least `bytes`, 64-byte aligned, contents undefined, valid until the next call.
  void* Get(size_t bytes) {
    if (bytes > size_) {
      const size_t grown = (bytes + bytes / 2 + 4095) / 4096 * 4096;
      data_.reset(std::aligned_alloc(4096, grown));
      WEIR_CHECK(data_ != nullptr) << "no memory for " << grown << " bytes of kernel scratch";
      size_ = grown;
    }
    return data_.get();
  }
  template <typename T>
  T* Of(size_t count) {
    return static_cast<T*>(Get(count * sizeof(T)));
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

}  // namespace weir::kernels
