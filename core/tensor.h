// TensorView: a typed, shaped pointer to memory that somebody else owns.
//
// Views are values: cheap to copy, no lifetime of their own. Row-major; `stride(0)` may exceed the
// product of the inner sizes (a column range of a wider matrix), inner dimensions are contiguous.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/check.h"
#include "core/dtype.h"

namespace weir {

class TensorView {
 public:
  static constexpr int kMaxRank = 5;

  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape);
  template <typename T>
  TensorView(T* data, std::initializer_list<int64_t> shape)
      : TensorView(data, DTypeOf<T>::value, shape) {}

  bool defined() const { return data_ != nullptr; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t size(int dim) const { return shape_[dim]; }
  // Elements between consecutive entries of dimension 0.
  int64_t row_stride() const { return row_stride_; }
  bool contiguous() const;
  int64_t num_elements() const;
  int64_t bytes() const { return num_elements() * DTypeSize(dtype_); }

  void* raw() const { return data_; }
  template <typename T>
  T* data() const {
    WEIR_CHECK(DTypeOf<T>::value == dtype_) << "tensor is " << DTypeName(dtype_);
    return static_cast<T*>(data_);
  }
  template <typename T>
  T* row(int64_t i) const {
    return data<T>() + i * row_stride_;
  }

  // Rows [begin, begin + count) of dimension 0.
  TensorView Rows(int64_t begin, int64_t count) const;
  // Columns [begin, begin + count) of a rank-2 view; keeps the row stride.
  TensorView Columns(int64_t begin, int64_t count) const;
  // Same elements under another shape. REQUIRES: contiguous, or rank 2 with the new shape splitting
  // dimension 1 only: [T, H*D] -> [T, H, D].
  TensorView Reshape(std::initializer_list<int64_t> shape) const;

  // Same shape and strides, in elements, over other memory.
  TensorView At(void* data, DType dtype) const {
    TensorView view = *this;
    view.data_ = data;
    view.dtype_ = dtype;
    return view;
  }

  // "[3, 64] bf16"
  std::string ToString() const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, kMaxRank> shape_{};
  int64_t row_stride_ = 0;
};

}  // namespace weir
