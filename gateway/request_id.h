// Names of requests.
#pragma once

#include <string>
#include <string_view>

namespace weir::gateway {

// 24 random hexadecimal digits. Any thread.
std::string NewRequestId();
// Whether a client's x-request-id can be passed on: 1 to 128 letters, digits and "-_.:".
bool IsRequestId(std::string_view id);
// Whether a traceparent or tracestate can be passed on: printable ASCII, at most 512 bytes.
bool IsTraceField(std::string_view value);

}  // namespace weir::gateway
