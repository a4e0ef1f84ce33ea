// Two kernels; in neither does a thread read from memory what another one writes, so both work in
// place. Decoding: a thread owns a channel of a sequence and walks its run with the last W - 1
// inputs in registers. Longer runs: a block owns a strip of channels of a sequence and goes down
// it in tiles; a thread owns kRun tokens x 16 bytes of the tile and hands its last inputs to the
// next thread through shared memory, while the next tile is on its way into registers.
#include <type_traits>

#include "core/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kMaxWidth = 8;

// A rounding to bf16 hides what the quick reciprocal loses; denormals may as well be zeros.
template <typename T>
__device__ __forceinline__ float SiluFor(float x) {
  if constexpr (sizeof(T) == 2) {
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return x * inverse;
  } else {
    return Silu(x);
  }
}

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
    Store(p.out + t * p.out_stride + channel, p.silu ? SiluFor<T>(y) : y);
  }
#pragma unroll
  for (int j = 0; j < kMaxWidth - 1; ++j) {
    if (j < p.width - 1) {
      StoreWindow(window, (p.width - 2 - j) * p.channels + channel, p.window_bf16, past[j]);
    }
  }
}

constexpr int kRun = 8;  // tokens of a thread in a tile
constexpr int kTileThreads = 256;
constexpr int kTileWidth = 4;  // taps that fit in the registers of the tile kernel
constexpr int kVec = 4;        // channels of a thread

// Four activations.
template <typename T>
struct Piece {
  std::conditional_t<sizeof(T) == 2, uint2, uint4> bits;
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w);
    } else {
      const uint32_t pair = i < 2 ? bits.x : bits.y;
      return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
  }
  __device__ __forceinline__ static Piece Of(const float (&y)[kVec]) {
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

// grid: strips x sequences; a strip is `lanes` pieces of channels.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2) Tiles(const ConvParams<T> p, int lanes) {
  constexpr int kPast = kTileWidth - 1;
  // A thread's last inputs, newest first. Three tiles' worth: some threads may write the next
  // tile's while others still read this one's and the one's before.
  extern __shared__ __align__(16) char memory[];
  auto* handed = reinterpret_cast<Piece<T>(*)[kTileThreads][kPast]>(memory);
  PdlLaunchDependents();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % lanes, group = tid / lanes;
  const int tile = kTileThreads / lanes * kRun;
  const int64_t channel = (int64_t{blockIdx.x} * lanes + lane) * kVec;
  const bool inside = channel < p.channels;
  float taps[kTileWidth][kVec], bias[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
#pragma unroll
    for (int j = 0; j < kTileWidth; ++j) {
      taps[j][i] =
          inside && j < p.width ? p.weight[(channel + i) * p.width + p.width - 1 - j] : 0.0f;
    }
    bias[i] = inside && p.bias != nullptr ? p.bias[channel + i] : 0.0f;
  }
  PdlWait();
  const int s = static_cast<int>(blockIdx.y);
  const int begin = p.offsets[s], end = p.offsets[s + 1], slot = p.slots[s];
  const bool fresh = p.fresh[s] != 0;
  char* window = p.state + slot * p.slot_stride_bytes;
  Piece<T> next[kRun];
  const auto load = [&](int first) {
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      next[r].bits = {};
      if (inside && first + r < end && slot >= 0) {
        next[r] = *reinterpret_cast<const Piece<T>*>(p.x + (first + r) * p.x_stride + channel);
      }
    }
  };
  load(begin + group * kRun);
  int buffer = 0, before = 2;
  for (int start = begin; start < end; start += tile) {
    const int first = start + group * kRun;
    Piece<T> now[kRun];
#pragma unroll
    for (int r = 0; r < kRun; ++r) now[r] = next[r];
#pragma unroll
    for (int j = 0; j < kPast; ++j) handed[buffer][tid][j] = now[kRun - 1 - j];
    load(first + tile);
    float past[kPast][kVec];  // [j]: the input j + 1 tokens before `first`
    if (inside && first == begin) {
#pragma unroll
      for (int j = 0; j < kPast; ++j) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          past[j][i] =
              j < p.width - 1 && !fresh && slot >= 0
                  ? LoadWindow(window, (p.width - 2 - j) * p.channels + channel + i, p.window_bf16)
                  : 0.0f;
        }
      }
    }
    __syncthreads();
    const Piece<T>* inputs =  // the first group follows the last one of the tile before
        group > 0 ? handed[buffer][tid - lanes] : handed[before][kTileThreads - lanes + lane];
    before = buffer;
    buffer = buffer == 2 ? 0 : buffer + 1;
    if (!inside || first >= end) continue;
    if (first != begin) {
#pragma unroll
      for (int j = 0; j < kPast; ++j) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) past[j][i] = inputs[j][i];
      }
    }
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      if (first + r >= end) break;
      float y[kVec];
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        const float x = now[r][i];
        float sum = bias[i];
#pragma unroll
        for (int j = kTileWidth - 1; j > 0; --j) {
          if (j < p.width) sum = fmaf(taps[j][i], past[j - 1][i], sum);
        }
        sum = fmaf(taps[0][i], x, sum);
#pragma unroll
        for (int j = kPast - 1; j > 0; --j) past[j][i] = past[j - 1][i];
        past[0][i] = x;
        y[i] = slot < 0 ? 0.0f : p.silu ? SiluFor<T>(sum) : sum;
      }
      *reinterpret_cast<Piece<T>*>(p.out + (first + r) * p.out_stride + channel) = Piece<T>::Of(y);
    }
    if (first + kRun < end || slot < 0) continue;
#pragma unroll
    for (int j = 0; j < kPast; ++j) {
      if (j >= p.width - 1) continue;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        StoreWindow(window, (p.width - 2 - j) * p.channels + channel + i, p.window_bf16,
                    past[j][i]);
      }
    }
  }
}

template <typename T>
bool WidePieces(const ConvParams<T>& p) {
  return (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.out)) % 16 == 0 &&
         (p.x_stride | p.out_stride | p.channels) % kVec == 0;
}

template <typename T>
void LaunchConv(const ConvParams<T>& p, int64_t tokens, int64_t sequences, Stream stream) {
  const auto rows = static_cast<unsigned>(sequences);
  if (tokens < 8 * sequences || p.width > kTileWidth || !WidePieces(p)) {
    const dim3 grid(static_cast<unsigned>(CeilDiv(p.channels, 128)), rows);
    Launch("short_conv", stream, WalkRuns<T>, grid, dim3(128), {}, p);
    return;
  }
  // Strips are wide where runs are too short for the tiles of narrow ones, and narrow where there
  // would be fewer blocks than find room.
  const int64_t pieces = p.channels / kVec, run = tokens / sequences;
  int lanes = 32;
  while (lanes > 8 && run >= int64_t{2} * kTileThreads / lanes * kRun) lanes /= 2;
  while (lanes > 4 && CeilDiv(pieces, lanes) * sequences < cuda::Device().multiprocessors) {
    lanes /= 2;
  }
  const dim3 grid(static_cast<unsigned>(CeilDiv(pieces, lanes)), rows);
  LaunchOptions options;
  options.shared_bytes = 3 * kTileThreads * (kTileWidth - 1) * sizeof(Piece<T>);
  Launch("short_conv", stream, Tiles<T>, grid, dim3(kTileThreads), options, p, lanes);
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
    LaunchConv(p, tokens, sequences, stream);
  });
}

}  // namespace weir::kernels::gpu
