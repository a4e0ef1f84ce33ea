// Products of few rows, where reading W is all the work: W streams through shared memory by bulk
// copies, as the first operand of warpgroup products whose second one is x, so that even a single
// row of x uses one tile of 8.
//
// A block takes some rows of W, about as many as make one block for every multiprocessor, and runs
// along `in`. One warpgroup that multiplies tile after tile waits for its own results most of the
// time, so several take the stages of the ring in turn, and their sums are added up at the end in a
// fixed order. A copy costs its issue of about 0.1 us whatever its size, so a stage is one of W
// and one of x, each issued by a thread of its own.
//
// How `in` is shared out depends on the shape of W alone, and a column of the product does not
// depend on its neighbours: a row of y has the same bits in every batch.
//
// W is constant, so it is read ahead of the kernel in front, as much as fits into shared memory.
#include <cuda.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul_activation.cuh"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/sm90/matmul_async.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kPanel = 64;  // elements of `in`: 128 bytes, one row of a swizzled tile
constexpr int kRowBytes = kPanel * 2;
constexpr int kGroup = 64;  // rows of W of a warpgroup
constexpr int kMaxWarpgroups = 4;
constexpr int kMaxStages = 32;
constexpr int kPad = 4;  // floats, so that rows of sums start in different banks

struct StreamArgs {
  const float* bias;
  void* y;
  int64_t y_stride;
  int rows, in, out;   // gated: `out` counts both halves
  int block_rows;      // of W; gated: half of them from each half of W
  int groups, chains;  // warpgroups: for 64 rows each, times chains
  int panels, stages;  // of a stage, of the ring
  bool whole;          // the panels of a stage come in one copy: `in` is a multiple of a panel
  bool gated, y_bf16;
  Activation activation;

