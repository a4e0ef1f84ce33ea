#include "kernels/short_conv.h"

#include <algorithm>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/short_conv_job.h"
#include "kernels/cuda/ops.h"

namespace weir::kernels {
namespace {

const ShortConvTable& Table() {
#if defined(__x86_64__)
  const SimdLevel level = CurrentSimdLevel();
  if (level >= SimdLevel::kAvx512) return kShortConvAvx512;
  if (level >= SimdLevel::kAvx2) return kShortConvAvx2;
#endif
  return kShortConvBaseline;
}

void Validate(const ShortConvArgs& args) {
  WEIR_CHECK(args.x.rank() == 2 && args.out.rank() == 2 && args.weight.rank() == 2)
      << args.x.ToString() << " " << args.weight.ToString() << " " << args.out.ToString();
  const int64_t tokens = args.x.size(0), channels = args.x.size(1);
  WEIR_CHECK(args.weight.size(0) == channels && args.weight.size(1) >= 1 &&
             args.weight.contiguous())
      << "weight " << args.weight.ToString() << " for " << args.x.ToString();
  WEIR_CHECK(args.out.size(0) == tokens && args.out.size(1) == channels) << args.out.ToString();
  WEIR_CHECK(!args.bias.defined() || args.bias.num_elements() == channels) << args.bias.ToString();
  WEIR_CHECK(args.activation == Activation::kNone || args.activation == Activation::kSilu)
      << "short conv knows no activation but silu";
  const int64_t sequences = args.slots.size(0);
  WEIR_CHECK(args.offsets.size(0) == sequences + 1 && args.fresh.size(0) == sequences)
      << "offsets " << args.offsets.ToString() << ", fresh " << args.fresh.ToString();
  const int32_t* offsets = args.offsets.data<int32_t>();
  for (int64_t s = 0; s < sequences; ++s) {
    WEIR_CHECK(0 <= offsets[s] && offsets[s] <= offsets[s + 1] && offsets[s + 1] <= tokens)
        << "sequence " << s << " owns tokens [" << offsets[s] << ", " << offsets[s + 1] << ") of "
        << tokens;
  }
}

// Channels [first, first + count) of sequence s; taps as in ShortConvJob.
void RunBlock(const ShortConvArgs& a, int64_t s, int64_t first, int64_t count, const float* taps,
              float* ring, const ShortConvTable& table) {
  const int64_t begin = a.offsets.data<int32_t>()[s], end = a.offsets.data<int32_t>()[s + 1];
  const int32_t slot = a.slots.data<int32_t>()[s];
  if (begin == end) return;
  if (slot < 0) {
    for (int64_t t = begin; t < end; ++t) std::fill_n(a.out.row<float>(t) + first, count, 0.0f);
    return;
  }
  ShortConvJob job;
  job.x = a.x.row<float>(begin) + first;
  job.x_stride = a.x.row_stride();
  job.out = a.out.row<float>(begin) + first;
  job.out_stride = a.out.row_stride();
  job.tokens = end - begin;
  job.channels = count;
  job.width = a.weight.size(1);
  job.taps = taps;
  job.bias = a.bias.defined() ? a.bias.data<float>() + first : nullptr;
  job.silu = a.activation == Activation::kSilu;
  char* state = static_cast<char*>(a.state) + slot * a.slot_stride_bytes;
  job.window = reinterpret_cast<float*>(state) + first;
  job.window_stride = a.x.size(1);
  job.fresh = a.fresh.data<uint8_t>()[s] != 0;
  job.ring = ring;
  table.run(job);
}

}  // namespace

void ShortConv(const ShortConvArgs& args, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::ShortConv(args, stream);
  }
  Validate(args);
  const int64_t tokens = args.x.size(0), channels = args.x.size(1), width = args.weight.size(1);
  const int64_t sequences = args.slots.size(0), threads = stream.pool->num_threads();
  if (tokens == 0 || channels == 0) return;
  // Wide blocks read whole lines of memory; narrower ones where there would be too few of them.
  int64_t block = kConvBlock;
  while (block > 64 && channels < block * 2 * threads) block /= 2;
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t work = tokens * block;  // per block; ~2 us for 4096
  const ShortConvTable& table = Table();
  stream.pool->ParallelRanges(
      blocks, std::max<int64_t>(1, 4096 / work), [&](int64_t begin, int64_t end) {
        static thread_local Scratch scratch;
        float* taps = scratch.Of<float>(2 * width * kConvBlock);
        for (int64_t b = begin; b < end; ++b) {
          const int64_t first = b * block, count = std::min(block, channels - first);
          table.transpose(args.weight.data<float>() + first * width, count, width, taps);
          for (int64_t s = 0; s < sequences; ++s) {
            RunBlock(args, s, first, count, taps, taps + width * kConvBlock, table);
          }
        }
      });
}

}  // namespace weir::kernels
