#include "tests/gateway/fake_backend.h"

#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "weir/v1/generate.grpc.pb.h"
#include "weir/v1/info.grpc.pb.h"
#include "weir/v1/tokenize.grpc.pb.h"

namespace weir::testing {
namespace {

using Clock = std::chrono::steady_clock;

class ModelService final : public v1::ModelService::CallbackService {
 public:
  explicit ModelService(std::string name) : name_(std::move(name)) {}
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* rpc, const v1::GetModelRequest*,
                                     v1::GetModelResponse* response) override {
    v1::ModelInfo& model = *response->mutable_model();
    model.set_name(name_);
    model.set_vocab_size(1000);
    model.set_max_position(1 << 20);
    model.set_has_tokenizer(true);
    model.set_chat_template("fake");
    v1::ServerLimits& limits = *response->mutable_limits();
    limits.set_max_position(1 << 20);
    limits.set_max_choices(16);
    limits.set_max_logprobs(20);
    limits.set_max_stop_strings(16);
    limits.set_max_logit_bias(1024);
    auto* reactor = rpc->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const std::string name_;
};

class TokenizerService final : public v1::TokenizerService::CallbackService {
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* rpc,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    for (size_t i = 0; i < request->text().size(); ++i) response->add_ids(static_cast<int>(i));
    auto* reactor = rpc->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

}  // namespace

struct FakeBackend::Impl {
  class Stream;
  class Service final : public v1::GenerationService::CallbackService {
   public:
    explicit Service(Impl* impl) : impl_(impl) {}
    grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
        grpc::CallbackServerContext* rpc, const v1::GenerateRequest* request) override;

   private:
    Impl* const impl_;
  };

  Options options;
  std::unique_ptr<Service> generation;
  std::unique_ptr<ModelService> model;
  TokenizerService tokenizer;
  std::unique_ptr<grpc::Server> server;
  std::string address;

  mutable std::mutex mutex;
  std::condition_variable changed;
  std::set<std::shared_ptr<Stream>> streams;  // that live, where there are ticks
  bool stop = false;
  grpc::Status next_status;
  int next_events = -1;  // < 0: the next call does not fail
  std::multimap<std::string, std::string> metadata;
  std::atomic<int64_t> started{0}, running{0}, cancelled{0};
  std::thread ticker;

  void Tick();
};

// One call: accepted, tokens, choice_finished, finished.
class FakeBackend::Impl::Stream final : public grpc::ServerWriteReactor<v1::GenerateEvent> {
 public:
  Stream(Impl* impl, int number, int tokens, int fail_after, grpc::Status failure)
      : impl_(impl),
        number_(number),
        tokens_(tokens),
        fail_after_(fail_after),
        failure_(std::move(failure)) {}

  void Begin() {
    std::unique_lock<std::mutex> lock(mutex_);
    due_ = impl_->options.tokens_per_s > 0 ? 1 : tokens_ + 3;  // the ticks bring the rest
    Advance(std::move(lock));
  }
  void Tick() {
    std::unique_lock<std::mutex> lock(mutex_);
    // The end comes with the last token.
    due_ = due_ >= tokens_ ? tokens_ + 3 : due_ + 1;
    Advance(std::move(lock));
  }
  void OnWriteDone(bool ok) override {
    std::unique_lock<std::mutex> lock(mutex_);
    writing_ = false;
    if (!ok) return Finish(std::move(lock), grpc::Status::CANCELLED);
    Advance(std::move(lock));
  }
  void OnCancel() override {
    ++impl_->cancelled;
    std::unique_lock<std::mutex> lock(mutex_);
    if (!writing_) Finish(std::move(lock), grpc::Status::CANCELLED);
  }
  void OnDone() override {
    const std::shared_ptr<Stream> self = std::move(self_);
    {
      std::lock_guard<std::mutex> lock(impl_->mutex);
      impl_->streams.erase(self);
    }
    --impl_->running;
  }
  void KeepAlive(std::shared_ptr<Stream> self) { self_ = std::move(self); }
  int number() const { return number_; }

 private:
  void Finish(std::unique_lock<std::mutex> lock, const grpc::Status& status) {
    if (std::exchange(finished_, true)) return;
    lock.unlock();
    grpc::ServerWriteReactor<v1::GenerateEvent>::Finish(status);
  }

  void Advance(std::unique_lock<std::mutex> lock) {
    if (writing_ || finished_) return;
    if (fail_after_ >= 0 && written_ >= fail_after_) return Finish(std::move(lock), failure_);
    if (written_ == tokens_ + 3) return Finish(std::move(lock), grpc::Status::OK);
    if (written_ >= due_) return;
    Fill();
    ++written_;
    writing_ = true;
    lock.unlock();
    StartWrite(&event_);
  }

