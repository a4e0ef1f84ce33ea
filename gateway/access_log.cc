#include "gateway/access_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gateway/openai/json_text.h"

namespace weir::gateway {
namespace {

constexpr size_t kMaxQueuedBytes = 4 << 20;
constexpr size_t kMaxField = 512;  // of what a client chose

absl::StatusOr<int> OpenFile(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
  if (fd >= 0) return fd;
  return absl::UnavailableError(
      absl::StrCat("cannot write the access log ", path, ": ", std::strerror(errno)));
}

void WriteWhole(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t put = write(fd, text.data() + done, text.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return;  // a full disk must not stop the service
    done += static_cast<size_t>(put);
  }
}

void Field(std::string_view name, std::string_view value, std::string* out) {
  absl::StrAppend(out, ",\"", absl::string_view(name.data(), name.size()), "\":");
  if (value.empty()) {
    out->append("null");
  } else {
    AppendJsonString(value.substr(0, kMaxField), out);
  }
}

void Number(const char* name, int64_t value, std::string* out) {
  if (value < 0) {
    absl::StrAppend(out, ",\"", name, "\":null");
  } else {
    absl::StrAppend(out, ",\"", name, "\":", value);
  }
}

std::string Format(const AccessLine& line) {
  std::string out = absl::StrCat(
      "{\"time\":\"", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
      "\"");
  Field("id", line.id, &out);
  Field("method", line.method, &out);
  Field("path", line.path, &out);
  Number("status", line.status, &out);
  Number("received_bytes", line.received_bytes, &out);
  Number("bytes", line.sent_bytes, &out);
  absl::StrAppendFormat(&out, ",\"ms\":%.1f", line.ms);
  if (line.first_token_ms < 0) {
    out += ",\"ttft_ms\":null";
  } else {
    absl::StrAppendFormat(&out, ",\"ttft_ms\":%.1f", line.first_token_ms);
  }
  Number("prompt_tokens", line.prompt_tokens, &out);
  Number("completion_tokens", line.completion_tokens, &out);
  Field("key", line.key, &out);
  Field("client", line.client, &out);
  out += "}\n";
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessLog>> AccessLog::Open(const std::string& target,
                                                           std::function<void()> dropped) {
  std::unique_ptr<AccessLog> log(new AccessLog());
  log->target_ = target;
  log->dropped_ = std::move(dropped);
  if (target.empty() || target == "off") return log;
  if (target == "-") {
    log->fd_ = STDOUT_FILENO;
  } else {
    ASSIGN_OR_RETURN(log->fd_, OpenFile(target));
  }
  log->writer_ = std::thread([self = log.get()] { self->Run(); });
  return log;
}

AccessLog::~AccessLog() {
  if (writer_.joinable()) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_one();
    writer_.join();
  }
  if (fd_ > STDERR_FILENO) close(fd_);
}

void AccessLog::Write(const AccessLine& line) {
  if (!writer_.joinable()) return;
  const std::string text = Format(line);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (queued_.size() + text.size() > kMaxQueuedBytes) return dropped_();
    queued_ += text;
  }
  changed_.notify_one();
}

absl::Status AccessLog::Reopen() {
  if (fd_ <= STDERR_FILENO) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int fd, OpenFile(target_));
  std::lock_guard<std::mutex> lock(mutex_);
  // The writer may be using the old number: it stays valid and now names the new file.
  dup3(fd, fd_, O_CLOEXEC);
  close(fd);
  return absl::OkStatus();
}

void AccessLog::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queued_.empty(); });
    if (queued_.empty()) return;
    const std::string text = std::exchange(queued_, {});
    lock.unlock();
    WriteWhole(fd_, text);
    lock.lock();
  }
}

}  // namespace weir::gateway
