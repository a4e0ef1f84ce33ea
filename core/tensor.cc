#include "core/tensor.h"

#include "absl/strings/str_cat.h"

namespace weir {

TensorView::TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape)
    : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
  WEIR_CHECK(rank_ >= 1 && rank_ <= kMaxRank) << "rank " << rank_;
  int i = 0;
  for (int64_t size : shape) shape_[i++] = size;
  row_stride_ = 1;
  for (i = 1; i < rank_; ++i) row_stride_ *= shape_[i];
}

int64_t TensorView::num_elements() const {
  if (rank_ == 0) return 0;
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= shape_[i];
  return n;
}

bool TensorView::contiguous() const {
  int64_t inner = 1;
  for (int i = 1; i < rank_; ++i) inner *= shape_[i];
  return rank_ == 0 || shape_[0] <= 1 || row_stride_ == inner;
}

TensorView TensorView::Rows(int64_t begin, int64_t count) const {
  WEIR_CHECK(begin >= 0 && count >= 0 && begin + count <= shape_[0])
      << "rows [" << begin << ", +" << count << ") of " << ToString();
  TensorView view = *this;
  view.data_ = static_cast<char*>(data_) + begin * row_stride_ * DTypeSize(dtype_);
  view.shape_[0] = count;
  return view;
}

TensorView TensorView::Columns(int64_t begin, int64_t count) const {
  WEIR_CHECK(rank_ == 2 && begin >= 0 && count >= 0 && begin + count <= shape_[1])
      << "columns [" << begin << ", +" << count << ") of " << ToString();
  TensorView view = *this;
  view.data_ = static_cast<char*>(data_) + begin * DTypeSize(dtype_);
  view.shape_[1] = count;
  return view;
}

TensorView TensorView::Reshape(std::initializer_list<int64_t> shape) const {
  TensorView view(data_, dtype_, shape);
  WEIR_CHECK(view.num_elements() == num_elements())
      << ToString() << " does not reshape to " << view.ToString();
  if (!contiguous()) {
    WEIR_CHECK(rank_ == 2 && view.shape_[0] == shape_[0])
        << ToString() << " is strided and cannot become " << view.ToString();
    view.row_stride_ = row_stride_;
  }
  return view;
}

std::string TensorView::ToString() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) absl::StrAppend(&text, i ? ", " : "", shape_[i]);
  absl::StrAppend(&text, "] ", std::string(DTypeName(dtype_)));
  return text;
}

}  // namespace weir
