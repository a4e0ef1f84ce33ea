#include "server/capacity.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace weir::server {
namespace {

std::vector<int64_t> Lengths(int64_t max_position) {
  std::vector<int64_t> lengths;
  for (int64_t length = 512; length < max_position; length *= 4) lengths.push_back(length);
  lengths.push_back(max_position);
  return lengths;
}

}  // namespace

std::vector<CapacityRow> CapacityOf(const cache::StateLayout& layout, const cache::CacheSize& size,
                                    int64_t max_position) {
  std::vector<CapacityRow> rows;
  for (int64_t tokens : Lengths(max_position)) {
    const int32_t pages = layout.PagesFor(tokens);
    int64_t sequences = size.slots;
    if (pages > 0) sequences = std::min<int64_t>(sequences, size.pages / pages);
    rows.push_back({tokens, sequences});
  }
  return rows;
}

std::vector<CapacityRow> CapacityOf(const cache::StateLayout& layout, int64_t budget_bytes,
                                    int64_t max_position) {
  std::vector<CapacityRow> rows;
  for (int64_t tokens : Lengths(max_position)) {
    const int64_t bytes = std::max<int64_t>(1, layout.BytesFor(tokens));
    rows.push_back({tokens, budget_bytes / bytes});
  }
  return rows;
}

std::string FormatCapacity(const std::vector<CapacityRow>& rows) {
  std::string text;
  for (const CapacityRow& row : rows) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", row.sequences, " x ", row.tokens);
  }
  return text + " tokens";
}

}  // namespace weir::server
