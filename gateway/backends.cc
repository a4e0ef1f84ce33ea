#include "gateway/backends.h"

#include <grpcpp/alarm.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <utility>

#include "core/log.h"
#include "gateway/http_metrics.h"
#include "metrics/registry.h"
#include "weir/v1/info.grpc.pb.h"

namespace weir::gateway {
namespace {

constexpr std::chrono::milliseconds kRetryTime{250};
constexpr std::chrono::seconds kModelTime{5};

// HealthCheckResponse{1: status}, where 1 is SERVING; an absent field is 0, UNKNOWN.
bool SaysServing(const grpc::ByteBuffer& response) {
  std::vector<grpc::Slice> slices;
  if (!response.Dump(&slices).ok()) return false;
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes == std::string("\x08\x01");
}

}  // namespace

Backend::Backend(std::string address, std::shared_ptr<grpc::Channel> channel)
    : address_(std::move(address)), channel_(std::move(channel)) {}
Backend::~Backend() = default;

std::shared_ptr<const ModelFacts> Backend::facts() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return healthy_ ? facts_ : nullptr;
}

// Watches one backend until Stop. Everything runs on gRPC's threads; `pending_` counts what is
// still to come from there.
class Backends::Watcher : public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(std::shared_ptr<Backend> backend, metrics::Gauge* healthy)
      : backend_(std::move(backend)),
        healthy_gauge_(healthy),
        health_(backend_->channel()),
        model_(v1::ModelService::NewStub(backend_->channel())) {}

  void Watch() {
    const auto stream = std::make_shared<Stream>(this);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopped_) return;
      ++pending_;
      stream_ = stream;
    }
    stream->Start();
  }

  void Stop() {
    std::shared_ptr<Stream> stream;
    std::shared_ptr<ModelCall> call;
    std::shared_ptr<grpc::Alarm> watch_alarm, model_alarm;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      stream = stream_;
      call = model_call_;
      watch_alarm = watch_alarm_;
      model_alarm = model_alarm_;
    }
    if (stream != nullptr) stream->context.TryCancel();
    if (call != nullptr) call->context.TryCancel();
    if (watch_alarm != nullptr) watch_alarm->Cancel();
    if (model_alarm != nullptr) model_alarm->Cancel();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  struct Stream final : grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
    explicit Stream(Watcher* watcher) : watcher(watcher) {
      const grpc::Slice whole_server;  // an empty message
      request = grpc::ByteBuffer(&whole_server, 1);
      // A backend that is not there is waited for; the channel tries again by itself.
      context.set_wait_for_ready(true);
    }
    void Start() {
      watcher->health_.PrepareBidiStreamingCall(&context, "/grpc.health.v1.Health/Watch", {}, this);
      StartWriteLast(&request, grpc::WriteOptions());
      StartRead(&response);
      StartCall();
    }
    void OnReadDone(bool ok) override {
      if (!ok) return;
      watcher->SetHealthy(SaysServing(response));
      StartRead(&response);
    }
    void OnDone(const grpc::Status& status) override { watcher->OnStreamEnd(status); }

    Watcher* const watcher;
    grpc::ClientContext context;
    grpc::ByteBuffer request, response;
  };

  struct ModelCall {
    grpc::ClientContext context;
    v1::GetModelRequest request;
    v1::GetModelResponse response;
  };

  void SetHealthy(bool healthy);
  void OnStreamEnd(const grpc::Status& status);
  void FetchModel();
  void OnModel(const grpc::Status& status);
  void CallLater(std::shared_ptr<grpc::Alarm>* last, void (Watcher::*method)());
  void Done() {
    std::lock_guard<std::mutex> lock(mutex_);
    --pending_;
    changed_.notify_all();
  }

  const std::shared_ptr<Backend> backend_;
  metrics::Gauge* const healthy_gauge_;  // may be null
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> health_;
  const std::unique_ptr<v1::ModelService::Stub> model_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  int pending_ = 0;
  std::shared_ptr<Stream> stream_, ended_stream_;
  std::shared_ptr<ModelCall> model_call_;
  std::shared_ptr<grpc::Alarm> watch_alarm_, model_alarm_;  // the last; null: none so far
};

void Backends::Watcher::SetHealthy(bool healthy) {
  bool changed = false;
  {
    std::lock_guard<std::mutex> lock(backend_->mutex_);
    changed = backend_->healthy_ != healthy;
    backend_->healthy_ = healthy;
    backend_->was_healthy_ = backend_->was_healthy_ || healthy;
    // It may be another process than before, with another model.
    if (changed && healthy) backend_->facts_ = nullptr;
  }
  if (!changed) return;
  LogDebug("gateway: ", backend_->address(), healthy ? " is healthy" : " is not healthy");
  if (healthy_gauge_ != nullptr) healthy_gauge_->Set(healthy ? 1 : 0);
  if (healthy) FetchModel();
}

