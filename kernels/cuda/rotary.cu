// Rotary position embedding: a block per token, so that its angles are computed once.
#include "core/check.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/ops.h"

namespace weir::kernels::gpu {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void RotaryKernel(T* x, int64_t stride, int heads, int head_dim,
                             const int32_t* positions, const float* inv_freq, int half,
                             float factor) {
  extern __shared__ float angles[];
  float *cosine = angles, *sine = angles + half;
  PdlLaunchDependents();
  PdlWait();
  const int64_t token = blockIdx.x;
  RotaryTable(inv_freq, half, positions[token], factor, cosine, sine, threadIdx.x, blockDim.x);
  __syncthreads();
  for (int e = threadIdx.x; e < heads * half; e += blockDim.x) {
    const int i = e % half;
    T* x1 = x + token * stride + int64_t{e / half} * head_dim + i;
    T* x2 = x1 + half;
    const float a = Load(x1), b = Load(x2);
    Store(x1, a * cosine[i] - b * sine[i]);
    Store(x2, b * cosine[i] + a * sine[i]);
  }
}

}  // namespace

void Rotary(const RotaryArgs& args, Stream stream) {
  const int64_t tokens = args.x.size(0), heads = args.x.size(1), head_dim = args.x.size(2);
  const int64_t half = args.inv_freq.num_elements();
  WEIR_CHECK(args.x.rank() == 3 && 2 * half <= head_dim) << args.x.ToString() << ", half " << half;
  WEIR_CHECK(args.positions.num_elements() == tokens) << args.positions.ToString();
  if (tokens == 0 || heads == 0 || half == 0) return;
  LaunchOptions options;
  options.shared_bytes = 2 * half * sizeof(float);
  WithActivation(args.x.dtype(), [&](auto tag) {
    using T = decltype(tag);
    Launch("Rotary", stream, RotaryKernel<T>, dim3(tokens), dim3(kThreads), options,
           static_cast<T*>(args.x.raw()), args.x.row_stride(), heads, head_dim,
           args.positions.data<int32_t>(), args.inv_freq.data<float>(), half,
           args.attention_factor);
  });
}

}  // namespace weir::kernels::gpu
