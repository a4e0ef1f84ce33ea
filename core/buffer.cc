#include "core/buffer.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"

namespace weir {
namespace {
constexpr size_t kHugePageBytes = size_t{2} << 20;
}

absl::StatusOr<Buffer> Buffer::Allocate(size_t bytes, const char* what) {
  const size_t mapped = bytes == 0 ? 1 : bytes;
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of memory for ", what));
  }
  if (mapped >= 2 * kHugePageBytes) madvise(p, mapped, MADV_HUGEPAGE);
  return Adopt(static_cast<std::byte*>(p), mapped, bytes,
               [](std::byte* at, size_t size) { munmap(at, size); });
}

}  // namespace weir
