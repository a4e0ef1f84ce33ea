// Device code that the kernels of the mixer's decode step share.
#pragma once

#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_mixer_step.h"

namespace weir::kernels::gpu::mixer_step {

constexpr int kMaxWidth = 4;  // taps of the convolution
constexpr int kSlots = 8;     // 16-byte pieces of a lane in one pass
constexpr int kPassFloats = kSlots * kWarp * 4;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define WEIR_STEP_BODY 1
#else
#define WEIR_STEP_BODY 0
#endif

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if WEIR_STEP_BODY
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Address of a peer's copy of what is at `mine` here.
__device__ __forceinline__ uint32_t PeerAddress(const void* mine, uint32_t rank) {
  uint32_t at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(at)
               : "r"(SharedAddress(mine)), "r"(rank));
  return at;
}
__device__ __forceinline__ void StorePeer(const float* mine, uint32_t rank, float x) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(PeerAddress(mine, rank)), "f"(x)
               : "memory");
}
__device__ __forceinline__ void ArrivePeer(const uint64_t* mine, uint32_t rank) {
  asm volatile(
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(PeerAddress(mine, rank))
      : "memory");
}
__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BulkLoad(float* to, const float* from, uint32_t bytes,
                                         uint64_t* barrier) {
  const uint32_t at = SharedAddress(barrier);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(at)
      : "memory");
}
__device__ __forceinline__ void BulkPrefetch(const float* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
}
// Waits for the barrier's phase of this parity; sees what peers of the cluster wrote before they
// arrived.
__device__ __forceinline__ void BarrierWait(const uint64_t* barrier, int parity) {
  asm volatile(
      "{\n .reg .pred done;\n again:\n"
      " mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      " @!done bra again;\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
#endif

// Four elements that stay as they are until they are needed: a warp stands still at the first use
// of what is on its way, so all loads are issued before any use.
template <typename T>
struct Piece {
  std::conditional_t<sizeof(T) == 2, uint2, uint4> bits{};
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w);
    } else {
      const uint32_t pair = i < 2 ? bits.x : bits.y;
      return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
  }
  __device__ __forceinline__ static Piece Of(const float (&y)[4]) {
    Piece piece;
    if constexpr (sizeof(T) == 4) {
      piece.bits = make_uint4(__float_as_uint(y[0]), __float_as_uint(y[1]), __float_as_uint(y[2]),
                              __float_as_uint(y[3]));
    } else {
      const __nv_bfloat162 low = __floats2bfloat162_rn(y[0], y[1]);
      const __nv_bfloat162 high = __floats2bfloat162_rn(y[2], y[3]);
      piece.bits = make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                              *reinterpret_cast<const uint32_t*>(&high));
    }
    return piece;
  }
};

// kWide: rows are aligned for a piece in one access.
template <bool kWide, typename T>
__device__ __forceinline__ Piece<T> LoadPiece(const T* p) {
  if constexpr (kWide) {
    return {*reinterpret_cast<const decltype(Piece<T>::bits)*>(p)};
  } else {
    return Piece<T>::Of({Load(p), Load(p + 1), Load(p + 2), Load(p + 3)});
  }
}
template <bool kWide, typename T>
__device__ __forceinline__ void StorePiece(T* p, const Piece<T>& piece) {
  if constexpr (kWide) {
    *reinterpret_cast<decltype(Piece<T>::bits)*>(p) = piece.bits;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) Store(p + i, piece[i]);
  }
}

