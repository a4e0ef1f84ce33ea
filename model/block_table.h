// The block tables of the sequences of a batch on a GPU, kept there from step to step: only entries
// that changed travel.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "core/buffer.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::model {

class BlockTable {
 public:
  // `copies`: steps in flight, each with its own list of changes.
  static absl::StatusOr<BlockTable> Make(int64_t rows, int64_t columns, int copies, Stream stream);

  // Starts the list of changes of the step that uses `copy`.
  void Begin(int copy);
  // Row `row` shows `pages` from now on.
  void Set(int64_t row, absl::Span<const int32_t> pages, Stream stream);
  // Enqueues the changes.
  void Upload(Stream stream);

  // [rows, columns] i32 on the device; undefined without columns.
  TensorView view(int64_t rows) const {
    if (columns_ == 0) return {};
    return TensorView(device_.as<int32_t>(), {rows, columns_});
  }

 private:
  int64_t columns_ = 0, capacity_ = 0;
  std::vector<int32_t> mirror_;  // what the device's table holds once everything enqueued is done
  std::vector<Buffer> lists_;    // pinned: capacity indices, then capacity values
  Buffer device_, device_list_;
  int copy_ = 0;
  int64_t changes_ = 0;
};

}  // namespace weir::model
