// The memory of a model, laid out before any weight is read: where each mixer's state lies in a
// slot and in a page, and how much scratch a step takes.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/layout.h"
#include "core/dtype.h"
#include "core/status.h"
#include "model/batch.h"
#include "model/description.h"

namespace weir::model {

struct MixerOffsets {
  int64_t slot = 0;  // bytes
  int64_t page = 0;  // bytes
};

struct LayerPlan {
  std::vector<MixerOffsets> mixers;
  // Routed layers: i32 per mixer, the tokens that picked it so far; bytes from the slot's begin.
  int64_t counters = 0;
  int64_t scratch_floats = 0;  // per token, the larger of mixing and feed-forward
};

struct MemoryPlan {
  StateTypes types;
  cache::StateLayout layout;
  std::vector<LayerPlan> layers;
  int64_t scratch_floats_per_token = 0;  // of the largest layer
};

// RESOURCE_EXHAUSTED when one sequence's state or one token's activations are beyond any machine.
absl::StatusOr<MemoryPlan> PlanMemory(const ModelDescription& model, const StateTypes& types,
                                      int page_tokens);

}  // namespace weir::model
