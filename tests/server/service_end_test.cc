// How calls end early: cancelled, too late, too slow, refused, drained. In every case the client
// gets a status and the engine gets its memory back.
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"
#include "server/watchdog.h"
#include "tests/server/test_model.h"
#include "tests/server/test_server.h"

namespace weir::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TestServer::Options SlowOptions(int64_t step_us) {
  TestServer::Options options;
  options.model = TestModel();
  options.step_us = step_us;
  return options;
}

TEST(ServiceEndTest, CancelStopsTheWork) {
  TestServer server(SlowOptions(2000));
  grpc::ClientContext rpc;
  const auto reader = server.generation().Generate(&rpc, IdsRequest({1}, 250));
  v1::GenerateEvent event;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&event));
  rpc.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server.ExpectNothingHeld();
  EXPECT_LT(server.scheduler().stats().steps, 200);
}

TEST(ServiceEndTest, DeadlinesAreKept) {
  TestServer server(SlowOptions(2000));
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + milliseconds(60));
  const Gathered out = server.Generate(IdsRequest({1}, 250), &rpc);
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  server.ExpectNothingHeld();
  EXPECT_LT(server.scheduler().stats().steps, 200);
}

TEST(ServiceEndTest, TheServersOwnDeadlineSendsWhatThereIs) {
  TestServer::Options options = SlowOptions(2000);
  options.server.max_deadline_us = 60'000;
  TestServer server(options);
  const Gathered out = server.Generate(IdsRequest({1}, 250));
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_EQ(out.choices.size(), 1u);
  EXPECT_GT(out.choices[0].ids.size(), 0u);
  EXPECT_EQ(out.choices[0].finished.reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_EQ(out.finished.usage().completion_tokens(),
            static_cast<int32_t>(out.choices[0].ids.size()));
}

TEST(ServiceEndTest, AFullQueueSaysWhenToComeBack) {
  TestServer::Options options = SlowOptions(5000);
  options.model.limits.cache.slots = 1;
  options.model.limits.max_step_sequences = 1;
  options.server.max_queued_requests = 1;
  TestServer server(options);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>> readers;
  int refused = 0;
  for (int i = 0; i < 6; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(server.generation().Generate(contexts.back().get(), IdsRequest({1}, 250)));
    v1::GenerateEvent event;
    if (readers.back()->Read(&event)) continue;  // accepted
    const grpc::Status status = readers.back()->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    google::rpc::QuotaFailure quota;
    google::rpc::RetryInfo retry;
    ASSERT_TRUE(GetDetail(status, &quota));
    EXPECT_EQ(quota.violations(0).subject(), "queue");
    ASSERT_TRUE(GetDetail(status, &retry));
    EXPECT_GT(retry.retry_delay().seconds() * 1'000'000'000 + retry.retry_delay().nanos(), 0);
    readers.pop_back();
    contexts.pop_back();
    ++refused;
  }
  EXPECT_GE(refused, 3);
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& reader : readers) {
    v1::GenerateEvent event;
    while (reader->Read(&event)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  server.ExpectNothingHeld();
}

// A reader that takes nothing: its buffer fills, its request ends, nobody else waits for it.
TEST(ServiceEndTest, SlowReadersEndAlone) {
  TestServer::Options options = SlowOptions(0);
  options.model.limits.max_position = 1 << 20;
  options.model.limits.cache.pages = 1 << 18;
  options.server.stream_buffer_tokens = 64;
  options.server.slow_reader_us = 50'000;
  TestServer server(options);
  v1::GenerateRequest big = IdsRequest({1}, 1'000'000);
  big.mutable_output()->set_logprobs(20);  // fills what gRPC itself buffers
  grpc::ClientContext slow_rpc;
  const auto slow = server.generation().Generate(&slow_rpc, big);
  server.scheduler().WaitIdle();
  EXPECT_LT(server.scheduler().stats().steps, 1'000'000);
  EXPECT_TRUE(server.Generate(IdsRequest({2}, 10)).status.ok());
  // It begins to read only when all is over.
  std::this_thread::sleep_for(milliseconds(150));
  v1::GenerateEvent event;
  int64_t tokens = 0;
  while (slow->Read(&event)) tokens += event.delta().token_ids_size();
  const grpc::Status status = slow->Finish();
  EXPECT_THAT(status.error_code(),
              ::testing::AnyOf(grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::CANCELLED));
  EXPECT_LT(tokens, 1'000'000);
  server.ExpectNothingHeld();
}

// A reader that takes all but the last event: the call is not its to keep open.
TEST(ServiceEndTest, ReadersThatStallAtTheLastEventAreLetGo) {
  TestServer::Options options = SlowOptions(0);
  options.server.slow_reader_us = 50'000;
  TestServer server(options);
  grpc::ClientContext rpc;
  const auto reader = server.generation().Generate(&rpc, IdsRequest({1}, 3));
  v1::GenerateEvent event;
  do {
    ASSERT_TRUE(reader->Read(&event));
  } while (!event.has_choice_finished());
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_THAT(server.registry().Serialize(), ::testing::HasSubstr("weir_open_streams 0\n"));
  while (reader->Read(&event)) {
  }
  reader->Finish();
  server.ExpectNothingHeld();
}

// Some clients write "for ever" as a deadline of centuries.
TEST(ServiceEndTest, DeadlinesBeyondAllClocksAreNone) {
  TestServer server(SlowOptions(0));
  for (const int64_t seconds : {1'000'000'000LL, 10'000'000'000LL, 300'000'000'000LL}) {
    grpc::ClientContext rpc;
    rpc.set_deadline(
        gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_seconds(seconds, GPR_TIMESPAN)));
    EXPECT_TRUE(server.Generate(IdsRequest({1}, 3), &rpc).status.ok()) << seconds << " s";
  }
}

TEST(ServiceEndTest, DrainRefusesFinishesAndEnds) {
  TestServer server(SlowOptions(2000));
  grpc::ClientContext rpc;
  const auto reader = server.generation().Generate(&rpc, IdsRequest({1}, 50));
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  const auto serving = [&](const std::string& service) {
    return IsServing(server.channel(), service);
  };
  EXPECT_TRUE(serving(""));
  EXPECT_TRUE(serving("weir.v1.GenerationService"));

  std::thread drain([&] { server.server().Drain(10'000'000); });
  while (serving("")) std::this_thread::yield();
  EXPECT_FALSE(serving("weir.v1.GenerationService"));
  const Gathered refused = server.Generate(IdsRequest({1}, 5));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(GetDetail(refused.status, &retry));
  int32_t tokens = 0;
  while (reader->Read(&event)) tokens += event.delta().token_ids_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 50);
  drain.join();
  server.ExpectNothingHeld();
}

TEST(ServiceEndTest, TheDrainTimeIsKept) {
  TestServer server(SlowOptions(2000));
  Gathered out;
  std::thread client([&] { out = server.Generate(IdsRequest({1}, 250)); });
  while (server.scheduler().stats().steps == 0) std::this_thread::yield();
  server.server().Drain(/*drain_us=*/30'000);
  client.join();
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  ASSERT_EQ(out.choices.size(), 1u);
  EXPECT_EQ(out.choices[0].finished.reason(), v1::FINISH_REASON_DRAINED);
  EXPECT_LT(out.choices[0].ids.size(), 250u);
  server.ExpectNothingHeld();
}

// A process that lives but makes no step is not healthy, and is again when it goes on.
TEST(ServiceEndTest, HealthSeesAnEngineThatStandsStill) {
  TestServer::Options options = SlowOptions(300'000);
  options.server.stall_us = 100'000;
  TestServer server(options);
  EXPECT_TRUE(IsServing(server.channel(), ""));
  std::thread client([&] { EXPECT_TRUE(server.Generate(IdsRequest({1}, 2)).status.ok()); });
  while (IsServing(server.channel(), "")) std::this_thread::sleep_for(milliseconds(2));
  EXPECT_FALSE(IsServing(server.channel(), "weir.v1.GenerationService"));
  client.join();
  while (!IsServing(server.channel(), "")) std::this_thread::sleep_for(milliseconds(2));
}

TEST(StallDetectorTest, OnlyWorkWithoutStepsIsAStall) {
  server::StallDetector detector(100);
  scheduler::SchedulerStats stats;
  EXPECT_FALSE(detector.Stalled(stats, 0));
  EXPECT_FALSE(detector.Stalled(stats, 10'000));  // nothing to do
  stats.queued_requests = 1;
  EXPECT_FALSE(detector.Stalled(stats, 10'100));
  EXPECT_TRUE(detector.Stalled(stats, 10'101));
  stats.steps = 1;
  EXPECT_FALSE(detector.Stalled(stats, 10'102));
  EXPECT_FALSE(detector.Stalled(stats, 10'202));
  EXPECT_TRUE(detector.Stalled(stats, 10'203));
  stats.queued_requests = 0;
  EXPECT_FALSE(detector.Stalled(stats, 10'204));
  stats.running_sequences = 1;
  EXPECT_FALSE(detector.Stalled(stats, 10'304));
}

TEST(ServiceEndTest, ManyStreamsWithRandomCancelsLeakNothing) {
  TestServer::Options options = SlowOptions(50);
  options.server.max_queued_requests = 32;
  TestServer server(options);
  std::atomic<int> ended[17] = {};
  std::vector<std::thread> clients;
  for (int c = 0; c < 24; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(c);
      for (int i = 0; i < 20; ++i) {
        grpc::ClientContext rpc;
        if (random() % 4 == 0) {
          rpc.set_deadline(std::chrono::system_clock::now() + milliseconds(random() % 20));
        }
        v1::GenerateRequest request = IdsRequest({c + 1, i + 1}, 1 + random() % 60);
        if (random() % 2 == 0) request.set_text("some text");
        if (random() % 3 == 0) {
          request.mutable_sampling()->set_temperature(1);
          request.set_n(1 + random() % 3);
        }
        const auto reader = server.generation().Generate(&rpc, request);
        const int reads = random() % 2 == 0 ? 1000 : random() % 10;
        v1::GenerateEvent event;
        int read = 0;
        while (read < reads && reader->Read(&event)) ++read;
        if (read == reads) rpc.TryCancel();
        while (reader->Read(&event)) {
        }
        ++ended[reader->Finish().error_code()];
      }
    });
  }
  for (std::thread& client : clients) client.join();
  server.ExpectNothingHeld();
  EXPECT_GT(ended[grpc::StatusCode::OK], 0);
  EXPECT_GT(ended[grpc::StatusCode::CANCELLED], 0);
  EXPECT_EQ(ended[grpc::StatusCode::OK] + ended[grpc::StatusCode::CANCELLED] +
                ended[grpc::StatusCode::DEADLINE_EXCEEDED] +
                ended[grpc::StatusCode::RESOURCE_EXHAUSTED],
            24 * 20);
}

}  // namespace
}  // namespace weir::testing