// A number, or four of them, of rows whose type is known at run time only; Value() converts.
struct AnyNumber {
  uint32_t bits = 0;
  __device__ __forceinline__ void Load(const RowsOf& rows, int64_t at) {
    if (rows.is_bf16) {
      bits = uint32_t{static_cast<const uint16_t*>(rows.data)[at]};
    } else {
      bits = static_cast<const uint32_t*>(rows.data)[at];
    }
  }
  __device__ __forceinline__ float Value(const RowsOf& rows) const {
    return __uint_as_float(rows.is_bf16 ? bits << 16 : bits);
  }
};
template <bool kWide>
struct AnyPiece {
  uint4 bits{};
  __device__ __forceinline__ void Load(const RowsOf& rows, int64_t at) {
    if (rows.is_bf16) {
      const auto piece = LoadPiece<kWide>(static_cast<const bf16*>(rows.data) + at);
      bits.x = piece.bits.x;
      bits.y = piece.bits.y;
    } else {
      bits = LoadPiece<kWide>(static_cast<const float*>(rows.data) + at).bits;
    }
  }
  __device__ __forceinline__ float Value(const RowsOf& rows, int i) const {
    return rows.is_bf16 ? Piece<bf16>{make_uint2(bits.x, bits.y)}[i] : Piece<float>{bits}[i];
  }
};

__device__ __forceinline__ float FastSigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// Four neighbouring channels of the convolution; j counts tokens back from the current one.
template <typename T, bool kWide>
struct Channels {
  float taps[kMaxWidth][4];
  Piece<float> bias;
  Piece<T> past[kMaxWidth - 1], x;

  __device__ __forceinline__ void LoadWeights(const MixerStep& p, int64_t channel) {
    if (p.width == 0) return;
    if (kWide && p.width == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 w = reinterpret_cast<const float4*>(p.conv_weight)[channel + i];
        taps[3][i] = w.x, taps[2][i] = w.y, taps[1][i] = w.z, taps[0][i] = w.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kMaxWidth; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          taps[j][i] =
              j < p.width ? p.conv_weight[(channel + i) * p.width + p.width - 1 - j] : 0.0f;
        }
      }
    }
    if (p.conv_bias != nullptr) bias = LoadPiece<kWide>(p.conv_bias + channel);
  }
  __device__ __forceinline__ void LoadPast(const MixerStep& p, const T* window, int64_t channel,
                                           bool fresh) {
#pragma unroll
    for (int j = 0; j < kMaxWidth - 1; ++j) {
      if (j < p.width - 1 && !fresh) {
        past[j] = LoadPiece<kWide>(window + (p.width - 2 - j) * p.channels + channel);
      }
    }
  }
  __device__ __forceinline__ void Values(const MixerStep& p, float (&y)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[i] = x[i];
      if (p.width > 0) {
        y[i] = bias[i];
#pragma unroll
        for (int j = kMaxWidth - 1; j > 0; --j) y[i] = fmaf(taps[j][i], past[j - 1][i], y[i]);
        y[i] = fmaf(taps[0][i], x[i], y[i]);
      }
      if (p.silu) y[i] *= FastSigmoid(y[i]);
    }
  }
  __device__ __forceinline__ void StorePast(const MixerStep& p, T* window, int64_t channel) const {
#pragma unroll
    for (int j = 0; j < kMaxWidth - 1; ++j) {
      if (j >= p.width - 1) continue;
      StorePiece<kWide>(window + (p.width - 2 - j) * p.channels + channel,
                        j == 0 ? x : past[j == 0 ? 0 : j - 1]);
    }
  }
};

// exp of the log decay that x stands for.
__device__ __forceinline__ float DecayOf(const MixerStep& p, float x, float bias, float exp_a) {
  if (p.decay_given) return __expf(x);
  x += bias;
  float g;
  if (p.decay_form == LogDecayArgs::Form::kSoftplus) {
    g = -exp_a * Softplus(x);
  } else if (p.decay_form == LogDecayArgs::Form::kLogSigmoid) {
    g = fmaxf(-Softplus(-x) * p.inverse_normalizer, p.clamp_min);
  } else {
    g = p.lower_bound * FastSigmoid(exp_a * x);
  }
  return __expf(g);
}

// Sums N values over groups of L lanes; lane l of a group is left with the sum of value
// l / (L / N). Halving exchanges: N - 1 + log2(L / N) shuffles instead of N log2(L).
template <int N, int L>
__device__ __forceinline__ float GroupSums(float (&values)[N]) {
  const int lane = static_cast<int>(threadIdx.x);
  int offset = L / 2;
#pragma unroll
  for (int n = N / 2; n > 0; n /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float keep = upper ? values[i + n] : values[i];
      const float send = upper ? values[i] : values[i + n];
      values[i] = keep + __shfl_xor_sync(0xffffffffu, send, offset);
    }
  }
  float sum = values[0];
