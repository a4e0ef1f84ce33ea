// The families that are served: one explicit list.
#pragma once

#include "absl/strings/string_view.h"
#include "core/status.h"
#include "model/families/family.h"

namespace weir::model {

// UNIMPLEMENTED, naming `model_type` and what is served, when it is unknown.
absl::StatusOr<const Family*> FindFamily(absl::string_view model_type);

}  // namespace weir::model
