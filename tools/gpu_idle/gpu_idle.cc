// How much of the time between its first and its last work a GPU had nothing to do: a profile of a
// running server, by CUPTI's activity records. Whole graphs count as one activity, so that decoding
// runs as it does without a profiler.
//
//   nvcc's include folder and CUPTI's (pip: nvidia-cuda-cupti, or the toolkit's extras/CUPTI) in
//   INCLUDES: g++ -O2 -std=c++20 -shared -fPIC $INCLUDES tools/gpu_idle/gpu_idle.cc -o gpu_idle.so
//   -ldl CUDA_INJECTION64_PATH=$PWD/gpu_idle.so LD_LIBRARY_PATH=FOLDER_OF_LIBCUPTI weir serve ...
//
// SIGUSR2 starts a fresh measurement (after warm-up); the process's end prints it: busy time, idle
// time, and the gaps between consecutive activities by length.
#include <cuda.h>
#include <cupti.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

namespace {

constexpr size_t kBufferBytes = 4 << 20;

std::mutex mutex;
std::vector<std::pair<uint64_t, uint64_t>> spans;  // begin, end in ns; guarded by mutex
std::atomic<uint64_t> from_ns{0};                  // records that begin earlier are left out

void Take(CUpti_Activity* record) {
  uint64_t begin = 0, end = 0;
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto* kernel = reinterpret_cast<CUpti_ActivityKernel10*>(record);
      begin = kernel->start, end = kernel->end;
      break;
    }
    case CUPTI_ACTIVITY_KIND_GRAPH_TRACE: {
      const auto* graph = reinterpret_cast<CUpti_ActivityGraphTrace2*>(record);
      begin = graph->start, end = graph->end;
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto* copy = reinterpret_cast<CUpti_ActivityMemcpy6*>(record);
      begin = copy->start, end = copy->end;
      break;
    }
    default:
      return;
  }
  if (begin != 0 && end >= begin) spans.emplace_back(begin, end);
}

void CUPTIAPI GiveBuffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = kBufferBytes;
  *max_records = 0;
}

void CUPTIAPI TakeBuffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  const std::lock_guard<std::mutex> lock(mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) Take(record);
  std::free(buffer);
}

void Print() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  const std::lock_guard<std::mutex> lock(mutex);
  std::erase_if(spans, [](const auto& span) { return span.first < from_ns; });
  if (spans.empty()) {
    std::fprintf(stderr, "gpu_idle: no activity was recorded\n");
    return;
  }
  std::sort(spans.begin(), spans.end());
  const uint64_t limits_us[] = {2, 5, 10, 20, 50, 100, 1000};
  int64_t counts[std::size(limits_us) + 1] = {};
  uint64_t sums_ns[std::size(limits_us) + 1] = {};
  uint64_t idle_ns = 0, until = spans.front().second;
  for (const auto& [begin, end] : spans) {
    if (begin > until) {
      const uint64_t gap = begin - until;
      idle_ns += gap;
      size_t at = 0;
      while (at < std::size(limits_us) && gap > limits_us[at] * 1000) ++at;
      ++counts[at];
      sums_ns[at] += gap;
    }
    until = std::max(until, end);
  }
  const double all_ms = static_cast<double>(until - spans.front().first) * 1e-6;
  const double idle_ms = static_cast<double>(idle_ns) * 1e-6;
  std::fprintf(stderr, "gpu_idle: %zu activities in %.1f ms, idle %.2f ms = %.2f %%\n",
               spans.size(), all_ms, idle_ms, 100 * idle_ms / all_ms);
  for (size_t i = 0; i <= std::size(limits_us); ++i) {
    if (counts[i] == 0) continue;
    if (i < std::size(limits_us)) {
      std::fprintf(stderr, "gpu_idle: gaps to %5llu us",
                   static_cast<unsigned long long>(limits_us[i]));
    } else {
      std::fprintf(stderr, "gpu_idle: longer gaps   ");
    }
    std::fprintf(stderr, " %8lld, together %.2f ms\n", static_cast<long long>(counts[i]),
                 static_cast<double>(sums_ns[i]) * 1e-6);
  }
}

void Restart(int) {
  uint64_t now = 0;
  if (cuptiGetTimestamp(&now) == CUPTI_SUCCESS) from_ns = now;
}

}  // namespace

// Called by the driver when it starts.
extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  if (cuptiActivityRegisterCallbacks(GiveBuffer, TakeBuffer) != CUPTI_SUCCESS) {
    std::fprintf(stderr, "gpu_idle: CUPTI takes no callbacks\n");
    return 0;
  }
  for (const CUpti_ActivityKind kind :
       {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_GRAPH_TRACE,
        CUPTI_ACTIVITY_KIND_MEMCPY}) {
    const CUptiResult result = cuptiActivityEnable(kind);
    if (result != CUPTI_SUCCESS) {
      std::fprintf(stderr, "gpu_idle: activity %d: error %d\n", static_cast<int>(kind),
                   static_cast<int>(result));
    }
  }
  signal(SIGUSR2, Restart);
  std::atexit(Print);
  return 1;
}
