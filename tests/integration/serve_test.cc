// A server from its first line to its exit code.
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(ServeTest, SaysWhatItIsServesAndEndsWell) {
  ServerProcess server({"--slots", "16"});
  EXPECT_THAT(server.out(), HasSubstr("weir-tiny (hybrid)"));
  EXPECT_THAT(server.out(), HasSubstr("16 slots"));
  EXPECT_THAT(server.out(), HasSubstr("fits at once"));
  EXPECT_THAT(server.out(), HasSubstr("Serving gRPC on " + server.grpc_address() +
                                      ", metrics on http://" + server.metrics_address()));
  EXPECT_THAT(server.err(), HasSubstr("loaded"));

  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(12);
  const Answer first = Generate(server.generation(), request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_FALSE(first.text.empty());
  const Answer again = Generate(server.generation(), request);
  EXPECT_EQ(again.ids, first.ids);
  EXPECT_EQ(again.text, first.text);
  EXPECT_THAT(HttpGet(server.metrics_address(), "/metrics"),
              HasSubstr("weir_grpc_calls_total{code=\"OK\",method=\"Generate\"}"));
  server.ExpectNothingHeld();
  EXPECT_EQ(server.Info().limits().slots(), 16);

  server.Signal(SIGTERM);
  EXPECT_EQ(server.WaitExit(), 0);
  EXPECT_FALSE(std::filesystem::exists(server.ready_file()));
  EXPECT_THAT(server.err(), HasSubstr("drained"));
}

TEST(ServeTest, TheSameSeedGivesTheSameTokensWhateverElseRuns) {
  ServerProcess server({"--slots", "16"});
  const std::vector<int32_t> alone = Generate(server.generation(), LongRequest(60)).ids;
  std::vector<std::thread> others;
  for (int i = 0; i < 6; ++i) {
    others.emplace_back([&server, i] {
      v1::GenerateRequest request = LongRequest(80 + i);
      request.mutable_sampling()->set_seed(100 + i);
      for (int k = 0; k < 7 * i; ++k) request.mutable_token_ids()->add_ids(60 + k);
      EXPECT_TRUE(Generate(server.generation(), request).status.ok());
    });
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Generate(server.generation(), LongRequest(60)).ids, alone);
  for (std::thread& other : others) other.join();
}

// Choice i of n is what a request of its own with seed + i gets: choices share the memory of their
// prompt and nothing else, also where attention is routed and fills its pages late. In f32, where a
// sum in another order hardly ever changes a token; pages are small, so that the prompt fills many.
TEST(ServeTest, EveryChoiceIsWhatItWouldBeAlone) {
  for (const std::string model : {"hybrid_routed", "hybrid_routed_top2"}) {
    ServerProcess server({"--slots", "4", "--page-tokens", "4", "--dtype", "f32"},
                         WEIR_SOURCE_DIR "/tests/golden/" + model);
    v1::GenerateRequest request = LongRequest(24);
    for (int i = 0; i < 45; ++i) request.mutable_token_ids()->add_ids((i * 37 + 11) % 100);
    request.mutable_sampling()->set_temperature(1.0f);
    request.mutable_sampling()->set_seed(50);
    request.set_n(3);
    std::vector<std::vector<int32_t>> choices(3);
    grpc::ClientContext rpc;
    const auto reader = server.generation().Generate(&rpc, request);
    for (v1::GenerateEvent event; reader->Read(&event);) {
      const v1::Delta& delta = event.delta();
      std::vector<int32_t>& ids = choices.at(delta.choice());
      ids.insert(ids.end(), delta.token_ids().begin(), delta.token_ids().end());
    }
    ASSERT_TRUE(reader->Finish().ok());
    request.clear_n();
    for (size_t choice = 0; choice < choices.size(); ++choice) {
      request.mutable_sampling()->set_seed(50 + choice);
      EXPECT_EQ(Generate(server.generation(), request).ids, choices[choice]) << model << choice;
    }
    server.ExpectNothingHeld();
  }
}

TEST(ServeTest, CancelsAndDeadlinesFreeTheirMemory) {
  ServerProcess server({"--slots", "4"});
  grpc::ClientContext cancelled;
  const auto reader = server.generation().Generate(&cancelled, LongRequest(8000));
  v1::GenerateEvent event;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(server.Info().load().slots_used(), 1);
  cancelled.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server.ExpectNothingHeld();

  grpc::ClientContext late;
  late.set_deadline(std::chrono::system_clock::now() + milliseconds(150));
  const Answer answer = Generate(server.generation(), LongRequest(8000), &late);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  server.ExpectNothingHeld();
}

TEST(ServeTest, OverloadIsRefusedAndWhatWasTakenIsAnswered) {
  ServerProcess server({"--slots", "1", "--max-queued-requests", "2"});
  int codes[17] = {};
  std::mutex mutex;
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      const Answer answer = Generate(server.generation(), LongRequest(300));
      std::lock_guard<std::mutex> lock(mutex);
      ++codes[answer.status.error_code()];
      if (answer.status.ok()) {
        EXPECT_EQ(answer.ids.size(), 300u);
      } else {
        EXPECT_THAT(answer.status.error_message(), HasSubstr("queue"));
        EXPECT_FALSE(answer.status.error_details().empty());
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GE(codes[grpc::StatusCode::OK], 2);  // as many as may wait, at least
  EXPECT_EQ(codes[grpc::StatusCode::OK] + codes[grpc::StatusCode::RESOURCE_EXHAUSTED], 8);
  server.ExpectNothingHeld();
}

TEST(ServeTest, ASlowReaderHurtsNobodyElse) {
  ServerProcess server(
      {"--slots", "4", "--stream-buffer-tokens", "64", "--slow-reader-time", "200ms"});
  v1::GenerateRequest big = LongRequest(8000);
  big.mutable_output()->set_logprobs(20);
  grpc::ClientContext rpc;
  // The channel that nobody reads is its own: HTTP/2 flow control is per connection too.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto stub = v1::GenerationService::NewStub(grpc::CreateCustomChannel(
      server.grpc_address(), grpc::InsecureChannelCredentials(), arguments));
  const auto slow = stub->Generate(&rpc, big);
  for (int i = 0; i < 600 && server.Metric("weir_requests_total{outcome=\"slow_reader\"}") != 1.0;
       ++i) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_EQ(server.Metric("weir_requests_total{outcome=\"slow_reader\"}"), 1.0);
  EXPECT_TRUE(Generate(server.generation(), LongRequest(20)).status.ok());
  server.ExpectNothingHeld();
  v1::GenerateEvent event;
  while (slow->Read(&event)) {
  }
  EXPECT_FALSE(slow->Finish().ok());
}

