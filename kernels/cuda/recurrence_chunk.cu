// The chunk form: which kernel takes it, and the one that takes anything. That one goes token by
// token in f32, a team of 8 lanes for each row of the state, the row in their registers.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/chunk.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kTeam = 8, kTeams = kWarp / kTeam;  // lanes of a row, rows of a warp
constexpr int kRows = kWarps * kTeams;            // rows of a block
constexpr int kMaxK = 512;

template <typename T>
struct ChunkParams {
  const T *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  int q_group, k_group, v_group, g_group;  // value heads that share one head of each
  const float* g;
  int64_t g_stride;  // 0: fixed per head
  Decay decay;
  const float* beta;  // nullptr: additive
  int64_t beta_stride;
  T* out;
  int64_t out_stride;
  float scale;
  int dim_k, dim_v, tile;  // tile: tokens staged at a time
  const int32_t *offsets, *slots;
  const uint8_t* fresh;
  char* state;
  int64_t slot_stride_bytes;
};

__device__ __forceinline__ float TeamSum(float x) {
#pragma unroll
  for (int i = kTeam / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

// Shared floats of a tile of tokens: q, k and decays over the channels (padded with zeros to a
// multiple of 32), then v of the block's rows, then beta and the scalar decay.
__host__ __device__ constexpr int TileFloats(int padded, int tile) {
  return tile * (3 * padded + kRows + 2);
}

// One tile of one sequence for the rows [first_row, first_row + kRows) of head h.
template <typename T>
__device__ void Stage(const ChunkParams<T>& p, int h, int first_row, int64_t t0, int count,
                      int padded, float* q, float* k, float* decay, float* v, float* beta,
                      float* scalar) {
  const T* q_at = p.q + h / p.q_group * p.dim_k;
  const T* k_at = p.k + h / p.k_group * p.dim_k;
  for (int i = static_cast<int>(threadIdx.x); i < count * padded; i += kThreads) {
    const int c = i % padded;
    const int64_t t = t0 + i / padded;
    const bool in = c < p.dim_k;
    q[i] = in ? p.scale * Load(q_at + t * p.q_stride + c) : 0.0f;
    k[i] = in ? Load(k_at + t * p.k_stride + c) : 0.0f;
    if (p.decay == Decay::kVector) {
      decay[i] = in ? expf(p.g[t * p.g_stride + int64_t{h / p.g_group} * p.dim_k + c]) : 0.0f;
    }
  }
  const T* v_at = p.v + h / p.v_group * p.dim_v + first_row;
  for (int i = static_cast<int>(threadIdx.x); i < count * kRows; i += kThreads) {
    const int row = i % kRows;
    v[i] = first_row + row < p.dim_v ? Load(v_at + (t0 + i / kRows) * p.v_stride + row) : 0.0f;
  }
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    beta[i] = p.beta != nullptr ? p.beta[(t0 + i) * p.beta_stride + h] : 1.0f;
    scalar[i] = p.decay == Decay::kScalar ? expf(p.g[(t0 + i) * p.g_stride + h]) : 1.0f;
  }
}

// grid: blocks of rows x heads x sequences. kPieces: float4 of a lane in its row.
template <typename T, int kPieces>
__global__ void __launch_bounds__(kThreads) ChunkRows(const ChunkParams<T> p) {
  extern __shared__ __align__(16) float shared[];
  constexpr int kPadded = kPieces * kTeam * 4;
  float *q = shared, *k = q + p.tile * kPadded, *decay = k + p.tile * kPadded;
  float *v = decay + p.tile * kPadded, *beta = v + p.tile * kRows, *scalar = beta + p.tile;
  PdlLaunchDependents();
  PdlWait();
  const int first_row = static_cast<int>(blockIdx.x) * kRows, h = static_cast<int>(blockIdx.y);
  const int s = static_cast<int>(blockIdx.z);
  const int64_t begin = p.offsets[s], end = p.offsets[s + 1];
  const int slot = p.slots[s];
  if (begin == end) return;
  T* out = p.out + int64_t{h} * p.dim_v + first_row;
  if (slot < 0) {
    for (int64_t i = threadIdx.x; i < (end - begin) * kRows; i += kThreads) {
      const int row = static_cast<int>(i % kRows);
      if (first_row + row < p.dim_v) Store(out + (begin + i / kRows) * p.out_stride + row, 0.0f);
    }
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const int row = static_cast<int>(threadIdx.x) / kTeam;
  const bool mine = first_row + row < p.dim_v;
  float* at = reinterpret_cast<float*>(p.state + slot * p.slot_stride_bytes) +
              (int64_t{h} * p.dim_v + first_row + row) * p.dim_k;
  float state[kPieces][4];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int c = (i * kTeam + lane) * 4 + j;
      state[i][j] = mine && c < p.dim_k && p.fresh[s] == 0 ? at[c] : 0.0f;
    }
  }
  for (int64_t t0 = begin; t0 < end; t0 += p.tile) {
    const int count = static_cast<int>(min(int64_t{p.tile}, end - t0));
    __syncthreads();
    Stage(p, h, first_row, t0, count, kPadded, q, k, decay, v, beta, scalar);
    __syncthreads();
    for (int t = 0; t < count; ++t) {
      const float4* k_row = reinterpret_cast<const float4*>(k + t * kPadded);
      const float4* q_row = reinterpret_cast<const float4*>(q + t * kPadded);
      const float4* decay_row = reinterpret_cast<const float4*>(decay + t * kPadded);
      const float all = scalar[t];
      float seen = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const float4 key = k_row[i * kTeam + lane];
        float4 d = {all, all, all, all};
        if (p.decay == Decay::kVector) d = decay_row[i * kTeam + lane];
        state[i][0] *= d.x, state[i][1] *= d.y, state[i][2] *= d.z, state[i][3] *= d.w;
        seen = fmaf(state[i][0], key.x, fmaf(state[i][1], key.y, seen));
        seen = fmaf(state[i][2], key.z, fmaf(state[i][3], key.w, seen));
      }
      float write = v[t * kRows + row];
      if (p.beta != nullptr) write = beta[t] * (write - TeamSum(seen));
      float read = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const float4 key = k_row[i * kTeam + lane], query = q_row[i * kTeam + lane];
        state[i][0] = fmaf(key.x, write, state[i][0]);
        state[i][1] = fmaf(key.y, write, state[i][1]);
        state[i][2] = fmaf(key.z, write, state[i][2]);
        state[i][3] = fmaf(key.w, write, state[i][3]);
        read = fmaf(state[i][0], query.x, fmaf(state[i][1], query.y, read));
        read = fmaf(state[i][2], query.z, fmaf(state[i][3], query.w, read));
      }
      read = TeamSum(read);
      if (lane == 0 && mine) Store(out + (t0 + t) * p.out_stride + row, read);
    }
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int c = (i * kTeam + lane) * 4 + j;
      if (mine && c < p.dim_k) at[c] = state[i][j];
    }
  }
}