  void Fill() {
    event_.Clear();
    const int index = written_ - 1;
    if (written_ == 0) {
      event_.mutable_accepted()->set_prompt_tokens(3);
      event_.mutable_accepted()->set_max_tokens(tokens_);
    } else if (index < tokens_) {
      v1::Delta& delta = *event_.mutable_delta();
      delta.add_token_ids(index);
      delta.set_text(impl_->options.text ? impl_->options.text(index)
                                         : "w" + std::to_string(index) + " ");
    } else if (index == tokens_) {
      event_.mutable_choice_finished()->set_reason(v1::FINISH_REASON_LENGTH);
      event_.mutable_choice_finished()->set_completion_tokens(tokens_);
    } else {
      event_.mutable_finished()->mutable_usage()->set_prompt_tokens(3);
      event_.mutable_finished()->mutable_usage()->set_completion_tokens(tokens_);
    }
  }

  Impl* const impl_;
  const int number_;
  const int tokens_;
  const int fail_after_;
  const grpc::Status failure_;
  std::mutex mutex_;
  v1::GenerateEvent event_;
  int due_ = 0, written_ = 0;  // events
  bool writing_ = false, finished_ = false;
  std::shared_ptr<Stream> self_;  // until gRPC is done with it
};

grpc::ServerWriteReactor<v1::GenerateEvent>* FakeBackend::Impl::Service::Generate(
    grpc::CallbackServerContext* rpc, const v1::GenerateRequest* request) {
  const int tokens = request->stopping().has_max_tokens() ? request->stopping().max_tokens()
                                                          : impl_->options.default_tokens;
  ++impl_->started;
  ++impl_->running;
  std::unique_lock<std::mutex> lock(impl_->mutex);
  impl_->metadata.clear();
  for (const auto& [name, value] : rpc->client_metadata()) {
    impl_->metadata.emplace(std::string(name.data(), name.size()),
                            std::string(value.data(), value.size()));
  }
  const auto stream =
      std::make_shared<Stream>(impl_, static_cast<int>(impl_->started), tokens,
                               std::exchange(impl_->next_events, -1), impl_->next_status);
  stream->KeepAlive(stream);
  if (impl_->options.tokens_per_s > 0) impl_->streams.insert(stream);
  lock.unlock();
  stream->Begin();
  return stream.get();
}

void FakeBackend::Impl::Tick() {
  const auto period = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(1 / options.tokens_per_s / options.phases));
  Clock::time_point next = Clock::now() + period;
  int phase = 0;
  std::unique_lock<std::mutex> lock(mutex);
  while (!changed.wait_until(lock, next, [this] { return stop; })) {
    next += period;
    std::vector<std::shared_ptr<Stream>> now;
    phase = (phase + 1) % options.phases;
    for (const auto& stream : streams) {
      if (stream->number() % options.phases == phase) now.push_back(stream);
    }
    lock.unlock();
    for (const auto& stream : now) stream->Tick();
    lock.lock();
  }
}

FakeBackend::FakeBackend(Options options) : impl_(std::make_unique<Impl>()) {
  impl_->options = std::move(options);
  impl_->generation = std::make_unique<Impl::Service>(impl_.get());
  impl_->model = std::make_unique<ModelService>(impl_->options.model);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.RegisterService(impl_->generation.get());
  builder.RegisterService(impl_->model.get());
  builder.RegisterService(&impl_->tokenizer);
  int port = 0;
  if (impl_->options.listen) {
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  }
  impl_->server = builder.BuildAndStart();
  if (impl_->options.listen) impl_->address = "127.0.0.1:" + std::to_string(port);
  if (impl_->options.tokens_per_s > 0) {
    impl_->ticker = std::thread([this] { impl_->Tick(); });
  }
}

FakeBackend::~FakeBackend() {
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->changed.notify_all();
  if (impl_->ticker.joinable()) impl_->ticker.join();
}

std::shared_ptr<grpc::Channel> FakeBackend::channel() {
  return impl_->server->InProcessChannel(grpc::ChannelArguments());
}

const std::string& FakeBackend::address() const { return impl_->address; }

void FakeBackend::SetServing(bool serving) {
  impl_->server->GetHealthCheckService()->SetServingStatus(serving);
}

void FakeBackend::FailNext(const grpc::Status& status, int events) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->next_status = status;
  impl_->next_events = events;
}

int64_t FakeBackend::started() const { return impl_->started; }
int64_t FakeBackend::running() const { return impl_->running; }
int64_t FakeBackend::cancelled() const { return impl_->cancelled; }

std::multimap<std::string, std::string> FakeBackend::last_metadata() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->metadata;
}

bool FakeBackend::WaitFor(const std::function<bool()>& what) {
  const Clock::time_point end = Clock::now() + std::chrono::seconds(10);
  while (!what()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace weir::testing
