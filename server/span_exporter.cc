#include "server/span_exporter.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/clock.h"
#include "core/log.h"
#include "metrics/registry.h"
#include "opentelemetry/proto/collector/trace/v1/trace_service.grpc.pb.h"

namespace weir::server {
namespace {

namespace otlp = opentelemetry::proto::collector::trace::v1;

constexpr size_t kMaxWaiting = 4096;  // spans
constexpr size_t kMaxBatch = 512;
constexpr size_t kMaxTraceState = 512;  // as long as the specification asks for
constexpr std::chrono::milliseconds kBatchTime{500};
constexpr std::chrono::seconds kSendTime{5};
constexpr std::chrono::seconds kLastSendTime{2};
constexpr int kServerKind = 2, kErrorCode = 2;

struct Endpoint {
  std::string target;  // host:port
  bool tls = false;
};

absl::StatusOr<Endpoint> ParseEndpoint(absl::string_view text) {
  Endpoint endpoint;
  endpoint.tls = absl::ConsumePrefix(&text, "https://");
  if (!endpoint.tls) absl::ConsumePrefix(&text, "http://");
  absl::ConsumeSuffix(&text, "/");
  const size_t colon = text.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || colon == 0 || absl::StrContains(text, '/') ||
      !absl::SimpleAtoi(text.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text,
                     "\" is no OTLP endpoint; write http://HOST:4317, "
                     "https://HOST:4317 or HOST:4317"));
  }
  endpoint.target = std::string(text);
  return endpoint;
}

template <size_t kBytes>
bool ParseId(absl::string_view hex, std::array<uint8_t, kBytes>* id) {
  if (hex.size() != 2 * kBytes || !std::all_of(hex.begin(), hex.end(), [](char c) {
        return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
      })) {
    return false;
  }
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), id->begin());
  return std::any_of(id->begin(), id->end(), [](uint8_t byte) { return byte != 0; });
}

template <size_t kBytes>
std::string ToBytes(const std::array<uint8_t, kBytes>& id) {
  return {reinterpret_cast<const char*>(id.data()), id.size()};
}

void Put(const char* key, const std::string& value,
         google::protobuf::RepeatedPtrField<otlp::KeyValue>* to) {
  otlp::KeyValue* entry = to->Add();
  entry->set_key(key);
  entry->mutable_value()->set_string_value(value);
}
void Put(const char* key, int64_t value, google::protobuf::RepeatedPtrField<otlp::KeyValue>* to) {
  otlp::KeyValue* entry = to->Add();
  entry->set_key(key);
  entry->mutable_value()->set_int_value(value);
}

}  // namespace

bool ParseTraceParent(std::string_view header, TraceParent* out) {
  const std::vector<absl::string_view> parts =
      absl::StrSplit(absl::string_view(header.data(), header.size()), '-');
  TraceParent parsed;
  std::array<uint8_t, 1> version{}, flags{};
  if (parts.size() < 4 || !(ParseId(parts[0], &version) || parts[0] == "00") || parts[0] == "ff" ||
      (parts[0] == "00" && parts.size() != 4) || !ParseId(parts[1], &parsed.trace_id) ||
      !ParseId(parts[2], &parsed.span_id)) {
    return false;
  }
  if (!ParseId(parts[3], &flags) && parts[3] != "00") return false;
  parsed.sampled = (flags[0] & 1) != 0;
  *out = parsed;
  return true;
}

struct SpanExporter::Impl {
  std::string model;
  const Clock* clock = nullptr;
  metrics::Counter* sent = nullptr;
  metrics::Counter* dropped = nullptr;
  metrics::Counter* failed = nullptr;
  std::unique_ptr<otlp::TraceService::Stub> stub;
  std::mt19937_64 random{std::random_device{}()};  // the thread's alone
  bool was_failing = false;

  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  std::deque<CallFacts> waiting;
  bool ending = false;
  std::thread thread;