#pragma unroll
  for (; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

__device__ __forceinline__ float Dot(const float4& a, const float4& b) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w)));
}
__device__ __forceinline__ float4 Product(const float4& a, const float4& b) {
  return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w};
}

// A lane's columns of k, q and the decays, and what a pass over rows needs of the token.
template <int K>
struct Token {
  static constexpr int kVectors = K == 256 ? 2 : 1;  // float4 of a lane in one row
  static constexpr int kLanes = K / 4 / kVectors;    // lanes of a row
  static constexpr int kSums = kSlots / kVectors;

  float4 k[kVectors], decay[kVectors], decayed_k[kVectors], decayed_q[kVectors];
  float kq, beta;

  // `shared_k` and `shared_q` hold the raw vectors, scaled here by their norms.
  __device__ __forceinline__ void Init(const MixerStep& p, const float* shared_k,
                                       const float* shared_q, const float* shared_decay,
                                       float scalar_decay) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    float kk = 0.0f, qq = 0.0f;
    float4 q[kVectors];
    kq = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = i * kLanes + lane;
      k[i] = reinterpret_cast<const float4*>(shared_k)[at];
      q[i] = reinterpret_cast<const float4*>(shared_q)[at];
      decay[i] = p.decay == Decay::kVector
                     ? reinterpret_cast<const float4*>(shared_decay)[at]
                     : float4{scalar_decay, scalar_decay, scalar_decay, scalar_decay};
      kk += Dot(k[i], k[i]);
      qq += Dot(q[i], q[i]);
      kq += Dot(k[i], q[i]);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      kk += __shfl_xor_sync(0xffffffffu, kk, offset);
      qq += __shfl_xor_sync(0xffffffffu, qq, offset);
      kq += __shfl_xor_sync(0xffffffffu, kq, offset);
    }
    const float k_scale = p.l2_norm ? rsqrtf(kk + p.l2_eps) : 1.0f;
    const float q_scale = p.q_scale * (p.l2_norm ? rsqrtf(qq + p.l2_eps) : 1.0f);
    kq *= k_scale * q_scale;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      k[i] = Product(k[i], {k_scale, k_scale, k_scale, k_scale});
      q[i] = Product(q[i], {q_scale, q_scale, q_scale, q_scale});
      decayed_k[i] = Product(k[i], decay[i]);
      decayed_q[i] = Product(q[i], decay[i]);
    }
  }

  // 4 KiB of rows in `rows`, the first of which has its value at v[0] and its output at o[0];
  // the new rows go to `to`.
  __device__ __forceinline__ void Pass(const MixerStep& p, const float4 (&rows)[kSlots],
                                       const float* v, float* o, float4* to) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    float seen[kSums] = {}, read[kSums] = {};
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      seen[i / kVectors] += Dot(rows[i], decayed_k[i % kVectors]);
      read[i / kVectors] += Dot(rows[i], decayed_q[i % kVectors]);
    }
    const float row_seen = GroupSums<kSums, kLanes>(seen);
    const float row_read = GroupSums<kSums, kLanes>(read);
    constexpr int kShare = kLanes / kSums;  // lanes that hold the same sum
    const int row = lane % kLanes / kShare * (kWarp / kLanes) + lane / kLanes;
    const float u = p.delta ? beta * (v[row] - row_seen) : v[row];
    if (lane % kShare == 0) o[row] = fmaf(u, kq, row_read);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const float write =
          __shfl_sync(0xffffffffu, u, lane / kLanes * kLanes + i / kVectors * kShare);
      const float4 &d = decay[i % kVectors], &key = k[i % kVectors];
      to[i * kWarp + lane] = {
          fmaf(d.x, rows[i].x, key.x * write), fmaf(d.y, rows[i].y, key.y * write),
          fmaf(d.z, rows[i].z, key.z * write), fmaf(d.w, rows[i].w, key.w * write)};
    }
  }
};

}  // namespace weir::kernels::gpu::mixer_step
