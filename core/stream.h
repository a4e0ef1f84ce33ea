// Stream: where an op runs and in which order. Ops take it as their last argument.
//
// CPU: ops run to completion on the calling thread and the workers of `pool` before they return.
// CUDA: `native` is a cudaStream_t; ops enqueue and return.
#pragma once

namespace weir {

class ThreadPool;

enum class Device : unsigned char { kCpu, kCuda };

struct Stream {
  Device device = Device::kCpu;
  ThreadPool* pool = nullptr;  // CPU: never null; owned by the executor
  void* native = nullptr;      // CUDA: cudaStream_t
};

}  // namespace weir
