#include "server/commands/kernel_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/cuda/runtime.h"
#include "core/philox.h"

namespace weir::server {
namespace {

// Elements of the pattern that fills memory of any size.
constexpr int64_t kPattern = 1 << 18;

float Value(int64_t i, BenchMemory::Values values, float scale) {
  const auto bits = Philox(11, static_cast<uint64_t>(i));
  const float u = ToUniform(bits[0]);
  if (values == BenchMemory::Values::kPositive) return scale * u;
  const float normal =
      std::sqrt(-2.0f * std::log(u)) * std::cos(6.2831853f * ToUniform(bits[1])) * scale;
  return values == BenchMemory::Values::kNegative ? -std::fabs(normal) : normal;
}

}  // namespace

std::byte* BenchMemory::Allocate(int64_t bytes) {
  if (!status_.ok()) return nullptr;
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  absl::StatusOr<Buffer> buffer =
      gpu() ? cuda::AllocateDevice(size, "a benchmark") : Buffer::Allocate(size, "a benchmark");
  if (!buffer.ok()) {
    status_ = buffer.status();
    return nullptr;
  }
  buffers_.push_back(std::move(*buffer));
  return buffers_.back().data();
}

void BenchMemory::Upload(std::byte* to, const void* from, size_t bytes) {
  if (to == nullptr) return;
  if (!gpu()) {
    std::memcpy(to, from, bytes);
    return;
  }
  cuda::Copy(to, from, bytes, stream_);
  cuda::Synchronize(stream_);
}

TensorView BenchMemory::Make(DType dtype, std::initializer_list<int64_t> shape, Values values,
                             float scale) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  const auto element = static_cast<int64_t>(DTypeSize(dtype));
  std::byte* const data = Allocate(count * element);
  if (data == nullptr) return {};
  std::vector<std::byte> pattern(static_cast<size_t>(std::min(count, kPattern) * element));
  if (values != Values::kZero) {
    for (int64_t i = 0; i < std::min(count, kPattern); ++i) {
      const float value = Value(i, values, scale);
      if (dtype == DType::kBF16) {
        reinterpret_cast<BFloat16*>(pattern.data())[i] = ToBFloat16(value);
      } else {
        reinterpret_cast<float*>(pattern.data())[i] = value;
      }
    }
  }
  // The rest is copied from the part that is there, twice as much each time.
  int64_t done = static_cast<int64_t>(pattern.size());
  Upload(data, pattern.data(), pattern.size());
  for (const int64_t bytes = count * element; done < bytes;) {
    const int64_t more = std::min(done, bytes - done);
    Upload(data + done, data, static_cast<size_t>(more));
    done += more;
  }
  return TensorView(data, dtype, shape);
}

void* BenchMemory::Raw(int64_t bytes, Values values, float scale) {
  if (bytes <= 0) return nullptr;
  return Make(DType::kF32, {(bytes + 3) / 4}, values, scale).raw();
}

TensorView BenchMemory::Ints(const std::vector<int32_t>& values) {
  std::byte* const data = Allocate(static_cast<int64_t>(values.size() * sizeof(int32_t)));
  Upload(data, values.data(), values.size() * sizeof(int32_t));
  return TensorView(data, DType::kI32, {static_cast<int64_t>(values.size())});
}

TensorView BenchMemory::Bytes(const std::vector<uint8_t>& values) {
  std::byte* const data = Allocate(static_cast<int64_t>(values.size()));
  Upload(data, values.data(), values.size());
  return TensorView(data, DType::kU8, {static_cast<int64_t>(values.size())});
}

}  // namespace weir::server
