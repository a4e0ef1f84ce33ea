// 64 streams at once on 16 slots with random cancels, for WEIR_SOAK_SECONDS (default 8): every call
// is answered or refused with a reason, and at the end nothing is held.
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using Clock = std::chrono::steady_clock;

v1::GenerateRequest RandomRequest(std::mt19937* random) {
  v1::GenerateRequest request;
  auto& r = *random;
  switch (r() % 3) {
    case 0:
      request.set_text("Once upon a time there was a fox who");
      break;
    case 1:
      for (uint32_t i = 1 + r() % 300; i > 0; --i) {
        request.mutable_token_ids()->add_ids(static_cast<int32_t>(r() % 8192));
      }
      break;
    default: {
      auto* message = request.mutable_chat()->add_messages();
      message->set_role("user");
      message->set_content("What is 4 plus 5?");
    }
  }
  request.mutable_stopping()->set_max_tokens(1 + static_cast<int32_t>(r() % 80));
  if (r() % 3 == 0) request.mutable_stopping()->add_stop_strings("the ");
  if (r() % 4 == 0) request.set_n(1 + static_cast<int32_t>(r() % 3));
  if (r() % 4 == 0) request.mutable_output()->set_logprobs(static_cast<int32_t>(r() % 5));
  if (r() % 8 == 0) request.mutable_output()->set_prompt_logprobs(1);
  request.set_priority(static_cast<int32_t>(r() % 5));
  return request;
}

struct Counts {
  std::mutex mutex;
  std::map<grpc::StatusCode, int> by_code;
  std::vector<std::string> unexplained;
};

// One call, ended by itself, by a cancel after some events, or by a deadline. False: refused.
bool OneCall(v1::GenerationService::Stub& stub, std::mt19937* random, Counts* counts) {
  grpc::ClientContext rpc;
  if ((*random)() % 10 == 0) {
    rpc.set_deadline(std::chrono::system_clock::now() +
                     std::chrono::milliseconds((*random)() % 300));
  }
  const auto reader = stub.Generate(&rpc, RandomRequest(random));
  const int cancel_after = (*random)() % 3 == 0 ? static_cast<int>((*random)() % 20) : 1 << 30;
  v1::GenerateEvent event;
  for (int events = 0; reader->Read(&event); ++events) {
    if (events == cancel_after) rpc.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  std::lock_guard<std::mutex> lock(counts->mutex);
  ++counts->by_code[status.error_code()];
  const bool refused = status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  if (refused && status.error_details().empty()) counts->unexplained.push_back("no details");
  if (!status.ok() && status.error_message().empty()) counts->unexplained.push_back("no message");
  return !refused;
}

void Soak(ServerProcess& server, double seconds, uint32_t seed, Counts* counts) {
  const Clock::time_point end =
      Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  std::vector<std::thread> clients;
  for (uint32_t c = 0; c < 64; ++c) {
    clients.emplace_back([&server, counts, end, seed, c] {
      std::mt19937 random(seed * 1000 + c);
      while (Clock::now() < end) {
        if (!OneCall(server.generation(), &random, counts)) {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));  // refused: come back later
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST(SoakTest, SixtyFourStreamsOnSixteenSlotsLeakNothing) {
  const char* wanted = std::getenv("WEIR_SOAK_SECONDS");
  const double seconds = wanted == nullptr ? 8.0 : std::atof(wanted);
  ServerProcess server({"--slots", "16", "--max-queued-requests", "40"});
  Counts counts;
  // Pools and allocators fill up in the first part; after it memory must not grow on and on.
  Soak(server, seconds / 2, 1, &counts);
  server.ExpectNothingHeld();
  const double before = server.Metric("process_resident_memory_bytes").value_or(0);
  Soak(server, seconds / 2, 2, &counts);
  server.ExpectNothingHeld();
  const double after = server.Metric("process_resident_memory_bytes").value_or(0);
  EXPECT_LT(after - before, 48.0 * (1 << 20)) << "resident memory grew from " << before;

  EXPECT_THAT(counts.unexplained, ::testing::IsEmpty());
  int others = 0;
  for (const auto& [code, count] : counts.by_code) {
    std::printf("code %d: %d calls\n", code, count);
    if (code != grpc::StatusCode::OK && code != grpc::StatusCode::CANCELLED &&
        code != grpc::StatusCode::DEADLINE_EXCEEDED &&
        code != grpc::StatusCode::RESOURCE_EXHAUSTED) {
      others += count;
    }
  }
  std::printf("resident memory: %.1f MiB, then %.1f MiB\n", before / (1 << 20), after / (1 << 20));
  EXPECT_EQ(others, 0);
  EXPECT_GT(counts.by_code[grpc::StatusCode::OK], 20);
  EXPECT_TRUE(Generate(server.generation(), LongRequest(5)).status.ok());
  server.Signal(SIGTERM);
  EXPECT_EQ(server.WaitExit(), 0) << server.err();
}

}  // namespace
}  // namespace weir::testing
