#include "gateway/generate_call.h"

#include <algorithm>
#include <iterator>

namespace weir::gateway {
namespace {

// Events that may lie here for a slow client; then gRPC's flow control reaches the server, whose
// own bound ends the call.
constexpr size_t kMaxArrived = 256;

// Before the server says: what the request may take.
int64_t GuessTokens(const v1::GenerateRequest& request) {
  constexpr int64_t kBytesPerToken = 4;
  constexpr int64_t kDefaultAnswer = 256;
  const int64_t prompt = request.has_token_ids()
                             ? request.token_ids().ids_size()
                             : static_cast<int64_t>(request.ByteSizeLong()) / kBytesPerToken;
  const int64_t answer =
      request.stopping().has_max_tokens() ? request.stopping().max_tokens() : kDefaultAnswer;
  const int64_t choices = request.has_n() ? request.n() : 1;
  return prompt + std::clamp<int64_t>(answer, 1, 1 << 20) * std::clamp<int64_t>(choices, 1, 1024);
}

}  // namespace

GenerateCall::GenerateCall(std::shared_ptr<Backend> backend, std::function<void()> ready)
    : backend_(std::move(backend)),
      stub_(v1::GenerationService::NewStub(backend_->channel())),
      ready_(std::move(ready)) {}

GenerateCall::~GenerateCall() = default;

std::shared_ptr<GenerateCall> GenerateCall::Start(std::shared_ptr<Backend> backend,
                                                  const v1::GenerateRequest& request,
                                                  const CallMetadata& metadata,
                                                  std::function<void()> ready) {
  const std::shared_ptr<GenerateCall> call(new GenerateCall(std::move(backend), std::move(ready)));
  call->self_ = call;
  for (const auto& [name, value] : metadata) call->context_.AddMetadata(name, value);
  call->reserved_tokens_ = GuessTokens(request);
  call->backend_->outstanding_tokens += call->reserved_tokens_;
  call->stub_->async()->Generate(&call->context_, &request, call.get());
  call->StartRead(&call->event_);
  call->StartCall();
  return call;
}

// gRPC may call back from inside StartRead and TryCancel: no lock is held there.
void GenerateCall::OnReadDone(bool ok) {
  if (!ok) return;  // OnDone follows
  Count(event_);
  bool go_on = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ready_ != nullptr) {  // else what still comes is dropped
      arrived_.push_back(std::move(event_));
      go_on = arrived_.size() < kMaxArrived;
      Notify();
    }
    if (!go_on) {
      AddHold();  // OnDone does not come before the next StartRead, which is another thread's
      paused_ = true;
    }
  }
  if (go_on) StartRead(&event_);
}

void GenerateCall::OnDone(const grpc::Status& status) {
  backend_->outstanding_tokens -= reserved_tokens_;
  const std::shared_ptr<GenerateCall> self = std::move(self_);
  std::lock_guard<std::mutex> lock(mutex_);
  ended_ = true;
  status_ = status;
  Notify();
}

void GenerateCall::Count(const v1::GenerateEvent& event) {
  int64_t now = reserved_tokens_;
  if (event.has_accepted()) {
    now = std::max<int64_t>(now, event.accepted().prompt_tokens() + event.accepted().max_tokens());
  } else if (event.has_delta()) {
    now = std::max<int64_t>(0, now - std::max(1, event.delta().token_ids_size()));
  }
  backend_->outstanding_tokens += now - reserved_tokens_;
  reserved_tokens_ = now;
}

void GenerateCall::Notify() {
  if (notified_ || ready_ == nullptr) return;
  notified_ = true;
  ready_();
}

bool GenerateCall::Take(std::vector<v1::GenerateEvent>* events) {
  bool ended = false, go_on = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (events->empty()) {
      events->swap(arrived_);
    } else {
      events->insert(events->end(), std::make_move_iterator(arrived_.begin()),
                     std::make_move_iterator(arrived_.end()));
      arrived_.clear();
    }
    notified_ = false;
    ended = ended_;
    go_on = std::exchange(paused_, false) && !ended;
  }
  if (!events->empty()) begun_ = true;
  if (go_on) Resume();
  return ended;
}

void GenerateCall::Cancel() {
  bool go_on = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ready_ = nullptr;
    arrived_.clear();
    if (ended_) return;
    go_on = std::exchange(paused_, false);
  }
  context_.TryCancel();
  if (go_on) Resume();
}

void GenerateCall::Resume() {
  StartRead(&event_);
  RemoveHold();
}

}  // namespace weir::gateway