void Backends::Watcher::OnStreamEnd(const grpc::Status& status) {
  // A server without health checks is taken at its word that it answers.
  const bool unwatched = status.error_code() == grpc::StatusCode::UNIMPLEMENTED;
  SetHealthy(unwatched);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_stream_ = std::move(stream_);  // this is called from inside it
  }
  if (!unwatched) CallLater(&watch_alarm_, &Watcher::Watch);
  Done();
}

void Backends::Watcher::FetchModel() {
  const auto call = std::make_shared<ModelCall>();
  {
    std::lock_guard<std::mutex> healthy(backend_->mutex_);
    if (!backend_->healthy_) return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_ || model_call_ != nullptr) return;
    ++pending_;
    model_call_ = call;
  }
  call->context.set_deadline(std::chrono::system_clock::now() + kModelTime);
  model_->async()->GetModel(&call->context, &call->request, &call->response,
                            [this](const grpc::Status& status) { OnModel(status); });
}

void Backends::Watcher::OnModel(const grpc::Status& status) {
  std::shared_ptr<ModelCall> call;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    call = std::move(model_call_);
  }
  if (status.ok()) {
    auto facts = std::make_shared<ModelFacts>();
    facts->id = call->response.model().name();
    facts->model = std::move(*call->response.mutable_model());
    facts->limits = call->response.limits();
    facts->created_s = std::time(nullptr);
    LogDebug("gateway: ", backend_->address(), " serves ", facts->id);
    std::lock_guard<std::mutex> lock(backend_->mutex_);
    backend_->facts_ = std::move(facts);
  } else {
    LogDebug("gateway: ", backend_->address(),
             " does not tell its model: ", status.error_message());
    CallLater(&model_alarm_, &Watcher::FetchModel);
  }
  Done();
}

// gRPC may call back from inside the functions that start or cancel something: no lock is held
// there.
void Backends::Watcher::CallLater(std::shared_ptr<grpc::Alarm>* last, void (Watcher::*method)()) {
  // A new one each time: one that has not rung yet, or whose call still runs, cannot be set again.
  const auto alarm = std::make_shared<grpc::Alarm>();
  std::shared_ptr<grpc::Alarm> before;  // outlives the lock
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) return;
    ++pending_;
    before = std::exchange(*last, alarm);
  }
  alarm->Set(std::chrono::system_clock::now() + kRetryTime, [this, method](bool rang) {
    if (rang) (this->*method)();  // else it has been stopped, or a later one replaced it
    Done();
  });
}

Backends::Backends(std::vector<Target> targets, HttpMetrics* metrics) {
  for (Target& target : targets) {
    metrics::Gauge* const healthy =
        metrics == nullptr ? nullptr : metrics->AddBackend(target.address);
    backends_.push_back(std::make_shared<Backend>(target.address, std::move(target.channel)));
    watchers_.push_back(std::make_shared<Watcher>(backends_.back(), healthy));
    watchers_.back()->Watch();
  }
}

Backends::~Backends() {
  for (const auto& watcher : watchers_) watcher->Stop();
}

bool Backends::lost() const {
  return std::all_of(backends_.begin(), backends_.end(), [](const auto& backend) {
    std::lock_guard<std::mutex> lock(backend->mutex_);
    return backend->was_healthy_ && !backend->healthy_;
  });
}

std::vector<std::shared_ptr<const ModelFacts>> Backends::Models() const {
  std::vector<std::shared_ptr<const ModelFacts>> models;
  for (const auto& backend : backends_) {
    auto facts = backend->facts();
    if (facts == nullptr) continue;
    const bool known = std::any_of(models.begin(), models.end(),
                                   [&](const auto& other) { return other->id == facts->id; });
    if (!known) models.push_back(std::move(facts));
  }
  return models;
}

std::shared_ptr<Backend> Backends::Pick(const std::string& id,
                                        const std::vector<const Backend*>& tried) const {
  std::shared_ptr<Backend> best;
  int64_t least = 0;
  // Equals take turns.
  const size_t first = next_.fetch_add(1, std::memory_order_relaxed);
  for (size_t i = 0; i < backends_.size(); ++i) {
    const std::shared_ptr<Backend>& backend = backends_[(first + i) % backends_.size()];
    if (std::find(tried.begin(), tried.end(), backend.get()) != tried.end()) continue;
    const auto facts = backend->facts();
    if (facts == nullptr || facts->id != id) continue;
    const int64_t tokens = backend->outstanding_tokens.load(std::memory_order_relaxed);
    if (best != nullptr && tokens >= least) continue;
    best = backend;
    least = tokens;
  }
  return best;
}

}  // namespace weir::gateway
