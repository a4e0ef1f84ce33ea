// The settings of the HTTP door, as every command that has one takes them.
#pragma once

#include <vector>

#include "core/status.h"
#include "gateway/options.h"
#include "server/options.h"

namespace weir::server {

// Adds the door's settings, bound to `options`, to `table`.
void AddHttpOptions(gateway::Options* options, std::vector<OptionSpec>* table);

// What no single one of them can tell.
absl::Status CheckHttpOptions(const gateway::Options& options);

}  // namespace weir::server
