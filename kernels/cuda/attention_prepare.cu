// The step before attention: norm and rotary of q and k, the store of the new entries.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/vectors.cuh"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A block per token, a warp per head of q, k and v.
template <typename T, typename KV>
__global__ void PrepareKernel(const AttentionParams p) {
  extern __shared__ float shared[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, token = blockIdx.x;
  float *cosine = shared, *sine = cosine + p.half, *row = sine + p.half + warp * p.head_dim;
  PdlLaunchDependents();
  PdlWait();
  const TokenPlace t = PlaceOf(p, token);
  if (!t.mine) return;
  if (t.slot < 0) {
    for (int d = threadIdx.x; d < p.heads * p.head_dim; d += blockDim.x) {
      Store(static_cast<T*>(p.out) + token * p.out_stride + d, 0.0f);
    }
    return;
  }
  if (p.half > 0) {
    RotaryTable(p.inv_freq, p.half, p.positions[token], 1.0f, cosine, sine, threadIdx.x,
                blockDim.x);
  }
  __syncthreads();
  const bool paged = p.kv.table != nullptr;
  for (int h = warp; h < p.heads + 2 * p.kv_heads; h += blockDim.x / kWarp) {
    if (h < p.heads) {
      if (p.q_norm == nullptr && p.half == 0) continue;
      T* x = static_cast<T*>(p.q) + token * p.q_stride + h * p.head_dim;
      NormRow(x, p.q_norm, p.norm_eps, p.head_dim, row);
      for (int d = lane; d < p.head_dim; d += kWarp) {
        Store(x + d, Rotated(row, d, p.half, cosine, sine));
      }
    } else if (h < p.heads + p.kv_heads) {
      const int head = h - p.heads;
      T* x = static_cast<T*>(p.k) + token * p.k_stride + head * p.head_dim;
      NormRow(x, p.k_norm, p.norm_eps, p.head_dim, row);
      KV* key = paged ? KeyAt<KV>(p, t.seq, t.slot, t.entry, head) : nullptr;
      for (int d = lane; d < p.head_dim; d += kWarp) {
        const float value = Rotated(row, d, p.half, cosine, sine);
        if (paged) {
          Store(key + d, value);
        } else {
          Store(x + d, value);
        }
      }
    } else if (paged) {
      const int head = h - p.heads - p.kv_heads;
      const T* x = static_cast<const T*>(p.v) + token * p.v_stride + head * p.head_dim;
      KV* value = KeyAt<KV>(p, t.seq, t.slot, t.entry, head) + ValueOffset(p);
      for (int d = lane; d < p.head_dim; d += kWarp) Store(value + d, Load(x + d));
    }
    __syncwarp();
  }
}

// The same for bf16 rows of kDim: 8 elements a lane, kDim / 8 lanes a head, all heads at once where
// a thread block is wide enough.
template <int kDim>
class PrepareRows {
 public:
  static constexpr int kLanes = kDim / 8;

  __device__ __forceinline__ PrepareRows(const AttentionParams& p, int token)
      : p_(p), token_(token), place_(PlaceOf(p, token)) {
    keys_ = p.heads;
    values_ = keys_ + p.kv_heads;
    end_ = p.kv.table != nullptr ? values_ + p.kv_heads : values_;
    d0_ = threadIdx.x % kLanes * 8;
  }

  __device__ __forceinline__ void Run(float* shared) {
    if (!place_.mine) return;
    if (place_.slot < 0) {
      for (int d = threadIdx.x; d < p_.heads * kDim; d += blockDim.x) {
        Store(static_cast<bf16*>(p_.out) + token_ * p_.out_stride + d, 0.0f);
      }
      return;
    }
    float *cosine = shared, *sine = cosine + kDim / 2;
    float* row = shared + kDim + threadIdx.x / kLanes * kDim;
    const int heads = blockDim.x / kLanes;
    int h = threadIdx.x / kLanes;
    float y[8] = {};
    if (h < end_) LoadN<8>(RowAt(h), y);
    if (p_.half > 0) {
      RotaryTable(p_.inv_freq, p_.half, p_.positions[token_], 1.0f, cosine, sine, threadIdx.x,
                  blockDim.x);
    }
    __syncthreads();
    // All lanes of a warp stay in the loop: those past the end have nothing to load or store.
#pragma unroll 1
    for (int base = 0; base < end_; base += heads, h += heads) {
      if (base > 0 && h < end_) LoadN<8>(RowAt(h), y);
      Norm(h, y);
      if (p_.half > 0) {
        __syncwarp();
        StoreN<8>(row + d0_, y);
        __syncwarp();
        if (h < values_ && d0_ < 2 * p_.half) {
#pragma unroll
          for (int i = 0; i < 8; ++i) y[i] = Rotated(row, d0_ + i, p_.half, cosine, sine);
        }
      }
      if (h < end_) StoreN<8>(TargetOf(h), y);
    }
  }

 private:
  __device__ __forceinline__ bf16* RowAt(int h) const {
    void* x = h < keys_ ? p_.q : h < values_ ? p_.k : p_.v;
    const int64_t stride = h < keys_ ? p_.q_stride : h < values_ ? p_.k_stride : p_.v_stride;
    return static_cast<bf16*>(x) + token_ * stride + HeadOf(h) * kDim + d0_;
  }
  __device__ __forceinline__ int HeadOf(int h) const {
    return h < keys_ ? h : h < values_ ? h - keys_ : h - values_;
  }
  __device__ __forceinline__ bf16* TargetOf(int h) const {
    if (h < keys_ || p_.kv.table == nullptr) return RowAt(h);
    return KeyAt<bf16>(p_, place_.seq, place_.slot, place_.entry, HeadOf(h)) + d0_ +
           (h < values_ ? 0 : ValueOffset(p_));
  }
  __device__ __forceinline__ void Norm(int h, float (&y)[8]) const {
    const float* weight = h < keys_ ? p_.q_norm : h < values_ ? p_.k_norm : nullptr;
    float w[8];
    if (weight != nullptr) LoadN<8>(weight + d0_, w);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += y[i] * y[i];
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (weight == nullptr) return;
    const float inverse = rsqrtf(sum / kDim + p_.norm_eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = y[i] * inverse * w[i];
  }

  const AttentionParams& p_;
  const int64_t token_;
  const TokenPlace place_;
  int keys_, values_, end_, d0_;
};

template <int kDim>
__global__ void __launch_bounds__(1024) PrepareRowsKernel(const AttentionParams p) {
  extern __shared__ float shared[];  // cosines, sines, a row per head
  PdlLaunchDependents();
  PdlWait();
  PrepareRows<kDim>(p, blockIdx.x).Run(shared);
}

template <int kDim>
void LaunchRows(const AttentionParams& p, Stream stream) {
  const int rows = p.heads + (p.kv.table != nullptr ? 2 : 1) * p.kv_heads;
  const int64_t threads = std::min<int64_t>(CeilDiv(rows * kDim / 8, kWarp) * kWarp, 1024);
  LaunchOptions options;
  options.shared_bytes = sizeof(float) * (kDim + threads * 8);
  Launch("Attention, prepare", stream, PrepareRowsKernel<kDim>, dim3(p.tokens), dim3(threads),
         options, p);
}

bool RowsSupported(const AttentionParams& p, DType activation) {
  const auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % 8 == 0;
  };
  return activation == DType::kBF16 && p.kv.bf16 &&
         (p.head_dim == 64 || p.head_dim == 128 || p.head_dim == 256) && aligned(p.q, p.q_stride) &&
         aligned(p.k, p.k_stride) && aligned(p.v, p.v_stride) && aligned(p.q_norm, 0) &&
         aligned(p.k_norm, 0) && aligned(p.kv.base, p.kv.block_bytes / 2);
}

}  // namespace

void LaunchPrepare(const AttentionParams& p, DType activation, Stream stream) {
  if (RowsSupported(p, activation)) {
    if (p.head_dim == 256) {
      LaunchRows<256>(p, stream);
    } else if (p.head_dim == 128) {
      LaunchRows<128>(p, stream);
    } else {
      LaunchRows<64>(p, stream);
    }
    return;
  }
  LaunchOptions options;
  options.shared_bytes = sizeof(float) * (2 * p.half + kWarps * p.head_dim);
  WithTypes(activation, p.kv.bf16, [&](auto act, auto kv) {
    Launch("Attention, prepare", stream, PrepareKernel<decltype(act), decltype(kv)>, dim3(p.tokens),
           dim3(kThreads), options, p);
  });
}

}  // namespace weir::kernels::gpu
