#include "server/commands/load_generator.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/philox.h"
#include "server/commands/load_workload.h"
#include "weir/v1/generate.grpc.pb.h"

namespace weir::server {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr std::chrono::milliseconds kBackOff{50};

float Milliseconds(Clock::duration d) {
  return std::chrono::duration<float, std::milli>(d).count();
}

double ProcessorSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Whether asking again can help: else every request would fail the same way.
bool MayPass(grpc::StatusCode code) {
  return code != grpc::StatusCode::INVALID_ARGUMENT &&
         code != grpc::StatusCode::FAILED_PRECONDITION && code != grpc::StatusCode::UNIMPLEMENTED;
}

struct Worker;

// One call, from sending to its status. Lives on its worker's completion queue: one operation is
// outstanding at a time, and the tag is the call itself.
struct Call {
  enum class State : unsigned char { kStarting, kReading, kFinishing, kBackingOff };

  Worker* worker = nullptr;
  // Released once the sender has filled the rest in; the worker's thread has it from then on.
  std::atomic<State> state = State::kStarting;
  grpc::ClientContext context;
  grpc::Alarm alarm;
  v1::GenerateEvent event;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateEvent>> reader;
  Clock::time_point due, first, last;
  int64_t tokens = 0;
  int32_t prompt_tokens = 0;
};

struct Worker {
  grpc::CompletionQueue queue;
  LoadSamples samples;  // touched by the worker's thread alone
  std::thread thread;
};

class Generator {
 public:
  Generator(const LoadFlags& flags, const Workload& workload)
      : flags_(flags), workload_(workload) {}

  absl::Status Connect();
  LoadResult Run();

 private:
  // Sends request number `index`, due at `due`, on `worker`.
  void Send(int64_t index, Worker* worker, Clock::time_point due);
  void Serve(Worker* worker);
  // Handles the end of the operation that was outstanding. False: the call is over.
  bool Advance(Call* call, bool ok);
  void TakeEvent(Call* call, Clock::time_point now);
  void TakeEnd(Call* call, Clock::time_point now);
  // The call is over: closed loop sends the next one.
  void Retire(Call* call);
  bool Measured(Clock::time_point at) const { return at >= measure_from_ && at <= end_; }
  // Closed loop: the number of the next request, or -1 when there is none.
  int64_t TakeNumber();
  void SendOpenLoop();
  // Seconds from the start until request `index` is due.
  double Due(int64_t index);
  void WaitUntilDone();

  const LoadFlags& flags_;
  const Workload& workload_;
  std::vector<std::unique_ptr<v1::GenerationService::Stub>> stubs_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Clock::time_point start_, measure_from_, end_ = Clock::time_point::max();
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> spread_{0};
  std::atomic<bool> stop_{false};
  double due_s_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::unordered_set<Call*> live_;  // guarded by mutex_
  int64_t unsent_ = 0;
  double late_ms_max_ = 0;
};

absl::Status Generator::Connect() {
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(5);
  const int streams = flags_.clients > 0 ? flags_.clients : flags_.max_in_flight;
  for (int i = 0; i < std::clamp(flags_.connections, 1, streams); ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    arguments.SetMaxReceiveMessageSize(-1);
    ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                     MakeClientChannel(flags_.address, flags_.client, arguments));
    if (!channel->WaitForConnected(deadline)) {
      return absl::UnavailableError(absl::StrCat("no server answers at ", flags_.address,
                                                 "; start one with: weir serve MODEL --grpc ",
                                                 flags_.address));
    }
    stubs_.push_back(v1::GenerationService::NewStub(channel));
  }
  for (int i = 0; i < std::max(1, flags_.threads); ++i) {
    workers_.push_back(std::make_unique<Worker>());
  }
  return absl::OkStatus();
}

int64_t Generator::TakeNumber() {
  if (stop_.load(std::memory_order_relaxed)) return -1;
  const int64_t number = next_.fetch_add(1, std::memory_order_relaxed);
  return flags_.requests > 0 && number >= flags_.requests ? -1 : number;
}

