// Rotary position embedding.
#include <cmath>

#include "core/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {

void Rotary(const RotaryArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::Rotary(args, stream);
  }
  const int64_t tokens = args.x.size(0), heads = args.x.size(1), head_dim = args.x.size(2);
  const int64_t half = args.inv_freq.num_elements();
  WEIR_CHECK(args.x.rank() == 3 && 2 * half <= head_dim) << args.x.ToString() << ", half " << half;
  WEIR_CHECK(args.positions.num_elements() == tokens) << args.positions.ToString();
  const int32_t* positions = args.positions.data<int32_t>();
  const float* inv_freq = args.inv_freq.data<float>();
  stream.pool->ParallelRanges(
      tokens, 1 + 16384 / (heads * head_dim + 1), [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* cosine = scratch.Of<float>(2 * half);
        float* sine = cosine + half;
        for (int64_t t = begin; t < end; ++t) {
          for (int64_t i = 0; i < half; ++i) {
            // The product is rounded to float, as published implementations do (and models were
            // trained with); the functions of it are exact.
            const double angle = static_cast<float>(positions[t]) * inv_freq[i];
            cosine[i] = static_cast<float>(std::cos(angle)) * args.attention_factor;
            sine[i] = static_cast<float>(std::sin(angle)) * args.attention_factor;
          }
          for (int64_t h = 0; h < heads; ++h) {
            float* x1 = args.x.row<float>(t) + h * head_dim;
            float* x2 = x1 + half;
            for (int64_t i = 0; i < half; ++i) {
              const float a = x1[i], b = x2[i];
              x1[i] = a * cosine[i] - b * sine[i];
              x2[i] = b * cosine[i] + a * sine[i];
            }
          }
        }
      });
}

}  // namespace weir::kernels
