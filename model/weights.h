// From checkpoint tensors to the weights that the forward pass reads: checked, stacked, folded,
// packed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/buffer.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/matmul.h"
#include "model/description.h"
#include "model/families/family.h"
#include "model/safetensors.h"

namespace weir::model {

// Small f32 parameters, owned.
class FloatVector {
 public:
  FloatVector() = default;
  // In the memory of the stream's device.
  static absl::StatusOr<FloatVector> From(const std::vector<float>& values, Stream stream);

  bool defined() const { return size_ > 0; }
  // [size]; undefined when empty.
  TensorView view() const {
    return defined() ? TensorView(buffer_.as<float>(), {size_}) : TensorView();
  }
  // [rows, size / rows].
  TensorView matrix(int64_t rows) const {
    return TensorView(buffer_.as<float>(), {rows, size_ / rows});
  }

 private:
  Buffer buffer_;
  int64_t size_ = 0;
};

// Rows of one of our tensors in a stack; an empty name stands for `count` rows of zeros.
struct RowBlock {
  RowBlock(std::string tensor) : name(std::move(tensor)) {}  // NOLINT: a name is a whole block
  RowBlock(const char* tensor) : name(tensor) {}             // NOLINT
  RowBlock(std::string tensor, int64_t first, int64_t rows)
      : name(std::move(tensor)), begin(first), count(rows) {}
  std::string name;
  int64_t begin = 0;
  int64_t count = -1;  // -1: all
};

// Hands out the weights of one model by our names. One thread.
class WeightReader {
 public:
  struct Options {
    DType compute = DType::kF32;
    Stream stream;
    std::function<void(int64_t bytes_done, int64_t bytes_total, int tensors_done)> progress;
  };

  // Checks the whole checkpoint against what the model needs: INVALID_ARGUMENT names every missing,
  // extra and misshapen tensor at once. `skipped` receives what the family leaves out on purpose.
  // `checkpoint` null: deterministic pseudo-random values. It must outlive the reader.
  static absl::StatusOr<WeightReader> Create(const ModelDescription& model, const Family& family,
                                             const Checkpoint* checkpoint, Options options,
                                             std::vector<std::string>* skipped);

  // Memory of everything handed out so far.
  int64_t bytes_kept() const { return bytes_kept_; }
  DType compute() const { return options_.compute; }
  Stream stream() const { return options_.stream; }

  // Rows stacked in the order given, under `prefix`; one product then serves them all. Kept as
  // `compute` says.
  absl::StatusOr<kernels::PackedMatrix> Matrix(const std::string& prefix,
                                               const std::vector<RowBlock>& blocks, DType compute);
  absl::StatusOr<kernels::PackedMatrix> Matrix(const std::string& prefix,
                                               const std::vector<RowBlock>& blocks) {
    return Matrix(prefix, blocks, options_.compute);
  }
  // All elements as f32.
  absl::StatusOr<std::vector<float>> Values(const std::string& name);
  absl::StatusOr<FloatVector> Vector(const std::string& name);
  // A table for look-ups, bf16 where checkpoint and compute both are 16 bits wide, else f32.
  struct Table {
    Buffer buffer;                 // CPU
    kernels::PackedMatrix matrix;  // GPU
    TensorView view;               // [rows, width]
  };
  absl::StatusOr<Table> EmbeddingTable(const std::string& name);

 private:
  struct Entry {
    TensorNeed need;
    Placement place;
    const StoredTensor* stored = nullptr;  // null: random
  };
  const Entry& Find(const std::string& name) const;
  // The rows [begin, begin + count) of an entry as contiguous pieces of checkpoint memory.
  void AppendPieces(const Entry& entry, int64_t begin, int64_t count,
                    std::vector<TensorView>* pieces) const;
  std::vector<float> RandomValues(const TensorNeed& need) const;
  void Report(const Entry& entry, int64_t rows);

  Options options_;
  std::map<std::string, Entry> entries_;
  int64_t bytes_total_ = 0, bytes_done_ = 0;
  int64_t bytes_kept_ = 0;
  int tensors_done_ = 0;
};

}  // namespace weir::model
