// CHECK: for broken invariants of our own, never for anything a client, a file or load can cause.
#pragma once

#include <sstream>
#include <string>

namespace weir::internal {

// Prints `file:line: Check failed: expr message` to stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expr, const std::string& message);

class CheckMessage {
 public:
  CheckMessage(const char* file, int line, const char* expr)
      : file_(file), line_(line), expr_(expr) {}
  [[noreturn]] ~CheckMessage() { CheckFailed(file_, line_, expr_, stream_.str()); }
  std::ostream& stream() { return stream_; }

 private:
  const char* file_;
  int line_;
  const char* expr_;
  std::ostringstream stream_;
};

}  // namespace weir::internal

#define WEIR_CHECK(cond) \
  if (cond) [[likely]]   \
    ;                    \
  else                   \
    ::weir::internal::CheckMessage(__FILE__, __LINE__, #cond).stream() << " "
