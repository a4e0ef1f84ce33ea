// PackStacked on CUDA: from checkpoint rows in host memory, usually a mapped file, to the device.
//
// Copies from pageable memory run at a fraction of the bus. So several threads fill blocks of
// pinned memory, converting where types differ, while copies from other blocks are under way. The
// blocks stay for the next weight, whose filling overlaps the last copies of this one.
#include "kernels/cuda/matmul_pack.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"
#include "core/thread_pool.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int64_t kBlockBytes = int64_t{4} << 20;
constexpr int kMaxThreads = 16;
constexpr int kBlocksPerThread = 2;

struct Block {
  Buffer memory;
  cuda::Event free;  // recorded after the last copy from the block
};

class Staging {
 public:
  static absl::StatusOr<std::unique_ptr<Staging>> Make() {
    auto staging = std::make_unique<Staging>();
    for (int i = 0; i < staging->pool_.num_threads() * kBlocksPerThread; ++i) {
      ASSIGN_OR_RETURN(Buffer memory, cuda::AllocatePinned(kBlockBytes, "loading weights"));
      staging->blocks_.push_back({std::move(memory), cuda::Event::Make()});
      staging->idle_.push_back(&staging->blocks_.back());
    }
    return staging;
  }
  Staging() : pool_(std::min(UsableCores(), kMaxThreads)) {
    blocks_.reserve(static_cast<size_t>(pool_.num_threads() * kBlocksPerThread));
  }
  ~Staging() {
    for (const Block& block : blocks_) block.free.Synchronize();
  }

  // Pieces [0, count): fill(piece, memory) writes a block on some thread and says where its bytes
  // go.
  template <typename Fill>
  void Upload(int64_t count, Stream stream, const Fill& fill) {
    pool_.ParallelFor(count, [&](int64_t piece) {
      Block* block = Take();
      block->free.Synchronize();
      const auto [to, bytes] = fill(piece, block->memory.data());
      cuda::Copy(to, block->memory.data(), bytes, stream);
      block->free.Record(stream);
      Return(block);
    });
  }

 private:
  // The block whose copy was enqueued longest ago. There are more blocks than threads.
  Block* Take() {
    std::lock_guard lock(mutex_);
    Block* block = idle_.front();
    idle_.erase(idle_.begin());
    return block;
  }
  void Return(Block* block) {
    std::lock_guard lock(mutex_);
    idle_.push_back(block);
  }

  ThreadPool pool_;
  std::vector<Block> blocks_;
  std::mutex mutex_;
  std::vector<Block*> idle_;
};

std::mutex& StagingMutex() {
  static std::mutex mutex;
  return mutex;
}
std::unique_ptr<Staging>& SharedStaging() {
  static auto* staging = new std::unique_ptr<Staging>;
  return *staging;
}

