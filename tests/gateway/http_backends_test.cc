// Several servers behind one door.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/http_test_support.h"

namespace weir::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

const grpc::Status kUnavailable(grpc::StatusCode::UNAVAILABLE, "the server drains");

HttpReply Chat(const TestDoor& door, int tokens, bool stream) {
  return Ask(door.address(), Post("/v1/chat/completions", ChatBody(tokens, stream)));
}

TEST(HttpBackendsTest, OnlyWhatNeverBeganIsSentElsewhere) {
  FakeBackend first({}), second({});
  TestDoor door(gateway::Options(), {&first, &second});
  ASSERT_TRUE(FakeBackend::WaitFor(
      [&] { return door.Metric("weir_http_backend_healthy{backend=\"server1\"}") == 1; }));
  for (int i = 0; i < 4; ++i) {
    first.FailNext(kUnavailable, 0);
    second.FailNext(grpc::Status::OK, -1);
    const HttpReply reply = Chat(door, 2, false);
    EXPECT_EQ(reply.status, 200) << reply.body;
  }
  EXPECT_GE(door.Metric("weir_http_retries_total"), 1);
  EXPECT_GE(second.started(), 3);

  // Both fail: one attempt at each, then the client hears of it.
  first.FailNext(kUnavailable, 0);
  second.FailNext(kUnavailable, 0);
  const int64_t before = first.started() + second.started();
  const HttpReply refused = Chat(door, 2, true);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(first.started() + second.started(), before + 2);

  // Begun: the stream ends with the error, nothing is repeated.
  first.FailNext(kUnavailable, 3);
  second.FailNext(kUnavailable, 3);
  const HttpReply cut = Chat(door, 5, true);
  // Where the error came before any of it was sent, it is the whole answer.
  EXPECT_THAT(cut.status, AnyOf(200, 503));
  if (cut.status == 200) {
    EXPECT_THAT(cut.body, HasSubstr("w0 "));
  }
  EXPECT_THAT(cut.body, HasSubstr("\"error\""));
  EXPECT_TRUE(cut.whole);
  EXPECT_EQ(first.started() + second.started(), before + 3);
}

TEST(HttpBackendsTest, CallsGoWhereLeastIsToCome) {
  FakeBackend::Options slow;
  slow.tokens_per_s = 5;
  FakeBackend first(slow), second(slow);
  TestDoor door(gateway::Options(), {&first, &second});
  ASSERT_TRUE(FakeBackend::WaitFor(
      [&] { return door.Metric("weir_http_backend_healthy{backend=\"server1\"}") == 1; }));
  std::vector<std::unique_ptr<RawClient>> clients;
  const auto add = [&](int tokens) {
    const int64_t before = first.running() + second.running();
    clients.push_back(std::make_unique<RawClient>(door.address()));
    clients.back()->Send(Post("/v1/chat/completions", ChatBody(tokens, true)));
    EXPECT_TRUE(clients.back()->ReadUntil("data:"));
    EXPECT_EQ(first.running() + second.running(), before + 1);
  };
  add(10'000);  // on one of them; the small ones go to the other
  const bool first_is_large = first.running() == 1;
  for (int i = 0; i < 4; ++i) add(500);
  EXPECT_EQ((first_is_large ? first : second).running(), 1);
  EXPECT_EQ((first_is_large ? second : first).running(), 4);
}

TEST(HttpBackendsTest, TheUnhealthyAreLeftAlone) {
  FakeBackend first({}), second({});
  TestDoor door(gateway::Options(), {&first, &second});
  first.SetServing(false);
  ASSERT_TRUE(FakeBackend::WaitFor([&] {
    return door.Metric("weir_http_backend_healthy{backend=\"server0\"}") == 0 &&
           door.Metric("weir_http_backend_healthy{backend=\"server1\"}") == 1;
  }));
  const int64_t before = first.started();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Chat(door, 2, false).status, 200);
  EXPECT_EQ(first.started(), before);
  second.SetServing(false);
  ASSERT_TRUE(
      FakeBackend::WaitFor([&] { return Ask(door.address(), Get("/ready")).status == 503; }));
  const HttpReply refused = Chat(door, 2, false);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.Field("Retry-After"), "1");
  EXPECT_EQ(Ask(door.address(), Get("/health")).status, 200);
  first.SetServing(true);
  EXPECT_TRUE(
      FakeBackend::WaitFor([&] { return Ask(door.address(), Get("/ready")).status == 200; }));
  EXPECT_EQ(Chat(door, 2, false).status, 200);
}

TEST(HttpBackendsTest, DifferentModels) {
  FakeBackend::Options other;
  other.model = "other";
  FakeBackend first({}), second(other);
  TestDoor door(gateway::Options(), {&first, &second});
  ASSERT_TRUE(FakeBackend::WaitFor([&] {
    const std::string list = Ask(door.address(), Get("/v1/models")).body;
    return list.find("\"fake\"") != std::string::npos &&
           list.find("\"other\"") != std::string::npos;
  }));
  const auto ask = [&](const std::string& model) {
    return Ask(door.address(), Post("/v1/chat/completions", ChatBody(2, false, model)));
  };
  EXPECT_THAT(ask("other").body, HasSubstr("\"model\":\"other\""));
  EXPECT_EQ(second.started(), 1);
  EXPECT_THAT(ask("fake").body, HasSubstr("\"model\":\"fake\""));
  EXPECT_EQ(first.started(), 1);
  EXPECT_EQ(ask("nobody").status, 404);
}

}  // namespace
}  // namespace weir::testing
