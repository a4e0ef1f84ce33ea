// MatMul: choice of the instruction set, packing of the input, split over threads.
#include "kernels/matmul.h"

#include <algorithm>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/cpu/matmul_panels.h"
#include "kernels/cpu/parallel_pieces.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cuda/ops.h"
#include "kernels/pointwise.h"

namespace weir::kernels {
namespace {

// A task is worth handing to another thread from about this much: a few microseconds.
constexpr int64_t kTaskWeightBytes = 96 << 10;
constexpr int64_t kTaskMacs = 512 << 10;
// Rows of a task of many rows: their packed input stays in the second-level cache beside the
// weights that pass by, and is used for every panel of the task.
constexpr int64_t kBlockRows = 128;

const char* PackInput(const PanelKernel& kernel, const TensorView& x, int64_t tiles, int64_t depth,
                      Stream stream) {
  static thread_local Scratch scratch;
  const int64_t rows = x.size(0), in = x.size(1);
  char* packed = static_cast<char*>(scratch.Get(rows * depth * kernel.element_bytes));
  const int64_t min_tiles = std::max<int64_t>(1, tiles * kTaskMacs / (rows * in * 16 + 1));
  stream.pool->ParallelRanges(tiles, min_tiles, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const TileRows r = RowsOfTile(rows, tiles, t);
      kernel.pack_tile(x.row<float>(r.first), x.row_stride(), r.last - r.first, in,
                       packed + r.first * depth * kernel.element_bytes);
    }
  });
  return packed;
}

// Many rows: a grid of blocks of tiles x ranges of panels.
void RunGrid(const PanelProduct& product, const PanelKernel& kernel, int64_t row_blocks,
             int64_t unit, Stream stream) {
  const int64_t panels = (product.out + kPanel - 1) / kPanel;
  const int threads = stream.pool->num_threads();
  // Enough tasks per thread that a slow thread does not hold the others up, none too small.
  const int64_t wanted = threads == 1 ? row_blocks : std::max<int64_t>(row_blocks, 8 * threads);
  const int64_t ranges =
      std::clamp<int64_t>(wanted / row_blocks, 1, std::max<int64_t>(1, panels / unit));
  stream.pool->ParallelFor(row_blocks * ranges, [&](int64_t task) {
    const int64_t block = task / ranges, range = task % ranges;
    PanelProduct part = product;
    part.first_tile = product.tiles * block / row_blocks;
    part.last_tile = product.tiles * (block + 1) / row_blocks;
    part.first_panel = panels * range / ranges;
    part.last_panel = panels * (range + 1) / ranges;
    kernel.product(part);
  });
}

// Elements are independent, so how the work is cut changes no result; it only balances the work.
void RunTasks(const PanelProduct& product, const PanelKernel& kernel, Stream stream) {
  const int64_t tallest = (product.rows + product.tiles - 1) / product.tiles;
  const int64_t group = kernel.group(static_cast<int>(tallest));
  const int64_t panels = (product.out + kPanel - 1) / kPanel;
  const int64_t row_blocks = std::max<int64_t>(1, product.rows / kBlockRows);
  const int64_t panel_bytes = product.depth * kPanel * 4;
  const int64_t panel_macs = product.depth * kPanel * 2 * (product.rows / row_blocks);
  const int64_t unit =
      std::min(kTaskWeightBytes / panel_bytes, kTaskMacs / panel_macs) / group * group + group;
  if (row_blocks > 1) return RunGrid(product, kernel, row_blocks, unit, stream);
  ParallelPieces(*stream.pool, panels, unit, [&](int64_t first, int64_t last) {
    PanelProduct part = product;
    part.last_tile = product.tiles;
    part.first_panel = first;
    part.last_panel = last;
    kernel.product(part);
  });
}

}  // namespace

const PanelKernel& FindPanelKernel(bool bf16) {
#if defined(__x86_64__)
  switch (CurrentSimdLevel()) {
    case SimdLevel::kAvx512Bf16:
      return bf16 ? kPanelsBf16Avx512Bf16 : kPanelsF32Avx512;
    case SimdLevel::kAvx512:
      return bf16 ? kPanelsBf16Avx512 : kPanelsF32Avx512;
    case SimdLevel::kAvx2:
      return bf16 ? kPanelsBf16Avx2 : kPanelsF32Avx2;
    case SimdLevel::kBaseline:
      break;
  }
#endif
  return bf16 ? kPanelsBf16Plain : kPanelsF32Plain;
}

void MatMul(const MatMulInput& input, const PackedMatrix& weight, TensorView bias,
            const MatMulOutput& output, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::MatMul(input, weight, bias, output, stream);
  }
  WEIR_CHECK(!input.squares.defined() && !output.h.defined()) << "MatMulJoins does not hold";
  const TensorView x = input.x, y = output.y;
  const int64_t rows = x.size(0);
  WEIR_CHECK(weight.defined() && x.rank() == 2 && x.size(1) == weight.in()) << x.ToString();
  WEIR_CHECK(y.rank() == 2 && y.size(0) == rows && y.size(1) == weight.out()) << y.ToString();
  WEIR_CHECK(!bias.defined() || bias.num_elements() == weight.out()) << bias.ToString();
  if (rows == 0) return;
  const bool bf16 = weight.compute() == DType::kBF16;
  const PanelKernel& kernel = FindPanelKernel(bf16);
  PanelProduct product;
  product.depth = bf16 ? (weight.in() + 1) / 2 : weight.in();
  product.rows = rows;
  product.tiles =
      CountTiles(rows, rows <= kernel.tallest_single ? kernel.tallest_single : kernel.tallest_tile);
  product.w = static_cast<const char*>(weight.raw());
  product.out = weight.out();
  product.bias = bias.defined() ? bias.data<float>() : nullptr;
  product.y = y.data<float>();
  product.y_stride = y.row_stride();
  if (kernel.element == TileElement::kF32 && rows == 1) {
    product.x = reinterpret_cast<const char*>(x.data<float>());  // a tile of one row is the row
  } else {
    product.x = PackInput(kernel, x, product.tiles, product.depth, stream);
  }
  RunTasks(product, kernel, stream);
}

void MatMulGated(const MatMulInput& x, const PackedMatrix& weight, TensorView bias,
                 Activation activation, TensorView both, TensorView y, Stream stream) {
  const int64_t n = y.size(1);
  WEIR_CHECK(weight.out() == 2 * n && both.size(1) == 2 * n)
      << y.ToString() << ", " << both.ToString();
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) {
      return gpu::MatMulGated(x, weight, bias, activation, both, y, stream);
    }
  }
  MatMul(x, weight, bias, both, stream);
  GateMultiply(both.Columns(0, n), both.Columns(n, n), activation, y, stream);
}

bool MatMulJoins(const PackedMatrix& weight, DType activations, int64_t rows, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::MatMulJoins(weight, activations, rows);
  }
  return false;
}

void TuneMatMul(const PackedMatrix& weight, absl::Span<const int64_t> rows, Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) gpu::TuneMatMul(weight, rows, stream);
  }
}

void FinishPacking(Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) gpu::FinishPacking();
  }
}

absl::Status MatMulLibrary(Stream stream) {
  if constexpr (cuda::kBuilt) {
    if (stream.device == Device::kCuda) return gpu::MatMulLibrary();
  }
  return absl::OkStatus();
}

}  // namespace weir::kernels
