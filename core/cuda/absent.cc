// The CUDA runtime of a build without CUDA: Open() says so, and nothing else can be reached.
#include "core/check.h"
#include "core/cuda/runtime.h"

namespace weir::cuda {
namespace {
absl::Status Absent() {
  return absl::UnavailableError(
      "this binary was built without CUDA; `make cuda-toolkit` and a new build add it");
}
}  // namespace

absl::StatusOr<DeviceInfo> Open() { return Absent(); }
const DeviceInfo& Device() { WEIR_CHECK(false) << Absent().message(); }
absl::StatusOr<Buffer> AllocateDevice(size_t, const char*) { return Absent(); }
absl::StatusOr<Buffer> AllocatePinned(size_t, const char*) { return Absent(); }
AllocationCounts Allocations() { return {}; }
void SealAllocations(bool) {}
void Copy(void*, const void*, size_t, Stream) { WEIR_CHECK(false) << Absent().message(); }
void Zero(void*, size_t, Stream) { WEIR_CHECK(false) << Absent().message(); }
void Synchronize(Stream) { WEIR_CHECK(false) << Absent().message(); }
OwnedStream OwnedStream::Make() { WEIR_CHECK(false) << Absent().message(); }
OwnedStream::OwnedStream(OwnedStream&&) noexcept = default;
OwnedStream& OwnedStream::operator=(OwnedStream&&) noexcept = default;
OwnedStream::~OwnedStream() = default;
Event Event::Make(bool) { WEIR_CHECK(false) << Absent().message(); }
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
Event::~Event() = default;
void Event::Record(Stream) const {}
void Event::Synchronize() const {}
bool Event::Done() const { return true; }
void Event::Block(Stream) const {}
float Event::Milliseconds(const Event&, const Event&) { return 0; }
Graph Graph::Capture(Stream, const std::function<void()>&) {
  WEIR_CHECK(false) << Absent().message();
}
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;
void Graph::Launch(Stream) const {}
void SetFatalHook(std::function<void(const std::string&)>) {}
void Die(const char* file, int line, const std::string& what, const char* error) {
  internal::CheckFailed(file, line, what.c_str(), error);
}
Range::Range(const char*) {}
Range::~Range() = default;

}  // namespace weir::cuda
