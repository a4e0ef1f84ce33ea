// The matrix product that takes everything: any sizes, types and strides, f32 in full precision.
// A block makes a tile of y from tiles of x and W in shared memory; each element of y is one chain
// of multiply-adds along `in`, whatever the number of rows.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul_kernels.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kTileRows = 32, kTileOuts = 64, kTileDepth = 32;
constexpr int kThreads = 128;
constexpr int kOwn = 4;  // a thread's rows and columns of the tile

template <typename X, typename W, typename Y>
__global__ __launch_bounds__(kThreads) void PlainKernel(Product p) {
  __shared__ float x_tile[kTileDepth][kTileRows + 1];
  __shared__ float w_tile[kTileDepth][kTileOuts + 1];
  const int64_t first_out = static_cast<int64_t>(blockIdx.x) * kTileOuts;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  const X* x = static_cast<const X*>(p.x) + first_row * p.x_stride;
  const W* w = static_cast<const W*>(p.w) + first_out * p.in;
  const int rows = static_cast<int>(min(p.rows - first_row, static_cast<int64_t>(kTileRows)));
  const int outs = static_cast<int>(min(p.out - first_out, static_cast<int64_t>(kTileOuts)));
  const int own_row = static_cast<int>(threadIdx.x) / (kTileOuts / kOwn) * kOwn;
  const int own_out = static_cast<int>(threadIdx.x) % (kTileOuts / kOwn);  // and every 16th after

  PdlLaunchDependents();
  PdlWait();
  float sum[kOwn][kOwn] = {};
  for (int64_t begin = 0; begin < p.in; begin += kTileDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTileDepth * kTileRows; i += kThreads) {
      const int row = i / kTileDepth, k = i % kTileDepth;
      float value = 0.0f;
      if (row < rows && begin + k < p.in) value = Load(x + row * p.x_stride + begin + k);
      // Products of bf16: x is rounded where it is wider.
      if (sizeof(W) == 2 && sizeof(X) == 4) value = __bfloat162float(__float2bfloat16_rn(value));
      x_tile[k][row] = value;
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTileDepth * kTileOuts; i += kThreads) {
      const int out = i / kTileDepth, k = i % kTileDepth;
      w_tile[k][out] = out < outs && begin + k < p.in ? Load(w + out * p.in + begin + k) : 0.0f;
    }
    __syncthreads();
    const int depth = static_cast<int>(min(p.in - begin, static_cast<int64_t>(kTileDepth)));
    for (int k = 0; k < depth; ++k) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          const int out = own_out + j * (kTileOuts / kOwn);
          sum[i][j] = fmaf(x_tile[k][own_row + i], w_tile[k][out], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int row = own_row + i, out = own_out + j * (kTileOuts / kOwn);
      if (row >= rows || out >= outs) continue;
      const float bias = p.bias != nullptr ? p.bias[first_out + out] : 0.0f;
      Store(static_cast<Y*>(p.y) + (first_row + row) * p.y_stride + first_out + out,
            sum[i][j] + bias);
    }
  }
}

template <typename Y>
__global__ void AddBiasKernel(Product p) {
  PdlLaunchDependents();
  PdlWait();
  const int64_t out = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (out >= p.out) return;
  Y* y = static_cast<Y*>(p.y) + static_cast<int64_t>(blockIdx.y) * p.y_stride + out;
  Store(y, Load(y) + p.bias[out]);
}

}  // namespace

void PlainMatMul(const Product& product, Stream stream) {
  WEIR_CHECK(!product.gated);
  const dim3 grid(static_cast<unsigned>(CeilDiv(product.out, kTileOuts)),
                  static_cast<unsigned>(CeilDiv(product.rows, kTileRows)));
  WithActivation(product.x_type, [&](auto x) {
    WithActivation(product.w_type, [&](auto w) {
      WithActivation(product.y_type, [&](auto y) {
        Launch("MatMul", stream, PlainKernel<decltype(x), decltype(w), decltype(y)>, grid, kThreads,
               {}, product);
      });
    });
  });
}

void AddBias(const Product& product, Stream stream) {
  WEIR_CHECK(product.rows <= 65535) << product.rows << " rows";
  const dim3 grid(static_cast<unsigned>(CeilDiv(product.out, kThreads)),
                  static_cast<unsigned>(product.rows));
  WithActivation(product.y_type, [&](auto y) {
    Launch("MatMul's bias", stream, AddBiasKernel<decltype(y)>, grid, kThreads, {}, product);
  });
}

}  // namespace weir::kernels::gpu
