// The CUDA runtime as the rest of the project sees it: devices, memory, streams, events, graphs. No
// CUDA header is needed to include this one, and everything links in a build without CUDA, where
// Open() says so.
//
// Failures that a user can cause (no driver, no GPU, memory that is not to be had) are statuses.
// Any other CUDA error is a bug or a broken device: the process ends with the call, the place and a
// hint (see Die).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/buffer.h"
#include "core/status.h"
#include "core/stream.h"

namespace weir::cuda {

// Whether this binary holds CUDA kernels at all.
inline constexpr bool kBuilt = WEIR_HAS_CUDA != 0;

struct DeviceInfo {
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0, l2_bytes = 0;
  int max_shared_bytes = 0;  // per block, after opting in
  int driver = 0;            // e.g. 13000
};

// The first GPU (CUDA_VISIBLE_DEVICES orders them). UNAVAILABLE with the reason when this build has
// no CUDA, or the machine no driver, no GPU, or one older than compute capability 8.0. Safe from
// any thread.
absl::StatusOr<DeviceInfo> Open();
// What Open() found. REQUIRES: Open() succeeded before.
const DeviceInfo& Device();

// Device memory, contents undefined; pinned host memory, zeroed. RESOURCE_EXHAUSTED naming the
// bytes and what they were for. Small device blocks share larger allocations.
absl::StatusOr<Buffer> AllocateDevice(size_t bytes, const char* what);
absl::StatusOr<Buffer> AllocatePinned(size_t bytes, const char* what);

// Device bytes held now, and how many allocations of either kind were ever made. Once sealed, a
// further allocation ends the process in builds with assertions and is counted in `after_seal`
// otherwise.
struct AllocationCounts {
  int64_t device_bytes = 0;
  int64_t allocations = 0;
  int64_t after_seal = 0;
};
AllocationCounts Allocations();
void SealAllocations(bool sealed);

// Enqueues a copy between any two memories (host memory must be pinned to overlap) or a fill with
// zeros.
void Copy(void* to, const void* from, size_t bytes, Stream stream);
void Zero(void* at, size_t bytes, Stream stream);
// Blocks until everything enqueued is done.
void Synchronize(Stream stream);

// A stream of its own; destroyed with the object.
class OwnedStream {
 public:
  static OwnedStream Make();
  OwnedStream() = default;
  OwnedStream(OwnedStream&& other) noexcept;
  OwnedStream& operator=(OwnedStream&& other) noexcept;
  ~OwnedStream();
  Stream get() const { return {weir::Device::kCuda, nullptr, native_}; }

 private:
  void* native_ = nullptr;
};

class Event {
 public:
  // Timing costs a little: only where milliseconds are asked for.
  static Event Make(bool timing = false);
  Event() = default;
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();
  void Record(Stream stream) const;
  void Synchronize() const;
  bool Done() const;
  // What is enqueued on `stream` from now on runs after the recorded point.
  void Block(Stream stream) const;
  // REQUIRES: both made with timing, recorded and done.
  static float Milliseconds(const Event& begin, const Event& end);

 private:
  void* native_ = nullptr;
};

// Work captured once and launched many times.
class Graph {
 public:
  // Runs `enqueue`, whose work on `stream` is recorded and not executed. Copies inside must not
  // touch pageable memory. The graph is uploaded, ready to launch.
  static Graph Capture(Stream stream, const std::function<void()>& enqueue);
  Graph() = default;
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();
  bool defined() const { return native_ != nullptr; }
  void Launch(Stream stream) const;

 private:
  void* native_ = nullptr;
};

// Called once, with the message, before a CUDA error ends the process: takes health down.
void SetFatalHook(std::function<void(const std::string&)> hook);
// Ends the process: `what` names the op and its shapes, `error` is the CUDA error's text.
[[noreturn]] void Die(const char* file, int line, const std::string& what, const char* error);

// A range in a profiler's timeline for the life of the object; costs a few nanoseconds without one.
class Range {
 public:
  explicit Range(const char* name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace weir::cuda
