// A thread owns a channel of a sequence and walks its run with the last W - 1 inputs in registers:
// what it overwrites in place nobody else reads.
#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kMaxWidth = 8;

template <typename T>
struct ConvParams {
  const T* x;
  T* out;
  int64_t x_stride, out_stride, channels;
  const float *weight, *bias;
  int width;
  bool silu, window_bf16;
  const int32_t *offsets, *slots;
  const uint8_t* fresh;
  char* state;
  int64_t slot_stride_bytes;
};

__device__ __forceinline__ float LoadWindow(const char* window, int64_t at, bool is_bf16) {
  return is_bf16 ? Load(reinterpret_cast<const bf16*>(window) + at)
                 : Load(reinterpret_cast<const float*>(window) + at);
}
__device__ __forceinline__ void StoreWindow(char* window, int64_t at, bool is_bf16, float x) {
  if (is_bf16) {
    Store(reinterpret_cast<bf16*>(window) + at, x);
  } else {
    Store(reinterpret_cast<float*>(window) + at, x);
  }
}

// Inputs older than the width allows meet zero weights: the taps are counted from the newest.
template <typename T>
__global__ void __launch_bounds__(128) WalkRuns(const ConvParams<T> p) {
  PdlLaunchDependents();
  const int64_t channel = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (channel >= p.channels) return;
  float taps[kMaxWidth];
#pragma unroll
  for (int j = 0; j < kMaxWidth; ++j) {
    taps[j] = j < p.width ? p.weight[channel * p.width + p.width - 1 - j] : 0.0f;
  }
  const float bias = p.bias != nullptr ? p.bias[channel] : 0.0f;
  PdlWait();
  const int s = static_cast<int>(blockIdx.y);
  const int begin = p.offsets[s], end = p.offsets[s + 1], slot = p.slots[s];
  if (begin == end) return;
  if (slot < 0) {
    for (int t = begin; t < end; ++t) Store(p.out + t * p.out_stride + channel, 0.0f);
    return;
  }
  char* window = p.state + slot * p.slot_stride_bytes;
  float past[kMaxWidth];  // past[j]: the input j tokens ago
  const bool fresh = p.fresh[s] != 0;
#pragma unroll
  for (int j = 1; j < kMaxWidth; ++j) {
    past[j - 1] = j < p.width && !fresh
                      ? LoadWindow(window, (p.width - 1 - j) * p.channels + channel, p.window_bf16)
                      : 0.0f;
  }
  past[kMaxWidth - 1] = 0.0f;
  for (int t = begin; t < end; ++t) {
#pragma unroll
    for (int j = kMaxWidth - 1; j > 0; --j) past[j] = past[j - 1];
    past[0] = Load(p.x + t * p.x_stride + channel);
    float y = bias;
#pragma unroll
    for (int j = kMaxWidth - 1; j >= 0; --j) {
      if (j < p.width) y = fmaf(taps[j], past[j], y);
    }
    Store(p.out + t * p.out_stride + channel, p.silu ? Silu(y) : y);
  }
#pragma unroll
  for (int j = 0; j < kMaxWidth - 1; ++j) {
    if (j < p.width - 1) {
      StoreWindow(window, (p.width - 2 - j) * p.channels + channel, p.window_bf16, past[j]);
    }
  }
}

}  // namespace

void ShortConv(const ShortConvArgs& args, Stream stream) {
  const int64_t tokens = args.x.size(0), channels = args.x.size(1), sequences = args.slots.size(0);
  const int64_t width = args.weight.size(1);
  WEIR_CHECK(args.weight.size(0) == channels && args.weight.contiguous() && width <= kMaxWidth)
      << "weight " << args.weight.ToString() << " for " << args.x.ToString();
  WEIR_CHECK(args.activation == Activation::kNone || args.activation == Activation::kSilu)
      << "short conv knows no activation but silu";
  WEIR_CHECK(args.out.dtype() == args.x.dtype()) << args.out.ToString();
  if (tokens == 0 || channels == 0 || sequences == 0) return;
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    ConvParams<T> p{};
    p.x = static_cast<const T*>(args.x.raw());
    p.out = static_cast<T*>(args.out.raw());
    p.x_stride = args.x.row_stride();
    p.out_stride = args.out.row_stride();
    p.channels = channels;
    p.weight = args.weight.data<float>();
    p.bias = args.bias.defined() ? args.bias.data<float>() : nullptr;
    p.width = static_cast<int>(width);
    p.silu = args.activation == Activation::kSilu;
    p.window_bf16 = args.window_dtype == DType::kBF16;
    p.offsets = args.offsets.data<int32_t>();
    p.slots = args.slots.data<int32_t>();
    p.fresh = args.fresh.data<uint8_t>();
    p.state = static_cast<char*>(args.state);
    p.slot_stride_bytes = args.slot_stride_bytes;
    const dim3 grid(static_cast<unsigned>(CeilDiv(channels, 128)),
                    static_cast<unsigned>(sequences));
    Launch("short_conv", stream, WalkRuns<T>, grid, dim3(128), {}, p);
  });
}

}  // namespace weir::kernels::gpu
