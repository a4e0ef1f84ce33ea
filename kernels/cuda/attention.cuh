// What the attention kernels share: one description of a call, and where entries live.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cuda/launch.cuh"

namespace weir::kernels::gpu {

// Pages and rings alike are blocks of `block_tokens` rows of K, then as many of V. Entry j of
// sequence s is row j % block_tokens of block table[s, j / block_tokens] (pages), or of the slot's
// only block (ring: block_tokens is the window).
struct KvPlace {
  char* base = nullptr;  // this layer's part of block 0
  int64_t block_bytes = 0;
  const int32_t* table = nullptr;  // null: ring
  int64_t table_stride = 0;
  int block_tokens = 0;
  bool bf16 = true;
};

// Sequences with min_run <= tokens <= max_run take part, the others are left to another kernel.
struct AttentionParams {
  void *q, *k, *v, *out;
  const void* gate;
  int64_t q_stride, k_stride, v_stride, out_stride, gate_stride;  // elements between tokens
  int heads, kv_heads, group, head_dim;
  float scale_log2;  // scale * log2(e)
  const int32_t *offsets, *slots, *cached;
  int sequences, tokens;
  const float *q_norm, *k_norm;
  float norm_eps;
  const int32_t* positions;
  const float* inv_freq;
  int half;  // of the rotary dimensions; 0: none
  KvPlace kv;
  int min_run, max_run;
};

// The sequence of a token: the last one that begins at or before it.
__device__ __forceinline__ int FindSequence(const AttentionParams& p, int token) {
  int low = 0, high = p.sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (p.offsets[middle] <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Sequence of a token and whether this launch is to do it.
struct TokenPlace {
  int seq, slot, run, entry;  // entry: of the token itself
  bool mine;
};

__device__ __forceinline__ TokenPlace PlaceOf(const AttentionParams& p, int token) {
  TokenPlace t;
  t.seq = FindSequence(p, token);
  const int begin = p.offsets[t.seq];
  t.run = p.offsets[t.seq + 1] - begin;
  t.slot = p.slots[t.seq];
  t.entry = p.cached[t.seq] + token - begin;
  t.mine = t.run >= p.min_run && t.run <= p.max_run;
  return t;
}

__device__ __forceinline__ int64_t BlockOf(const AttentionParams& p, int seq, int slot, int entry) {
  return p.kv.table == nullptr ? slot
                               : p.kv.table[seq * p.kv.table_stride + entry / p.kv.block_tokens];
}

// Key of an entry; its value is ValueOffset() elements further.
template <typename KV>
__device__ __forceinline__ KV* KeyAt(const AttentionParams& p, int seq, int slot, int entry,
                                     int kv_head) {
  char* block = p.kv.base + BlockOf(p, seq, slot, entry) * p.kv.block_bytes;
  const int64_t row = entry % p.kv.block_tokens;
  return reinterpret_cast<KV*>(block) + (row * p.kv_heads + kv_head) * p.head_dim;
}
__device__ __forceinline__ int64_t ValueOffset(const AttentionParams& p) {
  return int64_t{p.kv.block_tokens} * p.kv_heads * p.head_dim;
}

// cos and sin of a token's angles. The angle is rounded to float first, as models are trained.
__device__ __forceinline__ void RotaryTable(const float* inv_freq, int half, int32_t position,
                                            float factor, float* cosine, float* sine, int thread,
                                            int threads) {
#pragma unroll 1
  for (int i = thread; i < half; i += threads) {
    float s, c;
    sincosf(__fmul_rn(static_cast<float>(position), inv_freq[i]), &s, &c);
    cosine[i] = c * factor;
    sine[i] = s * factor;
  }
}

// One element of a rotated row x.
__device__ __forceinline__ float Rotated(const float* x, int d, int half, const float* cosine,
                                         const float* sine) {
  if (d >= 2 * half) return x[d];
  return d < half ? x[d] * cosine[d] - x[d + half] * sine[d]
                  : x[d] * cosine[d - half] + x[d - half] * sine[d - half];
}

// x [head_dim] normed into row (shared memory) by one warp.
template <typename T>
__device__ __forceinline__ void NormRow(const T* x, const float* weight, float eps, int head_dim,
                                        float* row) {
  const int lane = threadIdx.x % kWarp;
  float sum = 0.0f;
  for (int d = lane; d < head_dim; d += kWarp) {
    const float value = Load(x + d);
    row[d] = value;
    sum += value * value;
  }
  if (weight != nullptr) {
    const float inverse = rsqrtf(WarpSum(sum) / static_cast<float>(head_dim) + eps);
    for (int d = lane; d < head_dim; d += kWarp) row[d] = row[d] * inverse * weight[d];
  }
  __syncwarp();
}

// Rotates row in place, one warp; every element is written by the lane that reads it.
__device__ __forceinline__ void RotateRow(const AttentionParams& p, int32_t position, float* row) {
  for (int i = threadIdx.x % kWarp; i < p.half; i += kWarp) {
    float s, c;
    sincosf(__fmul_rn(static_cast<float>(position), p.inv_freq[i]), &s, &c);
    const float a = row[i], b = row[i + p.half];
    row[i] = a * c - b * s;
    row[i + p.half] = b * c + a * s;
  }
  __syncwarp();
}

// fn(activation, kv) with a value of each type.
template <typename Fn>
void WithTypes(DType activation, bool kv_bf16, const Fn& fn) {
  WithActivation(activation, [&](auto act) {
    if (kv_bf16) {
      fn(act, bf16{});
    } else {
      fn(act, float{});
    }
  });
}

// attention_prepare.cu: q and k normed and rotated, k and v stored; rings keep their old entries,
// the new k stays in the activations until all are read. Zeros where the slot is padding.
void LaunchPrepare(const AttentionParams& p, DType activation, Stream stream);

// attention_decode.cu: sequences of one token, everything in one launch.
bool DecodeSupported(const AttentionParams& p, DType activation);
int64_t DecodeScratchBytes(int heads, int kv_heads, int head_dim, int64_t sequences,
                           int64_t max_entries);
void LaunchDecode(const AttentionParams& p, int64_t max_entries, void* scratch, Stream stream);

// sm90/attention_prefill.cu: runs of prepared tokens. `tiles` bounds the row tiles of the batch.
bool PrefillSupported(const AttentionParams& p, DType activation);
void LaunchPrefill(const AttentionParams& p, const int32_t* host_offsets, Stream stream);

}  // namespace weir::kernels::gpu
