// Answers that need no backend's help.
#pragma once

#include <variant>

#include "gateway/api_error.h"
#include "gateway/exchange.h"

namespace weir::gateway {

struct Door;

// /health, /ready, /version, /v1/models, the page, and OPTIONS for every path. Any thread.
std::variant<Response, ApiError> AnswerSimple(const Door& door, const Exchange& exchange);
// /metrics. Takes a while: not on a connection's thread.
Response MetricsResponse(const Door& door);

}  // namespace weir::gateway
