// One test body for both devices: the test fills host vectors, the mirror shows the op the same
// data where the op runs, and brings back what the op wrote.
//
//   DeviceMirror mirror(device, activations);    // kCpu: every call is the identity
//   args.x = mirror.Activation(view_of_x);       // f32 host data; on the GPU as `activations` (f32
//   or bf16) args.weight = mirror.Plain(view);            // any dtype, copied as it is args.state
//   = mirror.Memory(pool, bytes);     // raw memory, e.g. slots Op(args, mirror.stream());
//   mirror.Fetch();                              // host vectors now hold what the op left there
//
// With bf16 activations the host data is rounded in place first, so that a reference computed from
// it afterwards starts from the same numbers. A view keeps its strides: gaps are mirrored too, and
// checked to be untouched where the test poisons them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "core/dtype.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "gtest/gtest.h"

namespace weir::kernels::testing {

// Skips the test with a word where there is no GPU. WEIR_REQUIRE_GPU in the environment makes it
// fail.
#define WEIR_NEEDS_GPU()                                                         \
  if (const auto weir_gpu = ::weir::cuda::Open(); !weir_gpu.ok()) {              \
    if (std::getenv("WEIR_REQUIRE_GPU") != nullptr) FAIL() << weir_gpu.status(); \
    GTEST_SKIP() << "no GPU: " << weir_gpu.status().message();                   \
  }

class DeviceMirror {
 public:
  DeviceMirror(Device device, DType activations, ThreadPool* pool)
      : device_(device), activations_(activations), pool_(pool) {
    if (device_ == Device::kCuda) stream_ = cuda::OwnedStream::Make();
  }

  Stream stream() const {
    return device_ == Device::kCuda ? stream_.get() : Stream{Device::kCpu, pool_, nullptr};
  }
  DType activations() const { return device_ == Device::kCuda ? activations_ : DType::kF32; }

  // f32 host data shown in the type of activations. Two views of one host range share one mirror
  // when the first one mirrored covers the other.
  TensorView Activation(const TensorView& host) {
    if (device_ == Device::kCpu || !host.defined()) return host;
    Block& block = Find(host, activations_);
    TensorView view = host;
    return Rebase(view, block);
  }
  TensorView Plain(const TensorView& host) {
    if (device_ == Device::kCpu || !host.defined()) return host;
    return Rebase(host, Find(host, host.dtype()));
  }
  void* Memory(void* host, size_t bytes) {
    if (device_ == Device::kCpu || host == nullptr) return host;
    return Add(static_cast<std::byte*>(host), bytes, DType::kU8, DType::kU8).device.data();
  }
  // Device memory without a host side, filled with NaNs.
  void* Scratch(size_t bytes) {
    if (device_ == Device::kCpu) return nullptr;
    auto buffer = cuda::AllocateDevice(bytes, "test scratch");
    WEIR_CHECK(buffer.ok()) << buffer.status().message();
    const std::vector<std::byte> poison(bytes, std::byte{0xff});
    cuda::Copy(buffer->data(), poison.data(), bytes, stream_.get());
    cuda::Synchronize(stream_.get());
    scratch_.push_back(std::move(*buffer));
    return scratch_.back().data();
  }

  // Waits for the stream and brings everything back.
  void Fetch() {
    if (device_ == Device::kCpu) return;
    cuda::Synchronize(stream_.get());
    for (Block& block : blocks_) {
      std::vector<std::byte> staged(block.device.size_bytes());
      cuda::Copy(staged.data(), block.device.data(), staged.size(), stream_.get());
      cuda::Synchronize(stream_.get());
      FromStaged(block, staged);
    }
  }

 private:
  struct Block {
    std::byte* host = nullptr;
    size_t host_bytes = 0;
    DType host_dtype{}, device_dtype{};
    Buffer device;
  };

  static size_t SpanBytes(const TensorView& view) {
    int64_t inner = 1;
    for (int i = 1; i < view.rank(); ++i) inner *= view.size(i);
    if (view.num_elements() == 0) return 0;
    const int64_t last = view.rank() == 0 ? 0 : (view.size(0) - 1) * view.row_stride();
    return static_cast<size_t>((last + inner) * DTypeSize(view.dtype()));
  }

  Block& Find(const TensorView& host, DType device_dtype) {
    auto* begin = static_cast<std::byte*>(host.raw());
    const size_t bytes = SpanBytes(host);
    for (Block& block : blocks_) {
      if (begin >= block.host && begin + bytes <= block.host + block.host_bytes &&
          block.host_dtype == host.dtype() && block.device_dtype == device_dtype) {
        return block;
      }
    }
    return Add(begin, bytes, host.dtype(), device_dtype);
  }

  Block& Add(std::byte* host, size_t bytes, DType host_dtype, DType device_dtype) {
    const size_t elements = bytes / static_cast<size_t>(DTypeSize(host_dtype));
    Block block{host, bytes, host_dtype, device_dtype, {}};
    auto buffer =
        cuda::AllocateDevice(elements * static_cast<size_t>(DTypeSize(device_dtype)), "test data");
    WEIR_CHECK(buffer.ok()) << buffer.status().message();
    block.device = std::move(*buffer);
    std::vector<std::byte> staged(block.device.size_bytes());
    if (host_dtype == device_dtype) {
      std::memcpy(staged.data(), host, bytes);
    } else {
      auto* from = reinterpret_cast<float*>(host);
      auto* to = reinterpret_cast<BFloat16*>(staged.data());
      for (size_t i = 0; i < elements; ++i) {
        to[i] = ToBFloat16(from[i]);
        from[i] = ToFloat(to[i]);
      }
    }
    cuda::Copy(block.device.data(), staged.data(), staged.size(), stream_.get());
    cuda::Synchronize(stream_.get());
    blocks_.push_back(std::move(block));
    return blocks_.back();
  }

  static void FromStaged(Block& block, const std::vector<std::byte>& staged) {
    if (block.host_dtype == block.device_dtype) {
      std::memcpy(block.host, staged.data(), block.host_bytes);
      return;
    }
    auto* to = reinterpret_cast<float*>(block.host);
    const auto* from = reinterpret_cast<const BFloat16*>(staged.data());
    for (size_t i = 0; i < block.host_bytes / 4; ++i) to[i] = ToFloat(from[i]);
  }

  static TensorView Rebase(const TensorView& host, const Block& block) {
    const auto offset = static_cast<const std::byte*>(host.raw()) - block.host;
    const int64_t element = offset / DTypeSize(block.host_dtype);
    return host.At(block.device.data() + element * DTypeSize(block.device_dtype),
                   block.device_dtype);
  }

  Device device_;
  DType activations_;
  ThreadPool* pool_;
  cuda::OwnedStream stream_;
  std::vector<Block> blocks_;
  std::vector<Buffer> scratch_;
};

// What a kernel test runs on: parameters of its cases.
struct Target {
  Device device = Device::kCpu;
  DType activations = DType::kF32;
  std::string name() const {
    return device == Device::kCpu ? "cpu" : activations == DType::kF32 ? "gpu_f32" : "gpu_bf16";
  }
};
inline std::vector<Target> Targets() {
  return {{Device::kCpu, DType::kF32}, {Device::kCuda, DType::kF32}, {Device::kCuda, DType::kBF16}};
}
// What one rounding to the activations' type adds, relative.
inline double ActivationEps(const Target& target) {
  return target.device == Device::kCuda && target.activations == DType::kBF16 ? 0x1p-8 : 0x1p-24;
}

}  // namespace weir::kernels::testing
