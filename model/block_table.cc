#include "model/block_table.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "core/cuda/runtime.h"
#include "kernels/step_inputs.h"

namespace weir::model {
namespace {
// More changes than this in one step are sent in several lists, each waited for.
constexpr int64_t kMaxChanges = int64_t{1} << 18;
}  // namespace

absl::StatusOr<BlockTable> BlockTable::Make(int64_t rows, int64_t columns, int copies,
                                            Stream stream) {
  BlockTable table;
  table.columns_ = columns;
  if (columns == 0) return table;
  table.capacity_ = std::min(rows * columns, kMaxChanges);
  const auto list_bytes = static_cast<size_t>(table.capacity_) * 8;
  const auto table_bytes = static_cast<size_t>(rows * columns) * 4;
  for (int i = 0; i < copies; ++i) {
    ASSIGN_OR_RETURN(Buffer list, cuda::AllocatePinned(list_bytes, "changes of block tables"));
    table.lists_.push_back(std::move(list));
  }
  ASSIGN_OR_RETURN(table.device_, cuda::AllocateDevice(table_bytes, "block tables"));
  ASSIGN_OR_RETURN(table.device_list_, cuda::AllocateDevice(list_bytes, "changes of block tables"));
  cuda::Zero(table.device_.data(), table_bytes, stream);
  table.mirror_.assign(static_cast<size_t>(rows * columns), 0);
  return table;
}

void BlockTable::Begin(int copy) {
  copy_ = copy;
  changes_ = 0;
}

void BlockTable::Set(int64_t row, absl::Span<const int32_t> pages, Stream stream) {
  if (columns_ == 0) return;
  WEIR_CHECK(static_cast<int64_t>(pages.size()) <= columns_) << pages.size() << " pages";
  int32_t* mirror = mirror_.data() + row * columns_;
  // Rows mostly stay as they were, or grow at the end.
  const auto* end = pages.data() + pages.size();
  auto [differ, there] = std::mismatch(pages.data(), end, mirror);
  while (differ != end) {
    if (changes_ == capacity_) {
      Upload(stream);
      cuda::Synchronize(stream);
    }
    int32_t* list = lists_[static_cast<size_t>(copy_)].as<int32_t>();
    list[changes_] = static_cast<int32_t>(there - mirror_.data());
    list[capacity_ + changes_] = *differ;
    ++changes_;
    *there = *differ;
    std::tie(differ, there) = std::mismatch(differ + 1, end, there + 1);
  }
}

void BlockTable::Upload(Stream stream) {
  if (changes_ == 0) return;
  const int32_t* list = lists_[static_cast<size_t>(copy_)].as<int32_t>();
  auto* device = device_list_.as<int32_t>();
  const auto bytes = static_cast<size_t>(changes_) * 4;
  cuda::Copy(device, list, bytes, stream);
  cuda::Copy(device + capacity_, list + capacity_, bytes, stream);
  kernels::ScatterInts(TensorView(device_.as<int32_t>(), {static_cast<int64_t>(mirror_.size())}),
                       TensorView(device, {changes_}), TensorView(device + capacity_, {changes_}),
                       stream);
  changes_ = 0;
}

}  // namespace weir::model