int Group(int heads, const TensorView& x) {
  WEIR_CHECK(x.size(1) > 0 && heads % x.size(1) == 0)
      << heads << " heads are no multiple of " << x.ToString();
  return static_cast<int>(heads / x.size(1));
}

template <typename T>
ChunkParams<T> MakeParams(const RecurrenceArgs& args) {
  ChunkParams<T> p{};
  p.q = static_cast<const T*>(args.q.raw());
  p.k = static_cast<const T*>(args.k.raw());
  p.v = static_cast<const T*>(args.v.raw());
  p.out = static_cast<T*>(args.out.raw());
  p.q_stride = args.q.row_stride();
  p.k_stride = args.k.row_stride();
  p.v_stride = args.v.row_stride();
  p.out_stride = args.out.row_stride();
  p.q_group = Group(args.heads, args.q);
  p.k_group = Group(args.heads, args.k);
  p.v_group = Group(args.heads, args.v);
  p.g_group = 1;
  p.decay = args.decay;
  if (args.decay != Decay::kNone) {
    p.g = args.g.data<float>();
    p.g_stride = args.decay == Decay::kScalar && args.g.size(0) == 1 ? 0 : args.g.row_stride();
    if (args.decay == Decay::kVector) p.g_group = Group(args.heads, args.g);
  }
  if (args.update == Update::kDelta) {
    p.beta = args.beta.data<float>();
    p.beta_stride = args.beta.row_stride();
  }
  p.scale = args.scale;
  p.dim_k = static_cast<int>(args.q.size(2));
  p.dim_v = static_cast<int>(args.v.size(2));
  p.offsets = args.offsets.data<int32_t>();
  p.slots = args.slots.data<int32_t>();
  p.fresh = args.fresh.data<uint8_t>();
  p.state = static_cast<char*>(args.state);
  p.slot_stride_bytes = args.slot_stride_bytes;
  return p;
}

template <typename T, int kPieces>
void LaunchRows(ChunkParams<T> p, const RecurrenceArgs& args, Stream stream) {
  constexpr int kPadded = kPieces * kTeam * 4;
  p.tile = kPadded > 256 ? 8 : 16;
  LaunchOptions options;
  options.shared_bytes = static_cast<size_t>(TileFloats(kPadded, p.tile)) * sizeof(float);
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.dim_v, kRows)), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.slots.size(0)));
  Launch("recurrence_chunk", stream, ChunkRows<T, kPieces>, grid, dim3(kThreads), options, p);
}

void AnyChunk(const RecurrenceArgs& args, Stream stream) {
  WithActivation(args.q.dtype(), [&](auto tag) {
    using T = decltype(tag);
    const ChunkParams<T> p = MakeParams<T>(args);
    WEIR_CHECK(p.dim_k <= kMaxK) << "keys of " << p.dim_k << " channels";
    if (p.dim_k <= 32) {
      LaunchRows<T, 1>(p, args, stream);
    } else if (p.dim_k <= 64) {
      LaunchRows<T, 2>(p, args, stream);
    } else if (p.dim_k <= 128) {
      LaunchRows<T, 4>(p, args, stream);
    } else if (p.dim_k <= 256) {
      LaunchRows<T, 8>(p, args, stream);
    } else {
      LaunchRows<T, 16>(p, args, stream);
    }
  });
}

}  // namespace

void RecurrenceChunk(const RecurrenceArgs& args, Stream stream) {
  WEIR_CHECK(args.k.dtype() == args.q.dtype() && args.v.dtype() == args.q.dtype() &&
             args.out.dtype() == args.q.dtype())
      << args.q.ToString() << " " << args.k.ToString() << " " << args.v.ToString() << " "
      << args.out.ToString();
  if (args.slots.size(0) == 0 || args.q.size(0) == 0) return;
  if (ScalarChunkSupported(args)) {
    ScalarChunk(args, stream);
  } else if (VectorChunkSupported(args)) {
    VectorChunk(args, stream);
  } else {
    AnyChunk(args, stream);
  }
}

int64_t RecurrenceChunkScratchBytes(const RecurrenceArgs& args, int64_t tokens, int64_t sequences) {
  if (ScalarChunkSupported(args)) return ScalarChunkScratchBytes(args, tokens, sequences);
  // There may be no pointers yet, so dims decide alone.
  return VectorChunkScratchBytes(args, tokens, sequences);
}

}  // namespace weir::kernels::gpu
