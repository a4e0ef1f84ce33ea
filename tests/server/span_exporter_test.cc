// Spans of calls as a collector gets them, and what a bad collector does to serving: nothing.
#include "server/span_exporter.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "opentelemetry/proto/collector/trace/v1/trace_service.grpc.pb.h"
#include "tests/server/test_model.h"
#include "tests/server/test_server.h"

namespace weir::testing {
namespace {

namespace otlp = opentelemetry::proto::collector::trace::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpan[] = "00f067aa0ba902b7";

class Collector final : public otlp::TraceService::Service {
 public:
  Collector() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::string endpoint() const { return absl::StrCat("http://127.0.0.1:", port_); }
  void Hang() { hangs_ = true; }

  // The spans so far, once there are `count`; fewer after five seconds.
  std::vector<otlp::Span> Wait(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(5), [&] { return spans_.size() >= count; });
    return spans_;
  }

  grpc::Status Export(grpc::ServerContext* rpc, const otlp::ExportTraceServiceRequest* request,
                      otlp::ExportTraceServiceResponse*) override {
    while (hangs_ && !rpc->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& resource : request->resource_spans()) {
      EXPECT_EQ(resource.resource().attributes(0).key(), "service.name");
      for (const auto& scope : resource.scope_spans()) {
        spans_.insert(spans_.end(), scope.spans().begin(), scope.spans().end());
      }
    }
    changed_.notify_all();
    return grpc::Status::OK;
  }

