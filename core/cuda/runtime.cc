#include "core/cuda/runtime.h"

#include <nvtx3/nvToolsExt.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/cuda/check.h"

namespace weir::cuda {
namespace {

cudaStream_t Native(Stream stream) { return static_cast<cudaStream_t>(stream.native); }

std::mutex& Mutex() {
  static std::mutex mutex;
  return mutex;
}

struct State {
  DeviceInfo info;
  bool open = false;
  AllocationCounts counts;
  bool sealed = false;
  std::function<void(const std::string&)> fatal_hook;
};
State& Shared() {
  static State* state = new State;  // lives as long as buffers of static storage may
  return *state;
}

// REQUIRES: the mutex held.
void CountAllocation(int64_t device_bytes, const char* what) {
  State& state = Shared();
  state.counts.device_bytes += device_bytes;
  ++state.counts.allocations;
  if (!state.sealed) return;
  ++state.counts.after_seal;
#ifndef NDEBUG
  WEIR_CHECK(!state.sealed) << "an allocation for " << what << " after warm-up";
#else
  (void)what;
#endif
}

absl::Status NoMemory(size_t bytes, const char* kind, const char* what, cudaError_t error) {
  (void)cudaGetLastError();
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) (void)cudaGetLastError();
  return absl::ResourceExhaustedError(absl::StrCat(
      "cannot allocate ", bytes, " bytes of ", kind, " memory for ", what, " (",
      cudaGetErrorString(error), "; ", free, " of ", total, " bytes of the GPU are free)"));
}

// Blocks below this size are cut from larger ones: a cudaMalloc costs and aligns to 2 MiB.
constexpr size_t kSmallBytes = size_t{1} << 20;
constexpr size_t kChunkBytes = size_t{16} << 20;
constexpr size_t kAlignment = 256;

// A bump allocator whose chunks go away with the last block in them.
struct Chunk {
  std::byte* base = nullptr;
  size_t used = 0;
  int64_t blocks = 0;
};
std::vector<Chunk>& Chunks() {
  static auto* chunks = new std::vector<Chunk>;
  return *chunks;
}

void FreeDevice(std::byte* p, size_t bytes) {
  std::lock_guard lock(Mutex());
  Shared().counts.device_bytes -= static_cast<int64_t>(bytes);
  if (bytes >= kSmallBytes) {
    // At exit the driver may be gone already: its memory went with it.
    if (cudaFree(p) != cudaSuccess) (void)cudaGetLastError();
    return;
  }
  std::vector<Chunk>& chunks = Chunks();
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (p < chunks[i].base || p >= chunks[i].base + kChunkBytes) continue;
    if (--chunks[i].blocks > 0) return;
    if (cudaFree(chunks[i].base) != cudaSuccess) (void)cudaGetLastError();
    chunks.erase(chunks.begin() + static_cast<int64_t>(i));
    return;
  }
}

void FreePinned(std::byte* p, size_t) {
  if (cudaFreeHost(p) != cudaSuccess) (void)cudaGetLastError();
}

// REQUIRES: the mutex held.
cudaError_t TakeSmall(size_t bytes, std::byte** at) {
  std::vector<Chunk>& chunks = Chunks();
  if (chunks.empty() || chunks.back().used + bytes > kChunkBytes) {
    Chunk chunk;
    void* p = nullptr;
    const cudaError_t error = cudaMalloc(&p, kChunkBytes);
    if (error != cudaSuccess) return error;
    chunk.base = static_cast<std::byte*>(p);
    chunks.push_back(chunk);
  }
  Chunk& chunk = chunks.back();
  *at = chunk.base + chunk.used;
  chunk.used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  ++chunk.blocks;
  return cudaSuccess;
}

absl::StatusOr<DeviceInfo> Find() {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    return absl::UnavailableError(absl::StrCat("no usable GPU: ", error != cudaSuccess
                                                                      ? cudaGetErrorString(error)
                                                                      : "the driver shows none"));
  }
  WEIR_CUDA_CHECK(cudaSetDevice(0));
  cudaDeviceProp properties{};
  WEIR_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  if (properties.major < 8) {
    return absl::UnavailableError(absl::StrCat(properties.name, " has compute capability ",
                                               properties.major, ".", properties.minor,
                                               "; 8.0 or newer is needed"));
  }
  DeviceInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.l2_bytes = properties.l2CacheSize;
  info.max_shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin);
  WEIR_CUDA_CHECK(cudaDriverGetVersion(&info.driver));
  return info;
}

}  // namespace

absl::StatusOr<DeviceInfo> Open() {
  std::lock_guard lock(Mutex());
  State& state = Shared();
  if (!state.open) {
    ASSIGN_OR_RETURN(state.info, Find());
    state.open = true;
  }
  size_t free = 0, total = 0;
  WEIR_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  state.info.free_bytes = static_cast<int64_t>(free);
  state.info.total_bytes = static_cast<int64_t>(total);
  return state.info;
}

const DeviceInfo& Device() {
  WEIR_CHECK(Shared().open) << "cuda::Open() has not succeeded";
  return Shared().info;
}

