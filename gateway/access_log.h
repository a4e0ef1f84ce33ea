// The access log: one JSON line for each request, without anything of the prompt or the answer.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "core/status.h"

namespace weir::gateway {

struct AccessLine {
  std::string_view id, method, path, key, client;
  int status = 0;
  int64_t received_bytes = 0, sent_bytes = 0;
  double ms = 0;
  double first_token_ms = -1;                          // < 0: no token
  int64_t prompt_tokens = -1, completion_tokens = -1;  // < 0: not known
};

// Writes from a thread of its own, so that a slow disk slows no request; lines that find the queue
// full are dropped and counted. Thread-safe.
class AccessLog {
 public:
  // `target`: "off", "-" (stdout) or a file, appended to. `dropped` is called for each lost line.
  // UNAVAILABLE: the file cannot be opened.
  static absl::StatusOr<std::unique_ptr<AccessLog>> Open(const std::string& target,
                                                         std::function<void()> dropped);
  ~AccessLog();  // what is queued is written

  void Write(const AccessLine& line);
  // Opens the file again under its name: it was rotated away. On an error the old one stays in use.
  absl::Status Reopen();

 private:
  AccessLog() = default;
  void Run();

  std::string target_;
  std::function<void()> dropped_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string queued_;  // whole lines
  int fd_ = -1;         // -1: off
  bool stop_ = false;
  std::thread writer_;
};

}  // namespace weir::gateway
