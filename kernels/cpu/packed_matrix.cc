// PackedMatrix: from checkpoint rows to panels.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/thread_pool.h"
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cuda/ops.h"
#include "kernels/matmul.h"

namespace weir::kernels {
namespace {

constexpr int64_t kMinTaskBytes = 256 << 10;

int64_t Depth(DType compute, int64_t in) { return compute == DType::kBF16 ? (in + 1) / 2 : in; }
int64_t Panels(int64_t out) { return (out + kPanel - 1) / kPanel; }

absl::StatusOr<Buffer> AllocatePanels(int64_t out, int64_t in, DType compute) {
  const auto bytes = static_cast<size_t>(Panels(out) * Depth(compute, in) * kPanel * 4);
  return Buffer::Allocate(bytes, "a packed weight");
}

template <typename T>
T LoadAs(const void* row, int64_t i) {  // checkpoint memory has any alignment
  T value;
  std::memcpy(&value, static_cast<const char*>(row) + i * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

float Widen(float x) { return x; }
float Widen(BFloat16 x) { return ToFloat(x); }
// ToFloat without branches and calls: the exponent is moved by a product, exact for denormals too.
float Widen(Float16 x) {
  const uint32_t magnitude = uint32_t{x.bits & 0x7fffu} << 13;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity, NaN
  const uint32_t value = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(value | special | uint32_t{x.bits & 0x8000u} << 16);
}

// `in` elements of T as the compute type. One loop per pair of types, for the compiler to
// vectorise.
template <typename T>
void ConvertRow(const void* row, DType compute, int64_t in, void* out) {
  if (compute == DType::kF32) {
    for (int64_t i = 0; i < in; ++i) static_cast<float*>(out)[i] = Widen(LoadAs<T>(row, i));
  } else {
    auto* rounded = static_cast<BFloat16*>(out);
    for (int64_t i = 0; i < in; ++i) rounded[i] = ToBFloat16(Widen(LoadAs<T>(row, i)));
  }
}

struct SourceRow {
  const void* data = nullptr;
  DType dtype = DType::kF32;
};

// Row `row` of the stack.
SourceRow FindRow(const TensorView* weights, int64_t row) {
  while (row >= weights->size(0)) {
    row -= weights->size(0);
    ++weights;
  }
  const char* base = static_cast<const char*>(weights->raw());
  return {base + row * weights->row_stride() * DTypeSize(weights->dtype()), weights->dtype()};
}

// Row `row` as the compute type: the checkpoint's memory where it is that type already, else
// rounded into `room` ([in], 4-byte aligned).
const void* RowAs(DType compute, const SourceRow& row, int64_t in, void* room) {
  if (row.dtype == compute) return row.data;
  if (row.dtype == DType::kF32) ConvertRow<float>(row.data, compute, in, room);
  if (row.dtype == DType::kBF16) ConvertRow<BFloat16>(row.data, compute, in, room);
  if (row.dtype == DType::kF16) ConvertRow<Float16>(row.data, compute, in, room);
  return room;
}

void PackPanel(const PanelKernel& kernel, DType compute, const void* const (&rows)[kPanel],
               int64_t in, float* panel) {
  if (compute == DType::kF32) {
    kernel.interleave(rows, in, panel);
    return;
  }
  kernel.interleave(rows, in / 2, panel);
  if (in % 2 == 0) return;
  auto* last = reinterpret_cast<BFloat16*>(panel + in / 2 * kPanel);
  for (int lane = 0; lane < kPanel; ++lane) {
    last[2 * lane] = rows[lane] == nullptr ? BFloat16{0} : LoadAs<BFloat16>(rows[lane], in - 1);
    last[2 * lane + 1] = {0};
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(TensorView weight, DType compute, Stream stream) {
  return PackStacked(&weight, 1, compute, stream);
}

absl::StatusOr<PackedMatrix> PackedMatrix::PackStacked(const TensorView* weights, int count,
                                                       DType compute, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::PackStacked(weights, count, compute, stream);
  }
  WEIR_CHECK(count > 0) << "nothing to pack";
  WEIR_CHECK(compute == DType::kF32 || compute == DType::kBF16) << DTypeName(compute);
  PackedMatrix packed;
  packed.in_ = weights[0].size(1);
  packed.compute_ = compute;
  for (int i = 0; i < count; ++i) {
    const TensorView& w = weights[i];
    WEIR_CHECK(w.rank() == 2 && w.size(1) == packed.in_) << w.ToString() << ", in " << packed.in_;
    WEIR_CHECK(w.dtype() == DType::kF32 || w.dtype() == DType::kBF16 || w.dtype() == DType::kF16)
        << w.ToString();
    packed.out_ += w.size(0);
  }
  ASSIGN_OR_RETURN(packed.data_, AllocatePanels(packed.out_, packed.in_, compute));
  const int64_t panel_floats = Depth(compute, packed.in_) * kPanel;
  const PanelKernel& kernel = FindPanelKernel(compute == DType::kBF16);
  const int64_t min_panels = 1 + kMinTaskBytes / (panel_floats * 4);
  stream.pool->ParallelRanges(Panels(packed.out_), min_panels, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    float* room = scratch.Of<float>(kPanel * packed.in_);
    for (int64_t p = begin; p < end; ++p) {
      const void* rows[kPanel] = {};
      const int64_t lanes = std::min<int64_t>(kPanel, packed.out_ - p * kPanel);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        rows[lane] = RowAs(compute, FindRow(weights, p * kPanel + lane), packed.in_,
                           room + lane * packed.in_);
      }
      PackPanel(kernel, compute, rows, packed.in_, packed.data_.as<float>() + p * panel_floats);
    }
  });
  return packed;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Random(int64_t out, int64_t in, DType compute,
                                                  uint64_t seed, float stddev, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) {
      return gpu::RandomMatrix(out, in, compute, seed, stddev, stream);
    }
  }
  WEIR_CHECK(compute == DType::kF32 || compute == DType::kBF16) << DTypeName(compute);
  PackedMatrix packed;
  packed.out_ = out;
  packed.in_ = in;
  packed.compute_ = compute;
  ASSIGN_OR_RETURN(packed.data_, AllocatePanels(out, in, compute));
  const int64_t panel_floats = Depth(compute, in) * kPanel;
  const auto salt = static_cast<uint32_t>(seed * 0x9E3779B97F4A7C15u >> 32);
  // Uniform in [-a, a] has standard deviation a / sqrt(3).
  const float step = stddev * std::sqrt(3.0f) * 0x1p-31f;
  stream.pool->ParallelRanges(Panels(out), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* panel = packed.data_.as<float>() + p * panel_floats;
      auto* pairs = reinterpret_cast<uint16_t*>(panel);
      const int lanes = static_cast<int>(std::min<int64_t>(kPanel, out - p * kPanel));
      for (int64_t i = 0; i < in; ++i) {
        for (int lane = 0; lane < lanes; ++lane) {
          // A 32-bit finaliser (MurmurHash3, Appleby, public domain) of the element's index.
          uint32_t h = static_cast<uint32_t>((p * kPanel + lane) * in + i) + salt;
          h = (h ^ h >> 16) * 0x85ebca6bu;
          h = (h ^ h >> 13) * 0xc2b2ae35u;
          h ^= h >> 16;
          const float value = static_cast<float>(static_cast<int32_t>(h)) * step;
          if (compute == DType::kBF16) {
            pairs[(i / 2 * kPanel + lane) * 2 + i % 2] = ToBFloat16(value).bits;
          } else {
            panel[i * kPanel + lane] = value;
          }
        }
      }
    }
  });
  return packed;
}

PackedMatrix PackedMatrix::OnDevice(Buffer data, int64_t out, int64_t in, DType compute) {
  PackedMatrix packed;
  packed.out_ = out;
  packed.in_ = in;
  packed.compute_ = compute;
  packed.device_ = Device::kCuda;
  packed.data_ = std::move(data);
  return packed;
}

TensorView PackedMatrix::table() const {
  if (device_ == Device::kCpu) return {};
  return TensorView(data_.data(), compute_, {out_, in_});
}

void PackedMatrix::UnpackRow(int64_t row, float* out) const {
  WEIR_CHECK(row >= 0 && row < out_) << "row " << row << " of " << out_;
  const float* panel = data_.as<float>() + row / kPanel * Depth(compute_, in_) * kPanel;
  const int64_t lane = row % kPanel;
  if (compute_ == DType::kF32) {
    for (int64_t i = 0; i < in_; ++i) out[i] = panel[i * kPanel + lane];
    return;
  }
  const auto* pairs = reinterpret_cast<const BFloat16*>(panel);
  for (int64_t i = 0; i < in_; ++i) out[i] = ToFloat(pairs[(i / 2 * kPanel + lane) * 2 + i % 2]);
}

}  // namespace weir::kernels