absl::StatusOr<Buffer> AllocateDevice(size_t bytes, const char* what) {
  const size_t size = bytes == 0 ? 1 : bytes;
  std::lock_guard lock(Mutex());
  std::byte* at = nullptr;
  void* whole = nullptr;
  const cudaError_t error = size >= kSmallBytes ? cudaMalloc(&whole, size) : TakeSmall(size, &at);
  if (error != cudaSuccess) return NoMemory(bytes, "device", what, error);
  if (whole != nullptr) at = static_cast<std::byte*>(whole);
  CountAllocation(static_cast<int64_t>(size), what);
  return Buffer::Adopt(at, size, bytes, &FreeDevice);
}

absl::StatusOr<Buffer> AllocatePinned(size_t bytes, const char* what) {
  const size_t size = bytes == 0 ? 1 : bytes;
  void* p = nullptr;
  const cudaError_t error = cudaHostAlloc(&p, size, cudaHostAllocDefault);
  if (error != cudaSuccess) return NoMemory(bytes, "pinned host", what, error);
  std::memset(p, 0, size);
  std::lock_guard lock(Mutex());
  CountAllocation(0, what);
  return Buffer::Adopt(static_cast<std::byte*>(p), size, bytes, &FreePinned);
}

AllocationCounts Allocations() {
  std::lock_guard lock(Mutex());
  return Shared().counts;
}

void SealAllocations(bool sealed) {
  std::lock_guard lock(Mutex());
  Shared().sealed = sealed;
}

void Copy(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  WEIR_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, Native(stream)));
}

void Zero(void* at, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  WEIR_CUDA_CHECK(cudaMemsetAsync(at, 0, bytes, Native(stream)));
}

void Synchronize(Stream stream) { WEIR_CUDA_CHECK(cudaStreamSynchronize(Native(stream))); }

OwnedStream OwnedStream::Make() {
  cudaStream_t native = nullptr;
  WEIR_CUDA_CHECK(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking));
  OwnedStream stream;
  stream.native_ = native;
  return stream;
}
OwnedStream::OwnedStream(OwnedStream&& other) noexcept
    : native_(std::exchange(other.native_, nullptr)) {}
OwnedStream& OwnedStream::operator=(OwnedStream&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}
OwnedStream::~OwnedStream() {
  if (native_ != nullptr) (void)cudaStreamDestroy(static_cast<cudaStream_t>(native_));
}

Event Event::Make(bool timing) {
  cudaEvent_t native = nullptr;
  WEIR_CUDA_CHECK(
      cudaEventCreateWithFlags(&native, timing ? cudaEventDefault : cudaEventDisableTiming));
  Event event;
  event.native_ = native;
  return event;
}
Event::Event(Event&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}
Event::~Event() {
  if (native_ != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(native_));
}
void Event::Record(Stream stream) const {
  WEIR_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(native_), Native(stream)));
}
void Event::Synchronize() const {
  WEIR_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(native_)));
}
bool Event::Done() const {
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(native_));
  if (error == cudaErrorNotReady) return false;
  WEIR_CUDA_CHECK(error);
  return true;
}
void Event::Block(Stream stream) const {
  WEIR_CUDA_CHECK(cudaStreamWaitEvent(Native(stream), static_cast<cudaEvent_t>(native_), 0));
}
float Event::Milliseconds(const Event& begin, const Event& end) {
  float milliseconds = 0;
  WEIR_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(begin.native_),
                                       static_cast<cudaEvent_t>(end.native_)));
  return milliseconds;
}

Graph Graph::Capture(Stream stream, const std::function<void()>& enqueue) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  WEIR_CUDA_CHECK(cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal));
  enqueue();
  WEIR_CUDA_CHECK(cudaStreamEndCapture(Native(stream), &graph));
  WEIR_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  WEIR_CUDA_CHECK(cudaGraphDestroy(graph));
  WEIR_CUDA_CHECK(cudaGraphUpload(exec, Native(stream)));
  Graph made;
  made.native_ = exec;
  return made;
}
Graph::Graph(Graph&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}
Graph::~Graph() {
  if (native_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(native_));
}
void Graph::Launch(Stream stream) const {
  WEIR_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(native_), Native(stream)));
}

void SetFatalHook(std::function<void(const std::string&)> hook) {
  std::lock_guard lock(Mutex());
  Shared().fatal_hook = std::move(hook);
}

void Die(const char* file, int line, const std::string& what, const char* error) {
  const std::string message = absl::StrCat(
      file, ":", line, ": CUDA error: ", error, " in ", what,
      "\nThe GPU's state cannot be trusted any more, so the process ends; a supervisor restarts it."
      " Run with CUDA_LAUNCH_BLOCKING=1 to see which kernel failed; nvidia-smi and the kernel's"
      " log (Xid) tell a broken GPU from a bug.");
  std::fprintf(stderr, "%s\n", message.c_str());
  std::fflush(stderr);
  // Without the lock: the failing call may hold it.
  auto hook = std::exchange(Shared().fatal_hook, nullptr);
  if (hook) hook(message);
  std::abort();
}

Range::Range(const char* name) { nvtxRangePushA(name); }
Range::~Range() { nvtxRangePop(); }

}  // namespace weir::cuda
