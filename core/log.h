// Log lines to stderr: `time level message`. Compose messages with absl::StrCat / StrFormat.
#pragma once

#include <string_view>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace weir {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Lines below the level are dropped; default kInfo. Any thread.
void SetLogLevel(LogLevel level);
// "debug", "info", "warning", "error".
absl::Status SetLogLevel(std::string_view name);
bool LogEnabled(LogLevel level);
void Log(LogLevel level, std::string_view message);

template <typename... Args>
void LogInfo(const Args&... args) {
  if (LogEnabled(LogLevel::kInfo)) Log(LogLevel::kInfo, absl::StrCat(args...));
}
template <typename... Args>
void LogDebug(const Args&... args) {
  if (LogEnabled(LogLevel::kDebug)) Log(LogLevel::kDebug, absl::StrCat(args...));
}
template <typename... Args>
void LogWarning(const Args&... args) {
  if (LogEnabled(LogLevel::kWarning)) Log(LogLevel::kWarning, absl::StrCat(args...));
}
template <typename... Args>
void LogError(const Args&... args) {
  if (LogEnabled(LogLevel::kError)) Log(LogLevel::kError, absl::StrCat(args...));
}

}  // namespace weir