  void Run();
  void Send(std::vector<CallFacts> batch, std::chrono::milliseconds time);
  void Fill(const CallFacts& facts, int64_t epoch_us, otlp::Span* span);
  std::string RandomId(size_t bytes);
};

std::string SpanExporter::Impl::RandomId(size_t bytes) {
  std::string id;
  while (id.size() < bytes) {
    const uint64_t word = random();
    id.append(reinterpret_cast<const char*>(&word), std::min(sizeof(word), bytes - id.size()));
  }
  return id;
}

// `epoch_us`: what to add to the clock's time to get Unix time.
void SpanExporter::Impl::Fill(const CallFacts& facts, int64_t epoch_us, otlp::Span* span) {
  const auto unix_ns = [epoch_us](int64_t us) {
    return static_cast<uint64_t>(us + epoch_us) * 1000;
  };
  TraceParent parent;
  if (ParseTraceParent(facts.traceparent, &parent)) {
    span->set_trace_id(ToBytes(parent.trace_id));
    span->set_parent_span_id(ToBytes(parent.span_id));
    span->set_trace_state(facts.tracestate);
  } else {
    span->set_trace_id(RandomId(16));
  }
  span->set_span_id(RandomId(8));
  span->set_kind(kServerKind);
  const std::string operation = facts.chat ? "chat" : "text_completion";
  span->set_name(absl::StrCat(operation, " ", model));
  const int64_t end_us = std::max(facts.finished_us, facts.received_us);
  span->set_start_time_unix_nano(unix_ns(facts.received_us));
  span->set_end_time_unix_nano(unix_ns(end_us));
  // OpenTelemetry's semantic conventions for generative models, and our phases.
  auto* attributes = span->mutable_attributes();
  Put("gen_ai.operation.name", operation, attributes);
  Put("gen_ai.request.model", model, attributes);
  Put("gen_ai.usage.input_tokens", facts.prompt_tokens, attributes);
  Put("gen_ai.usage.output_tokens", facts.completion_tokens, attributes);
  Put("rpc.grpc.status_code", static_cast<int64_t>(facts.status.code()), attributes);
  Put("weir.request_id", facts.request_id, attributes);
  Put("weir.choices", int64_t{facts.choices}, attributes);
  const struct {
    const char *event, *attribute;
    int64_t from_us, to_us;
  } phases[] = {{"queue", "weir.queue_us", facts.received_us, facts.started_us},
                {"prefill", "weir.prefill_us", facts.started_us, facts.first_token_us},
                {"decode", "weir.decode_us", facts.first_token_us, facts.finished_us}};
  for (const auto& phase : phases) {
    if (phase.from_us == 0) break;
    otlp::Span::Event* event = span->add_events();  // where the phase begins
    event->set_name(phase.event);
    event->set_time_unix_nano(unix_ns(phase.from_us));
    const int64_t to_us = phase.to_us == 0 ? end_us : phase.to_us;
    Put(phase.attribute, to_us - phase.from_us, attributes);
  }
  if (!facts.status.ok()) {
    span->mutable_status()->set_code(kErrorCode);
    span->mutable_status()->set_message(std::string(facts.status.message()));
  }
}

void SpanExporter::Impl::Send(std::vector<CallFacts> batch, std::chrono::milliseconds time) {
  const int64_t unix_us = std::chrono::duration_cast<std::chrono::microseconds>(
                              std::chrono::system_clock::now().time_since_epoch())
                              .count();
  const int64_t epoch_us = unix_us - clock->NowUs();
  otlp::ExportTraceServiceRequest request;
  otlp::ResourceSpans* resource = request.add_resource_spans();
  Put("service.name", "weir", resource->mutable_resource()->mutable_attributes());
  Put("service.version", WEIR_VERSION, resource->mutable_resource()->mutable_attributes());
  otlp::ScopeSpans* scope = resource->add_scope_spans();
  scope->mutable_scope()->set_name("weir");
  for (const CallFacts& facts : batch) Fill(facts, epoch_us, scope->add_spans());

  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + time);
  otlp::ExportTraceServiceResponse response;
  const grpc::Status status = stub->Export(&rpc, request, &response);
  const auto count = static_cast<double>(batch.size());
  (status.ok() ? sent : failed)->Increment(count);
  if (status.ok() == was_failing) {  // said once, not for every batch
    was_failing = !status.ok();
    if (was_failing) {
      LogWarning("the trace collector does not take spans: ", status.error_message());
    } else {
      LogInfo("the trace collector takes spans again");
    }
  }
}

