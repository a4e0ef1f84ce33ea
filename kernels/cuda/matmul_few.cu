// Products of few rows on any GPU, of any types, sizes and alignment: a warp dots a few rows of W
// with up to 8 rows of x. Lanes take 8 elements of `in` at a time in turn and are added up at the
// end: an order that depends on `in` alone.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul_kernels.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kWarps = 4;
constexpr int kOwn = 4;  // rows of W of a warp
constexpr int kVector = 8;

// Elements [0, n) of kVector at `p`, the others zero.
__device__ __forceinline__ void LoadVector(const float* p, int n, bool aligned,
                                           float (&v)[kVector]) {
  if (aligned && n >= kVector) {
    const float4 a = *reinterpret_cast<const float4*>(p);
    const float4 b = *reinterpret_cast<const float4*>(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] = i < n ? p[i] : 0.0f;
}
__device__ __forceinline__ void LoadVector(const bf16* p, int n, bool aligned,
                                           float (&v)[kVector]) {
  if (aligned && n >= kVector) {
    const uint4 a = *reinterpret_cast<const uint4*>(p);
    const uint32_t words[] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) v[i] = i < n ? __bfloat162float(p[i]) : 0.0f;
}

template <int Tokens, typename X, typename W>
__global__ __launch_bounds__(kWarps* kWarp) void FewKernel(Product p, bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first_out =
      (static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / kWarp) * kOwn;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Tokens;
  const int outs = static_cast<int>(min(p.out - first_out, static_cast<int64_t>(kOwn)));
  const int rows = static_cast<int>(min(p.rows - first_row, static_cast<int64_t>(Tokens)));
  const int in = static_cast<int>(p.in);
  const W* w = static_cast<const W*>(p.w) + first_out * p.in;
  const X* x = static_cast<const X*>(p.x) + first_row * p.x_stride;
  if (outs <= 0) {
    PdlWait();
    return;
  }

  PdlLaunchDependents();
  float sum[kOwn][Tokens] = {};
  float next[kOwn][kVector];
  auto load = [&](int k) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      LoadVector(w + j * p.in + k, j < outs ? in - k : 0, aligned, next[j]);
    }
  };
  load(lane * kVector);  // W is constant: it may be read before the kernel in front has ended
  PdlWait();
  for (int k = lane * kVector; k < in; k += kWarp * kVector) {
    float now[kOwn][kVector];
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) now[j][i] = next[j][i];
    }
    load(k + kWarp * kVector);
#pragma unroll
    for (int t = 0; t < Tokens; ++t) {
      if (t >= rows) break;
      float v[kVector];
      LoadVector(x + t * p.x_stride + k, in - k, aligned, v);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        // Products of bf16: x is rounded where it is wider.
        if (sizeof(W) == 2 && sizeof(X) == 4) v[i] = __bfloat162float(__float2bfloat16_rn(v[i]));
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sum[j][t] = fmaf(now[j][i], v[i], sum[j][t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < Tokens; ++t) {
    if (t >= rows) break;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const float total = WarpSum(sum[j][t]);
      if (lane != 0 || j >= outs) continue;
      const float value = total + (p.bias != nullptr ? p.bias[first_out + j] : 0.0f);
      const int64_t at = (first_row + t) * p.y_stride + first_out + j;
      if (p.y_type == DType::kBF16) {
        Store(static_cast<bf16*>(p.y) + at, value);
      } else {
        Store(static_cast<float*>(p.y) + at, value);
      }
    }
  }
}

template <int Tokens>
void LaunchFew(const Product& p, Stream stream) {
  auto on16 = [](const void* at, int64_t stride, DType type) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride * DTypeSize(type) % 16 == 0;
  };
  const bool aligned = on16(p.w, p.in, p.w_type) && on16(p.x, p.x_stride, p.x_type);
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.rows, Tokens)),
                  static_cast<unsigned>(CeilDiv(p.out, int64_t{kWarps} * kOwn)));
  WithActivation(p.x_type, [&](auto x) {
    WithActivation(p.w_type, [&](auto w) {
      Launch("MatMul", stream, FewKernel<Tokens, decltype(x), decltype(w)>, grid, kWarps * kWarp,
             {}, p, aligned);
    });
  });
}

}  // namespace

void FewRowsMatMul(const Product& product, Stream stream) {
  WEIR_CHECK(!product.gated && product.rows <= kStreamRows && product.in < (int64_t{1} << 30));
  if (product.rows == 1) return LaunchFew<1>(product, stream);
  LaunchFew<8>(product, stream);
}

}  // namespace weir::kernels::gpu