TEST(ServeTest, SigtermFinishesWhatRunsAndRefusesTheRest) {
  ServerProcess server({"--slots", "4"});
  grpc::ClientContext rpc;
  const auto reader = server.generation().Generate(&rpc, LongRequest(1500));
  v1::GenerateEvent event;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&event));
  server.Signal(SIGTERM);
  while (server.err().find("draining") == std::string::npos) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  const Answer refused = Generate(server.generation(), LongRequest(5));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("shutting down"));
  int32_t tokens = event.delta().token_ids_size();
  v1::ChoiceFinished finished;
  while (reader->Read(&event)) {
    tokens += event.delta().token_ids_size();
    if (event.has_choice_finished()) finished = event.choice_finished();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(finished.completion_tokens(), 1500);
  EXPECT_EQ(server.WaitExit(), 0);
}

TEST(ServeTest, TheDrainTimeEndsWhatTakesTooLong) {
  ServerProcess server({"--slots", "4", "--drain-time", "200ms"});
  grpc::ClientContext rpc;
  const auto reader = server.generation().Generate(&rpc, LongRequest(8000));
  v1::GenerateEvent event;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(reader->Read(&event));
  server.Signal(SIGTERM);
  v1::ChoiceFinished finished;
  while (reader->Read(&event)) {
    if (event.has_choice_finished()) finished = event.choice_finished();
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(finished.reason(), v1::FINISH_REASON_DRAINED);
  EXPECT_EQ(server.WaitExit(), 0);
}

TEST(ServeTest, ASecondSigtermEndsAtOnce) {
  ServerProcess server({"--slots", "4"});
  grpc::ClientContext rpc;
  const auto reader = server.generation().Generate(&rpc, LongRequest(8000));
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  server.Signal(SIGTERM);
  while (server.err().find("draining") == std::string::npos) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  server.Signal(SIGTERM);
  EXPECT_EQ(server.WaitExit(5), 128 + SIGTERM);
}

TEST(ServeTest, WithoutATokenizerItServesIds) {
  ServerProcess server({"--slots", "4"}, WEIR_SOURCE_DIR "/tests/golden/hybrid_mixed_bf16");
  EXPECT_THAT(server.out(), HasSubstr("token ids only"));
  EXPECT_THAT(server.out(), HasSubstr("--tokens 1,2,3"));
  const Answer answer = Generate(server.generation(), LongRequest(9));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.ids.size(), 9u);
  EXPECT_EQ(answer.text, "");
  v1::GenerateRequest text;
  text.set_text("hello");
  const Answer refused = Generate(server.generation(), text);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("no tokenizer.json"));
  EXPECT_THAT(refused.status.error_message(), HasSubstr("use token ids"));
}

// What clients without our stubs and orchestrators ask for.
TEST(ServeTest, AnswersReflectionAndHealth) {
  ServerProcess server({"--slots", "2"});
  std::string answer;
  // HealthCheckResponse{1: SERVING}.
  EXPECT_TRUE(CallRaw(server.channel(), "/grpc.health.v1.Health/Check", "", &answer).ok());
  EXPECT_EQ(answer, "\x08\x01");
  EXPECT_EQ(CallRaw(server.channel(), "/grpc.health.v1.Health/Check", "\x0a\x04nope", &answer)
                .error_code(),
            grpc::StatusCode::NOT_FOUND);
  const char* reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  // ServerReflectionRequest{7: list_services}.
  EXPECT_TRUE(CallRaw(server.channel(), reflection, std::string("\x3a\x00", 2), &answer).ok());
  for (const char* service : {"weir.v1.GenerationService", "weir.v1.TokenizerService",
                              "weir.v1.ModelService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(answer, HasSubstr(service));
  }
  ServerProcess closed({"--slots", "2", "--reflection", "false"});
  EXPECT_EQ(CallRaw(closed.channel(), reflection, std::string("\x3a\x00", 2), &answer).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(ServeTest, MetricsCanBeOff) {
  ServerProcess server({"--metrics", ""});
  EXPECT_EQ(server.metrics_address(), "");
  EXPECT_THAT(server.out(), Not(HasSubstr("metrics on")));
  EXPECT_TRUE(Generate(server.generation(), LongRequest(3)).status.ok());
}

}  // namespace
}  // namespace weir::testing
