// weir.v1.ToolUse: which tools of a chat the model is shown, and what it must do with them.
#pragma once

#include <vector>

#include "server/violations.h"
#include "text/tools.h"

namespace weir::v1 {
class GenerateRequest;
}

namespace weir::server {

struct ServedModel;

struct ToolUse {
  std::vector<text::Tool> tools;  // shown to the model
  bool parallel = true;           // more than one call may come
  // The answer must be calls of these; empty: it need not.
  std::vector<text::Tool> forced;
};

// False: the template is not to see the request's tools.
bool ShowsTools(const v1::GenerateRequest& request);

// Everything that is wrong with tool_use, and tools that the model's template would not show, go to
// `violations`.
ToolUse ToToolUse(const v1::GenerateRequest& request, const ServedModel& model,
                  Violations* violations);

}  // namespace weir::server