template <typename T>
T LoadAs(const std::byte* row, int64_t i) {  // checkpoint memory has any alignment
  T value;
  std::memcpy(&value, row + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float Widen(float x) { return x; }
float Widen(BFloat16 x) { return ToFloat(x); }
// ToFloat without branches and calls: the exponent is moved by a product, exact for denormals too.
float Widen(Float16 x) {
  const uint32_t magnitude = uint32_t{x.bits & 0x7fffu} << 13;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity, NaN
  const uint32_t value = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(value | special | uint32_t{x.bits & 0x8000u} << 16);
}

template <typename T>
void ConvertAs(const std::byte* from, DType compute, int64_t n, std::byte* to) {
  if (compute == DType::kF32) {
    auto* out = reinterpret_cast<float*>(to);
    for (int64_t i = 0; i < n; ++i) out[i] = Widen(LoadAs<T>(from, i));
  } else {
    auto* out = reinterpret_cast<BFloat16*>(to);
    for (int64_t i = 0; i < n; ++i) out[i] = ToBFloat16(Widen(LoadAs<T>(from, i)));
  }
}

void Convert(const std::byte* from, DType dtype, DType compute, int64_t n, std::byte* to) {
  if (dtype == compute) {
    std::memcpy(to, from, static_cast<size_t>(n * DTypeSize(dtype)));
  } else if (dtype == DType::kF32) {
    ConvertAs<float>(from, compute, n, to);
  } else if (dtype == DType::kBF16) {
    ConvertAs<BFloat16>(from, compute, n, to);
  } else {
    ConvertAs<Float16>(from, compute, n, to);
  }
}

// Maps the pages of a file that are in the page cache in one call instead of a fault for every few
// of them. A hint: what goes wrong shows, or does not, when the memory is read.
void MapPages(const std::byte* from, int64_t bytes) {
#if defined(MADV_POPULATE_READ)
  if (bytes < (int64_t{256} << 10)) return;
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(from) / page * page;
  const auto end =
      (reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes)) / page * page;
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
#else
  (void)from, (void)bytes;
#endif
}

// A run of elements of one of the stacked matrices.
struct Piece {
  const std::byte* from = nullptr;
  DType dtype = DType::kF32;
  int64_t count = 0;  // elements
  int64_t to = 0;     // first element in the stack
};

std::vector<Piece> Cut(const TensorView* weights, int count, DType compute) {
  std::vector<Piece> pieces;
  int64_t to = 0;
  for (int i = 0; i < count; ++i) {
    const TensorView& w = weights[i];
    const auto* base = static_cast<const std::byte*>(w.raw());
    const int64_t size = DTypeSize(w.dtype()), elements = w.num_elements();
    // Contiguous rows are one run; others are runs of their own.
    const int64_t run = w.contiguous() ? elements : w.size(1);
    const int64_t most = kBlockBytes / DTypeSize(compute);
    for (int64_t begin = 0; begin < elements; begin += run) {
      const int64_t source = w.contiguous() ? 0 : begin / run * w.row_stride();
      for (int64_t at = 0; at < run; at += most) {
        const int64_t n = std::min(most, run - at);
        pieces.push_back({base + (source + at) * size, w.dtype(), n, to + begin + at});
      }
    }
    to += elements;
  }
  return pieces;
}

}  // namespace

absl::StatusOr<PackedMatrix> PackStacked(const TensorView* weights, int count, DType compute,
                                         Stream stream) {
  WEIR_CHECK(count > 0) << "nothing to pack";
  WEIR_CHECK(compute == DType::kF32 || compute == DType::kBF16) << DTypeName(compute);
  const int64_t in = weights[0].size(1);
  int64_t out = 0;
  for (int i = 0; i < count; ++i) {
    const TensorView& w = weights[i];
    WEIR_CHECK(w.rank() == 2 && w.size(1) == in) << w.ToString() << ", in " << in;
    WEIR_CHECK(w.dtype() == DType::kF32 || w.dtype() == DType::kBF16 || w.dtype() == DType::kF16)
        << w.ToString();
    out += w.size(0);
  }
  const int64_t element = DTypeSize(compute);
  RETURN_IF_ERROR(ReserveLibrary());
  ASSIGN_OR_RETURN(Buffer data,
                   cuda::AllocateDevice(static_cast<size_t>(out * in * element), "a weight"));
  std::lock_guard lock(StagingMutex());
  std::unique_ptr<Staging>& staging = SharedStaging();
  if (staging == nullptr) {
    ASSIGN_OR_RETURN(staging, Staging::Make());
  }
  const std::vector<Piece> pieces = Cut(weights, count, compute);
  staging->Upload(static_cast<int64_t>(pieces.size()), stream, [&](int64_t i, std::byte* memory) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    MapPages(piece.from, piece.count * DTypeSize(piece.dtype));
    Convert(piece.from, piece.dtype, compute, piece.count, memory);
    return std::pair(data.data() + piece.to * element, static_cast<size_t>(piece.count * element));
  });
  return PackedMatrix::OnDevice(std::move(data), out, in, compute);
}

void ReleasePackStaging() {
  std::lock_guard lock(StagingMutex());
  SharedStaging().reset();
}

}  // namespace weir::kernels::gpu