void Generator::Send(int64_t index, Worker* worker, Clock::time_point due) {
  auto* call = new Call;  // Retire deletes it
  call->worker = worker;
  call->due = due;
  if (flags_.timeout_s > 0) {
    call->context.set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::duration_cast<std::chrono::microseconds>(Seconds(flags_.timeout_s)));
  }
  v1::GenerateRequest request;
  workload_.Fill(index, &request);
  const auto stub = static_cast<size_t>(spread_.fetch_add(1)) % stubs_.size();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    live_.insert(call);
    if (stop_) call->context.TryCancel();  // taken just before the end
  }
  call->reader = stubs_[stub]->PrepareAsyncGenerate(&call->context, request, &worker->queue);
  call->state.store(Call::State::kStarting, std::memory_order_release);
  call->reader->StartCall(call);
}

void Generator::Serve(Worker* worker) {
  void* tag = nullptr;
  bool ok = false;
  while (worker->queue.Next(&tag, &ok)) {
    auto* call = static_cast<Call*>(tag);
    if (!Advance(call, ok)) Retire(call);
  }
}

bool Generator::Advance(Call* call, bool ok) {
  switch (call->state.load(std::memory_order_acquire)) {
    case Call::State::kReading:
      if (ok) TakeEvent(call, Clock::now());
      [[fallthrough]];
    case Call::State::kStarting:
      if (ok) {
        call->state = Call::State::kReading;
        call->reader->Read(&call->event, call);
      } else {
        call->state = Call::State::kFinishing;
        call->reader->Finish(&call->status, call);
      }
      return true;
    case Call::State::kFinishing:
      TakeEnd(call, Clock::now());
      if (!call->status.ok() && flags_.clients > 0 && !stop_) {
        call->state = Call::State::kBackingOff;
        call->alarm.Set(&call->worker->queue, std::chrono::system_clock::now() + kBackOff, call);
        return true;
      }
      return false;
    case Call::State::kBackingOff:
      return false;
  }
  return false;
}

void Generator::TakeEvent(Call* call, Clock::time_point now) {
  if (call->event.has_accepted()) call->prompt_tokens = call->event.accepted().prompt_tokens();
  const int count = call->event.has_delta() ? call->event.delta().token_ids_size() : 0;
  if (count == 0) return;
  LoadSamples& samples = call->worker->samples;
  const bool measured = Measured(now);
  if (measured) {
    samples.output_tokens += count;
    ++samples.messages;
  }
  if (call->tokens == 0) {
    call->first = now;
    if (measured && Measured(call->due)) {
      samples.first_token_ms.push_back(Milliseconds(now - call->due));
    }
    if (measured) samples.prompt_tokens += call->prompt_tokens;
  } else if (measured) {
    const float gap = Milliseconds(now - call->last);
    samples.message_gap_ms.push_back(gap);
    samples.inter_token_ms.insert(samples.inter_token_ms.end(), static_cast<size_t>(count),
                                  gap / static_cast<float>(count));
  }
  call->last = now;
  call->tokens += count;
}

void Generator::TakeEnd(Call* call, Clock::time_point now) {
  LoadSamples& samples = call->worker->samples;
  if (!call->status.ok()) {
    const grpc::StatusCode code = call->status.error_code();
    if (code == grpc::StatusCode::CANCELLED && stop_) {
      ++samples.cut;
      return;
    }
    const std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
    ++samples.errors[name];
    samples.error_message.try_emplace(name, call->status.error_message());
    if (!MayPass(code)) stop_ = true;
    return;
  }
  if (!Measured(now)) return;
  ++samples.ok;
  if (!Measured(call->due)) return;
  samples.whole_ms.push_back(Milliseconds(now - call->due));
  if (call->tokens > 1) {
    samples.mean_inter_token_ms.push_back(Milliseconds(call->last - call->first) /
                                          static_cast<float>(call->tokens - 1));
  }
}

void Generator::Retire(Call* call) {
  Worker* const worker = call->worker;
  // The next one first: so `live_` is not empty in between.
  if (flags_.clients > 0) {
    const int64_t number = TakeNumber();
    if (number >= 0) Send(number, worker, Clock::now());
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    live_.erase(call);
    if (live_.empty() || stop_) changed_.notify_all();
  }
  delete call;
}

