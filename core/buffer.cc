#include "core/buffer.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"

namespace weir {
namespace {
constexpr size_t kHugePageBytes = size_t{2} << 20;
}

void internal::Unmap::operator()(std::byte* p) const {
  if (p != nullptr) munmap(p, mapped_bytes);
}

absl::StatusOr<Buffer> Buffer::Allocate(size_t bytes, const char* what) {
  const size_t mapped = bytes == 0 ? 1 : bytes;
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of memory for ", what));
  }
  if (mapped >= 2 * kHugePageBytes) madvise(p, mapped, MADV_HUGEPAGE);
  Buffer buffer;
  buffer.data_ = {static_cast<std::byte*>(p), internal::Unmap{mapped}};
  buffer.size_bytes_ = bytes;
  return buffer;
}

}  // namespace weir