void SpanExporter::Impl::Run() {
  auto end_at = std::chrono::steady_clock::time_point::max();
  while (true) {
    std::vector<CallFacts> batch;
    std::chrono::milliseconds time = kSendTime;
    bool last = false;
    {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [this] { return ending || !waiting.empty(); });
      changed.wait_for(lock, kBatchTime, [this] { return ending || waiting.size() >= kMaxBatch; });
      const size_t count = std::min(kMaxBatch, waiting.size());
      std::move(waiting.begin(), waiting.begin() + static_cast<int64_t>(count),
                std::back_inserter(batch));
      waiting.erase(waiting.begin(), waiting.begin() + static_cast<int64_t>(count));
      if (ending) {
        const auto now = std::chrono::steady_clock::now();
        end_at = std::min(end_at, now + kLastSendTime);
        time = std::chrono::duration_cast<std::chrono::milliseconds>(end_at - now);
        last = waiting.empty() || time.count() <= 0;
      }
    }
    if (!batch.empty()) Send(std::move(batch), time);
    if (last) return;
  }
}

absl::Status CheckOtlpEndpoint(const std::string& endpoint) {
  return ParseEndpoint(endpoint).status();
}

absl::StatusOr<std::unique_ptr<SpanExporter>> SpanExporter::Start(const std::string& endpoint,
                                                                  const std::string& model,
                                                                  const Clock* clock,
                                                                  metrics::Registry* registry) {
  ASSIGN_OR_RETURN(const Endpoint where, ParseEndpoint(endpoint));
  auto impl = std::make_unique<Impl>();
  impl->model = model;
  impl->clock = clock;
  const auto counter = [registry](const char* result) {
    return registry->AddCounter("weir_trace_spans_total",
                                "spans of requests, by what became of them", {{"result", result}});
  };
  impl->sent = counter("sent");
  impl->dropped = counter("dropped");
  impl->failed = counter("failed");
  const auto credentials = where.tls ? grpc::SslCredentials(grpc::SslCredentialsOptions())
                                     : grpc::InsecureChannelCredentials();
  impl->stub = otlp::TraceService::NewStub(grpc::CreateChannel(where.target, credentials));
  impl->thread = std::thread([impl = impl.get()] { impl->Run(); });
  return std::unique_ptr<SpanExporter>(new SpanExporter(std::move(impl)));
}

SpanExporter::SpanExporter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

SpanExporter::~SpanExporter() {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->ending = true;
  }
  impl_->changed.notify_all();
  impl_->thread.join();
}

void SpanExporter::Add(CallFacts facts) {
  TraceParent parent;
  if (ParseTraceParent(facts.traceparent, &parent) && !parent.sampled) return;
  // Bytes that are no UTF-8, or too many, would make the collector refuse the spans of others too.
  if (facts.tracestate.size() > kMaxTraceState ||
      !std::all_of(facts.tracestate.begin(), facts.tracestate.end(),
                   [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); })) {
    facts.tracestate.clear();
  }
  bool added = false;
  size_t count = 0;
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    added = impl_->waiting.size() < kMaxWaiting;
    if (added) impl_->waiting.push_back(std::move(facts));
    count = impl_->waiting.size();
  }
  if (!added) {
    impl_->dropped->Increment();
  } else if (count == 1 || count == kMaxBatch) {
    impl_->changed.notify_all();
  }
}

}  // namespace weir::server
