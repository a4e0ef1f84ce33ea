// A model folder read and checked, before its weights are loaded. Internal to model/.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/status.h"
#include "model/description.h"
#include "model/families/family.h"
#include "model/model.h"
#include "model/plan.h"
#include "model/safetensors.h"

namespace weir::model {

struct ModelFolder {
  ModelDescription description;
  const Family* family = nullptr;
  std::optional<Checkpoint> checkpoint;  // nullopt: random weights
  MemoryPlan plan;
  LoadOptions options;  // as given, with what was left open chosen
  ModelInfo info;
};

// Errors as DescribeModel.
absl::StatusOr<ModelFolder> OpenModelFolder(const std::string& path, const LoadOptions& options);

// Slots and pages for `budget_bytes`, or as the options fix them. RESOURCE_EXHAUSTED with the
// numbers when not even one sequence fits.
absl::StatusOr<cache::CacheSize> ChooseCacheSize(const cache::StateLayout& layout,
                                                 const LoadOptions& options, int max_position,
                                                 int64_t budget_bytes);

}  // namespace weir::model