  __host__ __device__ int stage_bytes(int n) const { return panels * (block_rows + n) * kRowBytes; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
using namespace sm90;  // NOLINT

struct Pipeline {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

// Calls copy(index in the stage, column, panel) for each copy that fills stage `i`.
template <typename Copy>
__device__ __forceinline__ void EachCopy(const StreamArgs& a, int i, const Copy& copy) {
  const int first = i * a.panels;
  if (a.whole) return copy(0, 0, first);
  const int count = min(a.panels, (a.in + kPanel - 1) / kPanel - first);
  for (int p = 0; p < count; ++p) copy(p, (first + p) * kPanel, 0);
}

// One thread: W into the ring, ahead of the kernel in front as far as there is room.
template <int N>
__device__ __forceinline__ void ProduceW(const StreamArgs& a, const CUtensorMap* map,
                                         Pipeline* pipe, char* ring, int stages_of_work) {
  const int half = a.gated ? a.block_rows / 2 : a.block_rows;
  const int row = static_cast<int>(blockIdx.x) * half;
  const int panels = (a.in + kPanel - 1) / kPanel;
  int stage = 0;
  uint32_t parity = 1;  // the ring is empty at first
  for (int i = 0; i < stages_of_work; ++i) {
    BarrierWait(&pipe->empty[stage], parity);
    char* at = ring + stage * a.stage_bytes(N);
    uint64_t* full = &pipe->full[stage];
    // What a whole copy finds beyond the last panel arrives as zeros.
    const int count = a.whole ? a.panels : min(a.panels, panels - i * a.panels);
    BarrierArriveExpect(full, static_cast<uint32_t>(count * (a.block_rows + N) * kRowBytes));
    EachCopy(a, i, [&](int p, int column, int panel) {
      LoadBox(at + p * a.block_rows * kRowBytes, map, full, column, row, panel, kEvictFirst);
    });
    if (++stage == a.stages) stage = 0, parity ^= 1;
  }
}

// Another one: x.
template <int N>
__device__ __forceinline__ void ProduceX(const StreamArgs& a, const CUtensorMap* map,
                                         Pipeline* pipe, char* ring, int stages_of_work) {
  PdlWait();
  int stage = 0;
  uint32_t parity = 1;
  for (int i = 0; i < stages_of_work; ++i) {
    BarrierWait(&pipe->empty[stage], parity);
    char* at = ring + stage * a.stage_bytes(N) + a.panels * a.block_rows * kRowBytes;
    EachCopy(a, i, [&](int p, int column, int panel) {
      LoadBox(at + p * N * kRowBytes, map, &pipe->full[stage], column, 0, panel, kEvictLast);
    });
    if (++stage == a.stages) stage = 0, parity ^= 1;
  }
}

template <int N>
__device__ __forceinline__ void Consume(const StreamArgs& a, Pipeline* pipe, const char* ring,
                                        int stages_of_work, int group, int chain,
                                        float (&sum)[N / 2]) {
  const int panels = (a.in + kPanel - 1) / kPanel;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  int stage = chain;
  uint32_t parity = 0;
  for (int i = chain; i < stages_of_work; i += a.chains, stage += a.chains) {
    while (stage >= a.stages) stage -= a.stages, parity ^= 1;
    const char* at = ring + stage * a.stage_bytes(N);
    const int count = min(a.panels, panels - i * a.panels);
    BarrierWait(&pipe->full[stage], parity);
    for (int p = 0; p < count; ++p) {
      // Rows from block_rows on are whatever lies there: their sums are not used.
      const uint64_t w = RowTile(at + (p * a.block_rows + group * kGroup) * kRowBytes);
      const uint64_t x = RowTile(at + (a.panels * a.block_rows + p * N) * kRowBytes);
      MmaFence();
#pragma unroll
      for (int k = 0; k < kPanel / 16; ++k) {
        Multiply(sum, w + k * kRowTileStep, x + k * kRowTileStep);
      }
      MmaCommit();
    }
    MmaWait<0>();
    if (thread == 0) BarrierArrive(&pipe->empty[stage]);
  }
}

// The chains' sums at (token, row), in order.
template <int N>
__device__ __forceinline__ float AddUp(const StreamArgs& a, const float* sums, int token, int row) {
  const int stride = a.block_rows + kPad;
  float sum = sums[token * stride + row];
  for (int chain = 1; chain < a.chains; ++chain) sum += sums[(chain * N + token) * stride + row];
  return sum;
}

template <int N>
__device__ __forceinline__ void Finish(const StreamArgs& a, const float* sums) {
  const int width = a.gated ? a.block_rows / 2 : a.block_rows;
  const int limit = a.gated ? a.out / 2 : a.out;
  const int first = static_cast<int>(blockIdx.x) * width;
  for (int i = static_cast<int>(threadIdx.x); i < a.rows * width; i += a.groups * a.chains * 128) {
    const int token = i / width, row = i - token * width, out = first + row;
    if (out >= limit) continue;
    float value = AddUp<N>(a, sums, token, row);
    if (a.bias != nullptr) value += a.bias[out];
    if (a.gated) {
      float up = AddUp<N>(a, sums, token, width + row);
      if (a.bias != nullptr) up += a.bias[limit + out];
      value = Apply(a.activation, value) * up;
    }
    const int64_t at = token * a.y_stride + out;
    if (a.y_bf16) {
      Store(static_cast<bf16*>(a.y) + at, value);
    } else {
      Store(static_cast<float*>(a.y) + at, value);
    }
  }
}
#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int N>
__global__ __launch_bounds__(kMaxWarpgroups * 128 +
                             2 * kWarp) void StreamKernel(const __grid_constant__ CUtensorMap w_map,
                                                          const __grid_constant__ CUtensorMap x_map,
                                                          const __grid_constant__ StreamArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char memory[];
  __shared__ Pipeline pipe;
  char* ring = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  const int steps = a.panels * kPanel;
  const int stages_of_work = (a.in + steps - 1) / steps;
  const int workers = a.groups * a.chains * 128;
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / 128 % a.groups, chain = thread / 128 / a.groups;

  PdlLaunchDependents();
  if (thread == 0) {
    for (int i = 0; i < a.stages; ++i) {
      BarrierInit(&pipe.full[i], 1);
      BarrierInit(&pipe.empty[i], a.groups);
    }
    BarrierInitFence();
    ProxyFence();
  }
  __syncthreads();
  float sum[N / 2] = {};
  if (thread >= workers) {
    if (thread == workers) ProduceW<N>(a, &w_map, &pipe, ring, stages_of_work);
    if (thread == workers + kWarp) ProduceX<N>(a, &x_map, &pipe, ring, stages_of_work);
    __syncwarp();
  } else {
    Consume<N>(a, &pipe, ring, stages_of_work, group, chain, sum);
  }
  PdlWait();
  __syncthreads();  // nobody reads the ring any more
  auto* sums = reinterpret_cast<float*>(ring);
  if (thread < workers) {
    const int lane = thread % 32, row = group * kGroup + thread / 32 % 4 * 16 + lane / 4;
    float* own = sums + chain * N * (a.block_rows + kPad);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const int token = i / 4 * 8 + lane % 4 * 2 + i % 2, at = row + i / 2 % 2 * 8;
      if (at < a.block_rows) own[token * (a.block_rows + kPad) + at] = sum[i];
    }
  }
  __syncthreads();
  if (thread < workers) Finish<N>(a, sums);
#endif
}

// A [halves, rows, in] bf16 matrix, read in boxes of `panels` panels of the same `box_rows` rows of
// each half, [panels, halves, box_rows, kPanel] in shared memory; zeros outside of it. Where `in`
// is no multiple of a panel, a box is one panel at any column.
CUtensorMap MakeMap(const void* data, int64_t in, int64_t stride, int64_t rows, int halves,
                    int box_rows, int panels) {
  const bool whole = in % kPanel == 0;
  auto wide = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t sizes[] = {wide(whole ? kPanel : in), wide(rows), wide(halves),
                              wide(whole ? in / kPanel : 1)};
  const cuuint64_t strides[] = {wide(stride * 2), wide(rows * stride * 2), kRowBytes};
  const cuuint32_t box[] = {kPanel, static_cast<cuuint32_t>(box_rows),
                            static_cast<cuuint32_t>(halves),
                            static_cast<cuuint32_t>(whole ? panels : 1)};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = sm90::TensorMapEncoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  WEIR_CHECK(result == CUDA_SUCCESS) << "a map of [" << halves << ", " << rows << ", " << in
                                     << "], stride " << stride << ": " << static_cast<int>(result);
  return map;
}

template <int N>
void LaunchStream(const Product& p, const StreamPlan& plan, Stream stream) {
  StreamArgs a{};
  a.bias = p.bias;
  a.y = p.y;
  a.y_stride = p.y_stride;
  a.rows = static_cast<int>(p.rows);
  a.in = static_cast<int>(p.in);
  a.out = static_cast<int>(p.out);
  a.block_rows = plan.block_rows;
  a.groups = static_cast<int>(CeilDiv(plan.block_rows, kGroup));
  a.chains = plan.chains;
  a.gated = p.gated;
  a.y_bf16 = p.y_type == DType::kBF16;
  a.activation = p.activation;
  const int panels = static_cast<int>(CeilDiv(p.in, kPanel));
  a.panels = plan.panels;
  a.whole = p.in % kPanel == 0;
  const int work = static_cast<int>(CeilDiv(panels, a.panels));
  // A stage always serves the same chain, which thus knows how often it was filled.
  const int fitting =
      std::min({plan.ring_bytes / a.stage_bytes(N), work + a.chains - 1, kMaxStages});
  a.stages = std::max(1, fitting / a.chains) * a.chains;
  const int half = p.gated ? a.block_rows / 2 : a.block_rows;
  WEIR_CHECK(half % 8 == 0 && a.groups * a.chains <= kMaxWarpgroups)
      << a.block_rows << " rows a block in " << a.chains << " chains";
  const int sums_bytes = a.chains * N * (a.block_rows + kPad) * 4;
  // The last tile is read to the end of its group.
  const int behind = (a.groups * kGroup - a.block_rows) * kRowBytes;
  LaunchOptions options;
  options.shared_bytes =
      static_cast<size_t>(std::max(a.stages * a.stage_bytes(N) + behind, sums_bytes) + 1024);
  const auto blocks = static_cast<unsigned>(CeilDiv(p.gated ? p.out / 2 : p.out, half));
  Launch("MatMul", stream, StreamKernel<N>, blocks, a.groups * a.chains * 128 + 2 * kWarp, options,
         MakeMap(p.w, p.in, p.in, p.gated ? p.out / 2 : p.out, p.gated ? 2 : 1, half, a.panels),
         MakeMap(p.x, p.in, p.x_stride, p.rows, 1, N, a.panels), a);
}

}  // namespace

bool StreamMatMulServes(const Product& p) {
  const cuda::DeviceInfo& device = cuda::Device();
  auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % 8 == 0;
  };
  return device.major == 9 && device.minor == 0 && p.w_type == DType::kBF16 &&
         p.x_type == DType::kBF16 && p.rows <= kMaxStreamRows && aligned(p.w, p.in) &&
         aligned(p.x, p.x_stride) && p.out < (int64_t{1} << 31) && p.in < (int64_t{1} << 31);
}

void StreamMatMul(const Product& p, const StreamPlan& plan, Stream stream) {
  if (p.rows <= 8) return LaunchStream<8>(p, plan, stream);
  if (p.rows <= 16) return LaunchStream<16>(p, plan, stream);
  if (p.rows <= 32) return LaunchStream<32>(p, plan, stream);
  LaunchStream<64>(p, plan, stream);
}

}  // namespace weir::kernels::gpu
