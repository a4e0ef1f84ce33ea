// How many sequences fit: the promise that the server prints before it starts and keeps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/layout.h"

namespace weir::server {

struct CapacityRow {
  int64_t tokens = 0;     // length of each sequence, prompt and answer together
  int64_t sequences = 0;  // that fit at once at that length
};

// Lengths 512, 2k, 8k, ... up to and including `max_position`.
// For a cache of fixed size: min(slots, pages / pages per sequence).
std::vector<CapacityRow> CapacityOf(const cache::StateLayout& layout, const cache::CacheSize& size,
                                    int64_t max_position);
// For a budget that slots and pages may divide as they like: budget / bytes per sequence.
std::vector<CapacityRow> CapacityOf(const cache::StateLayout& layout, int64_t budget_bytes,
                                    int64_t max_position);

// "64 x 512, 60 x 2048, 15 x 8192 tokens"
std::string FormatCapacity(const std::vector<CapacityRow>& rows);

}  // namespace weir::server