 private:
  int port_ = 0;
  std::atomic<bool> hangs_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<otlp::Span> spans_;
  std::unique_ptr<grpc::Server> server_;
};

TestServer::Options WithCollector(const std::string& endpoint) {
  TestServer::Options options;
  options.model = TestModel();
  options.model.name = "tiny";
  options.server.otlp_endpoint = endpoint;
  options.step_us = 500;
  return options;
}

std::map<std::string, int64_t> Numbers(const otlp::Span& span) {
  std::map<std::string, int64_t> numbers;
  for (const auto& entry : span.attributes()) {
    if (entry.value().has_int_value()) numbers[entry.key()] = entry.value().int_value();
  }
  return numbers;
}

TEST(TraceParentTest, TakesTheStandardFormOnly) {
  const std::string good = absl::StrCat("00-", kTrace, "-", kSpan, "-01");
  server::TraceParent parent;
  using server::ParseTraceParent;
  ASSERT_TRUE(ParseTraceParent(good, &parent));
  EXPECT_TRUE(parent.sampled);
  EXPECT_EQ(parent.span_id[1], 0xf0);
  ASSERT_TRUE(ParseTraceParent(absl::StrCat("00-", kTrace, "-", kSpan, "-00"), &parent));
  EXPECT_FALSE(parent.sampled);
  EXPECT_TRUE(ParseTraceParent(absl::StrCat("01-", kTrace, "-", kSpan, "-01-more"), &parent));
  for (const std::string& wrong :
       {std::string(), good + "-more", good.substr(1),
        absl::StrCat("ff-", kTrace, "-", kSpan, "-01"),
        absl::StrCat("00-", std::string(32, '0'), "-", kSpan, "-01"),
        absl::StrCat("00-", kTrace, "-", std::string(16, '0'), "-01"),
        absl::StrCat("00-4BF92F3577B34DA6A3CE929D0E0E4736-", kSpan, "-01"),
        absl::StrCat("00-", kTrace, "-", kSpan, "-0"), absl::StrCat("00-", kTrace, "-01")}) {
    EXPECT_FALSE(ParseTraceParent(wrong, &parent)) << wrong;
  }
}

TEST(SpanExporterTest, ACallIsOneSpanWithItsPhasesAndTokens) {
  Collector collector;
  TestServer server(WithCollector(collector.endpoint()));
  grpc::ClientContext rpc;
  rpc.AddMetadata("traceparent", absl::StrCat("00-", kTrace, "-", kSpan, "-01"));
  rpc.AddMetadata("tracestate", "vendor=1");
  ASSERT_TRUE(server.Generate(IdsRequest({1, 2, 3}, 20), &rpc).status.ok());

  const std::vector<otlp::Span> spans = collector.Wait(1);
  ASSERT_EQ(spans.size(), 1u);
  const otlp::Span& span = spans[0];
  EXPECT_EQ(absl::BytesToHexString(span.trace_id()), kTrace);
  EXPECT_EQ(absl::BytesToHexString(span.parent_span_id()), kSpan);
  EXPECT_EQ(span.trace_state(), "vendor=1");
  EXPECT_EQ(span.span_id().size(), 8u);
  EXPECT_EQ(span.name(), "text_completion tiny");
  const auto numbers = Numbers(span);
  EXPECT_EQ(numbers.at("gen_ai.usage.input_tokens"), 3);
  EXPECT_EQ(numbers.at("gen_ai.usage.output_tokens"), 20);
  EXPECT_GE(numbers.at("weir.decode_us"), 19 * 500);
  std::vector<std::string> events;
  for (const auto& event : span.events()) events.push_back(event.name());
  EXPECT_THAT(events, ElementsAre("queue", "prefill", "decode"));
  const uint64_t now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(
                              std::chrono::system_clock::now().time_since_epoch())
                              .count();
  EXPECT_LT(span.start_time_unix_nano(), span.end_time_unix_nano());
  EXPECT_LT(now_ns - span.end_time_unix_nano(), 10'000'000'000u);
  EXPECT_EQ(span.status().code(), 0);
}

TEST(SpanExporterTest, RefusalsAreSpansAndUnsampledTracesAreNot) {
  Collector collector;
  {
    TestServer server(WithCollector(collector.endpoint()));
    grpc::ClientContext unsampled;
    unsampled.AddMetadata("traceparent", absl::StrCat("00-", kTrace, "-", kSpan, "-00"));
    ASSERT_TRUE(server.Generate(IdsRequest({1}, 2), &unsampled).status.ok());
    EXPECT_FALSE(server.Generate(v1::GenerateRequest()).status.ok());
  }  // the end sends what waits
  const std::vector<otlp::Span> spans = collector.Wait(1);
  ASSERT_EQ(spans.size(), 1u);
  EXPECT_EQ(spans[0].status().code(), 2);
  EXPECT_THAT(spans[0].status().message(), HasSubstr("input"));
  EXPECT_EQ(spans[0].trace_id().size(), 16u);
  EXPECT_TRUE(spans[0].parent_span_id().empty());
}

TEST(SpanExporterTest, AHangingCollectorSlowsNothingAndOverflowIsCounted) {
  Collector collector;
  collector.Hang();
  SteadyClock clock;
  metrics::Registry registry;
  auto exporter = server::SpanExporter::Start(collector.endpoint(), "tiny", &clock, &registry);
  ASSERT_TRUE(exporter.ok()) << exporter.status();
  const int64_t begin_us = clock.NowUs();
  for (int i = 0; i < 20'000; ++i) {
    server::CallFacts facts;
    facts.received_us = begin_us;
    (*exporter)->Add(std::move(facts));
  }
  EXPECT_LT(clock.NowUs() - begin_us, 1'000'000);
  EXPECT_THAT(registry.Serialize(),
              ::testing::ContainsRegex("weir_trace_spans_total.result=\"dropped\". 1[0-9]{4}"));
  exporter->reset();
  EXPECT_LT(clock.NowUs() - begin_us, 8'000'000);  // a send under way, and the last two seconds
}

TEST(SpanExporterTest, RefusesWhatIsNoEndpoint) {
  for (const char* good : {"localhost:4317", "http://localhost:4317", "https://[::1]:4317/"}) {
    EXPECT_TRUE(server::CheckOtlpEndpoint(good).ok()) << good;
  }
  for (const char* wrong : {"localhost", "http://localhost", ":1", "a:0", "a:b", "http://a:1/v1"}) {
    EXPECT_FALSE(server::CheckOtlpEndpoint(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace weir::testing
