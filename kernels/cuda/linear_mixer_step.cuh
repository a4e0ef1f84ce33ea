// Device code that the kernels of the mixer's decode step share.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_mixer_step.h"

namespace weir::kernels::gpu::mixer_step {

constexpr int kMaxWidth = 4;  // taps of the convolution
constexpr int kSlots = 8;     // 16-byte pieces of a lane in one pass
constexpr int kPassFloats = kSlots * kWarp * 4;

__device__ __forceinline__ float LoadAny(const RowsOf& rows, int64_t at) {
  return rows.is_bf16 ? Load(static_cast<const bf16*>(rows.data) + at)
                      : Load(static_cast<const float*>(rows.data) + at);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define WEIR_STEP_BODY 1
#else
#define WEIR_STEP_BODY 0
#endif

__device__ __forceinline__ float4 LoadOnce(const float4* p) {
  float4 x;
  asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(p));
  return x;
}

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
__device__ __forceinline__ void StoreRemote(const float* mine, uint32_t rank, float x) {
  uint32_t at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(at)
               : "r"(SharedAddress(mine)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(x) : "memory");
}
__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
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
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n .reg .pred done;\n again:\n"
      " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @!done bra again;\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
#endif

// Four neighbouring activations; `wide`: aligned for one access.
template <typename T>
__device__ __forceinline__ void Load4(const T* p, bool wide, float (&x)[4]) {
  if (!wide) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = Load(p + i);
  } else if constexpr (sizeof(T) == 4) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
    x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
  }
}
template <typename T>
__device__ __forceinline__ void Store4(T* p, bool wide, const float (&x)[4]) {
  if (!wide) {
#pragma unroll
    for (int i = 0; i < 4; ++i) Store(p + i, x[i]);
  } else if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]);
    const __nv_bfloat162 high = __floats2bfloat162_rn(x[2], x[3]);
    *reinterpret_cast<uint2*>(p) = make_uint2(*reinterpret_cast<const uint32_t*>(&low),
                                              *reinterpret_cast<const uint32_t*>(&high));
  }
}
__device__ __forceinline__ void Load4Any(const RowsOf& rows, int64_t at, bool wide, float (&x)[4]) {
  if (rows.is_bf16) {
    Load4(static_cast<const bf16*>(rows.data) + at, wide, x);
  } else {
    Load4(static_cast<const float*>(rows.data) + at, wide, x);
  }
}

__device__ __forceinline__ float FastSigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// Four neighbouring channels of the convolution; j counts tokens back from the current one.
struct Channels {
  float taps[kMaxWidth][4], past[kMaxWidth - 1][4], bias[4], x[4];

  __device__ __forceinline__ void LoadWeights(const MixerStep& p, int64_t channel) {
    if (p.width == 0) return;
    if (p.wide && p.width == 4) {
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
#pragma unroll
    for (int i = 0; i < 4; ++i) bias[i] = 0.0f;
    if (p.conv_bias != nullptr) Load4(p.conv_bias + channel, p.wide, bias);
  }
  __device__ __forceinline__ void LoadPast(const MixerStep& p, const char* window, int64_t channel,
                                           bool fresh) {
#pragma unroll
    for (int j = 0; j < kMaxWidth - 1; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) past[j][i] = 0.0f;
      if (j >= p.width - 1 || fresh) continue;
      const int64_t at = (p.width - 2 - j) * p.channels + channel;
      if (p.window_bf16) {
        Load4(reinterpret_cast<const bf16*>(window) + at, p.wide, past[j]);
      } else {
        Load4(reinterpret_cast<const float*>(window) + at, p.wide, past[j]);
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
  __device__ __forceinline__ void StorePast(const MixerStep& p, char* window,
                                            int64_t channel) const {
#pragma unroll
    for (int j = 0; j < kMaxWidth - 1; ++j) {
      if (j >= p.width - 1) continue;
      const int64_t at = (p.width - 2 - j) * p.channels + channel;
      const float(&input)[4] = j == 0 ? x : past[j == 0 ? 0 : j - 1];
      if (p.window_bf16) {
        Store4(reinterpret_cast<bf16*>(window) + at, p.wide, input);
      } else {
        Store4(reinterpret_cast<float*>(window) + at, p.wide, input);
      }
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
