#include "kernels/short_conv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"

namespace weir::kernels {
namespace {

void RunSequence(const ShortConvArgs& a, int64_t s) {
  const int64_t channels = a.weight.size(0), width = a.weight.size(1);
  const int64_t begin = a.offsets.data<int32_t>()[s], end = a.offsets.data<int32_t>()[s + 1];
  const int32_t slot = a.slots.data<int32_t>()[s];
  if (slot < 0) {
    for (int64_t t = begin; t < end; ++t) std::fill_n(a.out.row<float>(t), channels, 0.0f);
    return;
  }
  if (begin == end) return;
  float* window =
      reinterpret_cast<float*>(static_cast<char*>(a.state) + slot * a.slot_stride_bytes);
  if (a.fresh.data<uint8_t>()[s]) std::fill_n(window, (width - 1) * channels, 0.0f);
  const float* w = a.weight.data<float>();
  std::vector<float> taps(width);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j + 1 < width; ++j) taps[j] = window[j * channels + c];
    for (int64_t t = begin; t < end; ++t) {
      taps[width - 1] = a.x.row<float>(t)[c];
      float y = a.bias.defined() ? a.bias.data<float>()[c] : 0.0f;
      for (int64_t j = 0; j < width; ++j) y += w[c * width + j] * taps[j];
      if (a.activation == Activation::kSilu) y = y / (1.0f + std::exp(-y));
      a.out.row<float>(t)[c] = y;
      for (int64_t j = 0; j + 1 < width; ++j) taps[j] = taps[j + 1];
    }
    for (int64_t j = 0; j + 1 < width; ++j) window[j * channels + c] = taps[j];
  }
}

}  // namespace

void ShortConv(const ShortConvArgs& args, Stream stream) {
  WEIR_CHECK(args.x.rank() == 2 && args.out.rank() == 2 && args.weight.rank() == 2)
      << args.x.ToString() << " " << args.weight.ToString() << " " << args.out.ToString();
  const int64_t tokens = args.x.size(0), channels = args.x.size(1);
  WEIR_CHECK(args.weight.size(0) == channels && args.weight.size(1) >= 1 &&
             args.weight.contiguous())
      << "weight " << args.weight.ToString() << " for " << args.x.ToString();
  WEIR_CHECK(args.out.size(0) == tokens && args.out.size(1) == channels) << args.out.ToString();
  WEIR_CHECK(!args.bias.defined() || args.bias.size(0) == channels) << args.bias.ToString();
  WEIR_CHECK(args.activation == Activation::kNone || args.activation == Activation::kSilu)
      << "short conv knows no activation but silu";
  const int64_t sequences = args.slots.size(0);
  WEIR_CHECK(args.offsets.size(0) == sequences + 1 && args.fresh.size(0) == sequences)
      << "offsets " << args.offsets.ToString() << ", fresh " << args.fresh.ToString();
  stream.pool->ParallelFor(sequences, [&](int64_t s) { RunSequence(args, s); });
}

}  // namespace weir::kernels