double Generator::Due(int64_t index) {
  if (flags_.replay) return workload_.Arrival(index) / flags_.trace_speed;
  const auto bits = Philox(flags_.seed, static_cast<uint64_t>(index), 1ull << 62)[0];
  due_s_ += -std::log(static_cast<double>(ToUniform(bits))) / flags_.rate;
  return due_s_;
}

void Generator::SendOpenLoop() {
  for (int64_t index = 0; flags_.requests == 0 || index < flags_.requests; ++index) {
    const Clock::time_point due =
        start_ + std::chrono::duration_cast<Clock::duration>(Seconds(Due(index)));
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait_until(lock, std::min(due, end_), [&] { return stop_.load(); });
      if (stop_ || due > end_) return;
      if (static_cast<int>(live_.size()) >= flags_.max_in_flight) {
        ++unsent_;
        continue;
      }
    }
    next_ = index + 1;
    late_ms_max_ = std::max<double>(late_ms_max_, Milliseconds(Clock::now() - due));
    Send(index, workers_[static_cast<size_t>(index) % workers_.size()].get(), due);
  }
}

void Generator::WaitUntilDone() {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto done = [&] { return live_.empty() || stop_; };
  if (end_ == Clock::time_point::max()) {
    changed_.wait(lock, done);
  } else {
    changed_.wait_until(lock, end_, done);
  }
  stop_ = true;
  for (Call* call : live_) call->context.TryCancel();
  changed_.wait(lock, [&] { return live_.empty(); });
}

LoadResult Generator::Run() {
  start_ = Clock::now();
  measure_from_ = start_ + std::chrono::duration_cast<Clock::duration>(Seconds(flags_.warmup_s));
  if (flags_.seconds > 0) {
    end_ = measure_from_ + std::chrono::duration_cast<Clock::duration>(Seconds(flags_.seconds));
  }
  const double processor = ProcessorSeconds();
  for (auto& worker : workers_) {
    worker->thread = std::thread([this, w = worker.get()] { Serve(w); });
  }
  for (int client = 0; client < flags_.clients; ++client) {
    const int64_t number = TakeNumber();
    if (number < 0) break;
    Send(number, workers_[static_cast<size_t>(client) % workers_.size()].get(), Clock::now());
  }
  if (flags_.clients == 0) SendOpenLoop();
  WaitUntilDone();
  LoadResult result;
  result.seconds = Seconds(std::min(Clock::now(), end_) - measure_from_).count();
  result.client_cpu_s = ProcessorSeconds() - processor;
  for (auto& worker : workers_) {
    worker->queue.Shutdown();
    worker->thread.join();
    result.samples.Add(worker->samples);
  }
  result.sent = flags_.requests > 0 ? std::min<int64_t>(next_, flags_.requests) : next_.load();
  result.unsent = unsent_;
  result.late_ms_max = late_ms_max_;
  return result;
}

}  // namespace

void LoadSamples::Add(const LoadSamples& other) {
  const auto append = [](std::vector<float>* to, const std::vector<float>& from) {
    to->insert(to->end(), from.begin(), from.end());
  };
  append(&first_token_ms, other.first_token_ms);
  append(&inter_token_ms, other.inter_token_ms);
  append(&message_gap_ms, other.message_gap_ms);
  append(&mean_inter_token_ms, other.mean_inter_token_ms);
  append(&whole_ms, other.whole_ms);
  output_tokens += other.output_tokens;
  prompt_tokens += other.prompt_tokens;
  messages += other.messages;
  ok += other.ok;
  cut += other.cut;
  for (const auto& [code, count] : other.errors) errors[code] += count;
  for (const auto& [code, message] : other.error_message) error_message.try_emplace(code, message);
}

absl::StatusOr<LoadResult> RunLoad(const LoadFlags& flags, const Workload& workload) {
  Generator generator(flags, workload);
  RETURN_IF_ERROR(generator.Connect());
  return generator.Run();
}

}  // namespace weir::server
