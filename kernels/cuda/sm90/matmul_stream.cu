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
//
// A row to be normed is x / rms, and rms is one number: the product is made of x and divided in the
// end, while the sums of squares, left by the blocks of the product in front, are added up beside.
#include <cuda.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul_activation.cuh"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/sm90/matmul_async.cuh"
#include "kernels/cuda/vectors.cuh"

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
  int lane_bits;       // 1 << lane_bits threads finish a token, each four rows at a time
  bool whole;          // the panels of a stage come in one copy: `in` is a multiple of a panel
  bool gated, y_bf16, y_wide;  // y_wide: four outputs in one access
  Activation activation;
  RowsToNorm norm;
  AddToStream add;

  __host__ __device__ int stage_bytes(int n) const { return panels * (block_rows + n) * kRowBytes; }
  // Floats from the sums of one token to the next.
  __host__ __device__ int sums_stride() const { return groups * kGroup + kPad; }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
using namespace sm90;  // NOLINT

struct Pipeline {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

// Calls copy(index in the stage, column, panel) for each copy that fills the stage of panels from
// `first` on.
template <typename Copy>
__device__ __forceinline__ void EachCopy(const StreamArgs& a, int first, const Copy& copy) {
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
    const int first = i * a.panels;
    BarrierWait(&pipe->empty[stage], parity);
    char* at = ring + stage * a.stage_bytes(N);
    uint64_t* full = &pipe->full[stage];
    // What a whole copy finds beyond the last panel arrives as zeros.
    const int count = a.whole ? a.panels : min(a.panels, panels - first);
    BarrierArriveExpect(full, static_cast<uint32_t>(count * (a.block_rows + N) * kRowBytes));
    EachCopy(a, first, [&](int p, int column, int panel) {
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
    EachCopy(a, i * a.panels, [&](int p, int column, int panel) {
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

// The chains' sums of four neighbouring rows of W for one token, added in order.
template <int N>
__device__ __forceinline__ float4 AddUp(const StreamArgs& a, const float* sums) {
  const int chain_floats = N * a.sums_stride();
  float4 some[kMaxWarpgroups];
#pragma unroll
  for (int chain = 0; chain < kMaxWarpgroups; ++chain) {
    some[chain] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (chain < a.chains) some[chain] = *reinterpret_cast<const float4*>(sums);
    sums += chain_floats;
  }
#pragma unroll
  for (int chain = 1; chain < kMaxWarpgroups; ++chain) {
    some[0].x += some[chain].x, some[0].y += some[chain].y;
    some[0].z += some[chain].z, some[0].w += some[chain].w;
  }
  return some[0];
}

__device__ __forceinline__ void StoreFour(const StreamArgs& a, int64_t at, int count,
                                          const float (&value)[4]) {
  auto store = [&](auto* y) {
    if (a.y_wide && count >= 4) return StoreN<4>(y + at, value);
    for (int i = 0; i < min(count, 4); ++i) Store(y + at + i, value[i]);
  };
  if (a.y_bf16) {
    store(static_cast<bf16*>(a.y));
  } else {
    store(static_cast<float*>(a.y));
  }
}

// Sums of the squares of x's rows, in so many parts each whatever the number of rows.
constexpr int kSquareParts = 16;
template <int N>
__device__ __forceinline__ void SumSquares(const StreamArgs& a, float (&sums)[kSquareParts][N]) {
  for (int i = static_cast<int>(threadIdx.x); i < kSquareParts * N;
       i += a.groups * a.chains * 128) {
    const int token = i % N, part = i / N;
    float sum = 0.0f;
    if (token < a.rows) {
#pragma unroll 8
      for (int at = part; at < a.norm.parts; at += kSquareParts) {
        sum += a.norm.squares[at * kJoinRows + token];
      }
    }
    sums[part][token] = sum;
  }
}

__device__ __forceinline__ void AddBias(const StreamArgs& a, int at, int limit, float (&value)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (at + j < limit) value[j] += a.bias[at + j];
  }
}

// What Finish needs of the residual stream. The first of a thread is asked for before the products.
struct StreamPiece {
  float h[4], weight[4];

  __device__ __forceinline__ void Load(const StreamArgs& a, int token, int out) {
    LoadN<4>(a.add.weight + out, weight);
    PdlWait();
    LoadN<4>(a.add.h + token * a.add.h_stride + out, h);
  }
  // h += scale * value, value = h * weight; returns the sum of squares of the new h.
  __device__ __forceinline__ float Add(const StreamArgs& a, int token, int out, float (&value)[4]) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      h[j] = fmaf(value[j], a.add.scale, h[j]);
      squares = fmaf(h[j], h[j], squares);
      value[j] = h[j] * weight[j];
    }
    StoreN<4>(a.add.h + token * a.add.h_stride + out, h);
    return squares;
  }
};

// Where a thread begins in Finish.
__device__ __forceinline__ StreamPiece FirstPiece(const StreamArgs& a) {
  const int thread = static_cast<int>(threadIdx.x), token = thread >> a.lane_bits;
  const int row = (thread & ((1 << a.lane_bits) - 1)) * 4;
  const int out = static_cast<int>(blockIdx.x) * a.block_rows + row;
  StreamPiece piece;
  if (token < a.rows && row < a.block_rows && out < a.out) piece.Load(a, token, out);
  return piece;
}

// A warpgroup's sums into shared memory, [N, its rows of W].
template <int N>
__device__ __forceinline__ void KeepSums(const StreamArgs& a, const float (&sum)[N / 2],
                                         float* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, stride = a.sums_stride();
  float* even =
      sums + lane % 4 * 2 * stride + static_cast<int>(threadIdx.x) % 128 / kWarp * 16 + lane / 4;
  float* odd = even + stride;
#pragma unroll
  for (int i = 0; i < N / 2; i += 4) {
    even[0] = sum[i], odd[0] = sum[i + 1];
    even[8] = sum[i + 2], odd[8] = sum[i + 3];
    even += 8 * stride, odd += 8 * stride;
  }
}

// From the sums to y. This runs once, while nothing else does, and its instructions come from far:
// few of them count. `factors`: of x's rows.
template <int N>
__device__ __forceinline__ void Finish(const StreamArgs& a, const float* sums,
                                       const float (&factors)[N], StreamPiece piece) {
  const int width = a.gated ? a.block_rows / 2 : a.block_rows;
  const int limit = a.gated ? a.out / 2 : a.out;
  const int thread = static_cast<int>(threadIdx.x), lanes = 1 << a.lane_bits;
  const int lane = thread & (lanes - 1), tokens = (a.groups * a.chains * 128) >> a.lane_bits;
  bool loaded = true;
  for (int token = thread >> a.lane_bits; token < N; token += tokens) {
    const float factor = factors[token];
    float squares = 0.0f;
    for (int row = lane * 4; row < width; row += lanes * 4) {
      const int out = static_cast<int>(blockIdx.x) * width + row;
      if (out >= limit || token >= a.rows) break;
      const float* at = sums + token * a.sums_stride() + row;
      const float4 sum = AddUp<N>(a, at);
      float value[4] = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
      if (a.bias != nullptr) AddBias(a, out, limit, value);
      if (a.gated) {
        const float4 other = AddUp<N>(a, at + width);
        float up[4] = {other.x * factor, other.y * factor, other.z * factor, other.w * factor};
        if (a.bias != nullptr) AddBias(a, limit + out, a.out, up);
        if (a.activation == Activation::kSilu) {  // with no branch for each
#pragma unroll
          for (int j = 0; j < 4; ++j) value[j] = Apply(Activation::kSilu, value[j]) * up[j];
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) value[j] = Apply(a.activation, value[j]) * up[j];
        }
      }
      if (a.add.h != nullptr) {
        if (!loaded) piece.Load(a, token, out);
        squares += piece.Add(a, token, out, value);
        loaded = false;
      }
      StoreFour(a, token * a.y_stride + out, limit - out, value);
    }
    if (a.add.h == nullptr) continue;
    for (int i = lanes / 2; i > 0; i /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, i);
    if (lane == 0 && token < a.rows) a.add.squares[blockIdx.x * kJoinRows + token] = squares;
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
  __shared__ float row_squares[kSquareParts][N], factors[N];
  char* ring = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  const int steps = a.panels * kPanel;
  const int stages_of_work = (a.in + steps - 1) / steps;
  const int workers = a.groups * a.chains * 128;
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / 128 % a.groups, chain = thread / 128 / a.groups;

  PdlLaunchDependents();
  if (thread == workers) PrefetchMap(&w_map);
  if (thread == workers + kWarp) PrefetchMap(&x_map);
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
  StreamPiece piece{};
  if (thread >= workers) {
    if (thread == workers) ProduceW<N>(a, &w_map, &pipe, ring, stages_of_work);
    if (thread == workers + kWarp) ProduceX<N>(a, &x_map, &pipe, ring, stages_of_work);
    __syncwarp();
  } else {
    if (a.add.h != nullptr) piece = FirstPiece(a);
    if (a.norm.squares != nullptr) {
      PdlWait();
      SumSquares<N>(a, row_squares);
    }
    Consume<N>(a, &pipe, ring, stages_of_work, group, chain, sum);
  }
  PdlWait();
  __syncthreads();  // nobody reads the ring any more
  auto* sums = reinterpret_cast<float*>(ring);
  if (thread < N) {
    float factor = 1.0f;
    if (a.norm.squares != nullptr) {
      float total = 0.0f;
      for (int part = 0; part < kSquareParts; ++part) total += row_squares[part][thread];
      factor = 1.0f / sqrtf(total / static_cast<float>(a.in) + a.norm.eps);
    }
    factors[thread] = factor;
  }
  if (thread < workers) {
    KeepSums<N>(a, sum, sums + chain * N * a.sums_stride() + group * kGroup);
  }
  __syncthreads();
  if (thread < workers) Finish<N>(a, sums, factors, piece);
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
int LaunchStream(const Product& p, const StreamPlan& plan, Stream stream) {
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
  a.y_wide = reinterpret_cast<uintptr_t>(p.y) % 16 == 0 && p.y_stride % 4 == 0;
  a.activation = p.activation;
  a.norm = p.norm;
  a.add = p.add;
  const int panels = static_cast<int>(CeilDiv(p.in, kPanel));
  a.panels = plan.panels;
  // A power of two; every pass over tokens takes whole warps.
  const int half = p.gated ? a.block_rows / 2 : a.block_rows;
  for (a.lane_bits = 2; a.lane_bits < 5 && (4 << a.lane_bits) < half;) ++a.lane_bits;
  a.whole = p.in % kPanel == 0;
  const int work = static_cast<int>(CeilDiv(panels, a.panels));
  // A stage always serves the same chain, which thus knows how often it was filled.
  const int fitting =
      std::min({plan.ring_bytes / a.stage_bytes(N), work + a.chains - 1, kMaxStages});
  a.stages = std::max(1, fitting / a.chains) * a.chains;
  WEIR_CHECK(half % 8 == 0 && a.groups * a.chains <= kMaxWarpgroups)
      << a.block_rows << " rows a block in " << a.chains << " chains";
  const int sums_bytes = a.chains * N * a.sums_stride() * 4;
  // The last tile is read to the end of its group.
  const int behind = (a.groups * kGroup - a.block_rows) * kRowBytes;
  LaunchOptions options;
  options.shared_bytes =
      static_cast<size_t>(std::max(a.stages * a.stage_bytes(N) + behind, sums_bytes) + 1024);
  const auto blocks = static_cast<unsigned>(CeilDiv(p.gated ? p.out / 2 : p.out, half));
  Launch("MatMul", stream, StreamKernel<N>, blocks, a.groups * a.chains * 128 + 2 * kWarp, options,
         MakeMap(p.w, p.in, p.in, p.gated ? p.out / 2 : p.out, p.gated ? 2 : 1, half, a.panels),
         MakeMap(p.x, p.in, p.x_stride, p.rows, 1, N, a.panels), a);
  return static_cast<int>(blocks);
}

}  // namespace

bool StreamMatMulServes(const Product& p) {
  const cuda::DeviceInfo& device = cuda::Device();
  auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % 8 == 0;
  };
  return device.major == 9 && device.minor == 0 && p.w_type == DType::kBF16 &&
         p.x_type == DType::kBF16 && p.rows <= kJoinRows && aligned(p.w, p.in) &&
         aligned(p.x, p.x_stride) && p.out < (int64_t{1} << 31) && p.in < (int64_t{1} << 31);
}

int StreamMatMul(const Product& p, const StreamPlan& plan, Stream stream) {
  if (p.rows <= 8) return LaunchStream<8>(p, plan, stream);
  if (p.rows <= 16) return LaunchStream<16>(p, plan, stream);
  if (p.rows <= 32) return LaunchStream<32>(p, plan, stream);
  return LaunchStream<64>(p, plan, stream);
}

}  // namespace weir::kernels::gpu
