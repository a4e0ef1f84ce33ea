#include "scheduler/mailbox.h"

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/error_details.h"

namespace weir::scheduler {
namespace {

// Another replica, or this one restarted, is the answer to a server that drains.
constexpr int64_t kDrainingRetryMs = 1000;

}  // namespace

absl::Status Mailbox::Submit(Request request, int64_t now_us, Refusal* refusal) {
  const int64_t tokens = static_cast<int64_t>(request.prompt.size());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (mail_.draining || mail_.stop) {
      *refusal = Refusal::kDraining;
      return Unavailable("the server is shutting down and takes no new requests; try another one",
                         kDrainingRetryMs);
    }
    if (alive_.contains(request.id)) {
      *refusal = Refusal::kInvalid;
      return absl::AlreadyExistsError(absl::StrCat("request id ", request.id, " is in use"));
    }
    if (queued_requests_ >= options_.max_queued_requests) {
      *refusal = Refusal::kQueueRequests;
      return Exhausted("queue",
                       absl::StrCat("the queue is full: ", queued_requests_,
                                    " requests wait, which is its limit; try again later"),
                       retry_hint_.AfterMs(queued_requests_, now_us));
    }
    if (queued_tokens_ + tokens > options_.max_queued_tokens) {
      *refusal = Refusal::kQueueTokens;
      return Exhausted("queue",
                       absl::StrCat("the queue is full: ", queued_tokens_, " prompt tokens wait, ",
                                    tokens, " more would pass its limit of ",
                                    options_.max_queued_tokens, "; try again later"),
                       retry_hint_.AfterMs(queued_requests_, now_us));
    }
    ++queued_requests_;
    queued_tokens_ += tokens;
    if (alive_.empty()) busy_since_us_ = now_us;
    alive_.emplace(request.id, request.num_choices);
    mail_.arrivals.push_back({std::move(request), now_us});
    changed_ = true;
  }
  wake_.notify_one();
  return absl::OkStatus();
}

void Mailbox::Cancel(RequestId id, FinishReason reason) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!alive_.contains(id)) return;
    cancels_.emplace(id, reason);  // the first reason stands
    changed_ = true;
  }
  wake_.notify_one();
}

void Mailbox::StopChoice(RequestId id, int32_t choice) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = alive_.find(id);
    if (found == alive_.end() || choice < 0 || choice >= found->second) return;
    stops_.emplace(id, choice);
    changed_ = true;
  }
  wake_.notify_one();
}

void Mailbox::Drain(int64_t deadline_us) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    mail_.draining = true;
    mail_.drain_deadline_us = deadline_us;
    changed_ = true;
  }
  wake_.notify_one();
}

void Mailbox::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    mail_.stop = true;
    changed_ = true;
  }
  wake_.notify_one();
}

void Mailbox::WaitIdle() {
  std::unique_lock<std::mutex> lock(mutex_);
  idle_.wait(lock, [this] { return alive_.empty(); });
}

SchedulerStats Mailbox::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  SchedulerStats stats = stats_;
  stats.queued_requests = queued_requests_;
  stats.busy_since_us = alive_.empty() ? 0 : busy_since_us_;
  return stats;
}

void Mailbox::Take(Mail* mail) {
  std::lock_guard<std::mutex> lock(mutex_);
  mail->arrivals.clear();
  std::swap(mail->arrivals, mail_.arrivals);
  mail->cancels.assign(cancels_.begin(), cancels_.end());
  mail->stops.assign(stops_.begin(), stops_.end());
  mail->draining = mail_.draining;
  mail->drain_deadline_us = mail_.drain_deadline_us;
  mail->stop = mail_.stop;
  cancels_.clear();
  stops_.clear();
  changed_ = false;
}

void Mailbox::Publish(const EngineNews& news) {
  bool idle = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_ = news.stats;
    for (const int64_t tokens : news.left_queue) {
      --queued_requests_;
      queued_tokens_ -= tokens;
      retry_hint_.LeftQueue(news.now_us);
    }
    WEIR_CHECK(queued_requests_ >= 0 && queued_tokens_ >= 0)
        << queued_requests_ << " requests, " << queued_tokens_ << " tokens";
    for (const RequestId id : news.gone) {
      WEIR_CHECK(alive_.erase(id) == 1) << "request " << id << " was not alive";
    }
    idle = alive_.empty();
  }
  if (idle) idle_.notify_all();
}

int64_t Mailbox::queued_tokens() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return queued_tokens_;
}

bool Mailbox::stopping() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return mail_.stop;
}

void Mailbox::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  wake_.wait(lock, [this] { return changed_; });
}

}  // namespace weir::scheduler
