// What clients that mean well get from the HTTP door.
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "gateway/authorizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/http_test_support.h"

namespace weir::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(HttpServerTest, OneConnectionCarriesManyRequestsAlsoAtOnce) {
  TestDoor door;
  RawClient client(door.address());
  // Four in one packet, a generation among them; answered in order.
  client.Send(Get("/health") + Post("/v1/chat/completions", ChatBody(3, false)) +
              Post("/v1/chat/completions", ChatBody(2, true)) + Get("/version"));
  EXPECT_EQ(client.Read().body, "{\"status\":\"ok\"}");
  EXPECT_THAT(client.Read().body, HasSubstr("w0 w1 w2 "));
  const HttpReply stream = client.Read();
  EXPECT_EQ(stream.Field("Content-Type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(stream.Field("X-Accel-Buffering"), "no");
  EXPECT_EQ(stream.Field("Cache-Control"), "no-store");
  EXPECT_THAT(stream.body, AllOf(HasSubstr("w1 "), HasSubstr("data: [DONE]\n\n")));
  EXPECT_TRUE(stream.whole);
  EXPECT_THAT(client.Read().body, HasSubstr("version"));
  EXPECT_EQ(door.Metric("weir_http_connections"), 1);
  EXPECT_EQ(door.Metric("weir_http_requests_total{path=\"/v1/chat/completions\",status=\"200\"}"),
            2);
}

TEST(HttpServerTest, BodiesInChunksAndInPieces) {
  TestDoor door;
  RawClient client(door.address());
  const std::string body = ChatBody(2, false);
  const std::string head =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
  std::ostringstream chunked;
  for (size_t i = 0; i < body.size(); i += 7) {
    const std::string piece = body.substr(i, 7);
    chunked << std::hex << piece.size() << ";extension=1\r\n" << piece << "\r\n";
  }
  chunked << "0\r\nTrailer: x\r\n\r\n";
  for (const char c : head + chunked.str()) client.Send(std::string(1, c));
  EXPECT_THAT(client.Read().body, HasSubstr("w0 w1 "));
  client.Send(Get("/health"));
  EXPECT_EQ(client.Read().status, 200);
}

TEST(HttpServerTest, MethodsAndPaths) {
  TestDoor door;
  const auto ask = [&door](const std::string& request) { return Ask(door.address(), request); };
  const HttpReply wrong_method = ask("DELETE /v1/models HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(wrong_method.status, 405);
  EXPECT_EQ(wrong_method.Field("Allow"), "GET, HEAD, OPTIONS");
  EXPECT_EQ(ask(Get("/v1/chat/completions")).Field("Allow"), "POST, OPTIONS");
  EXPECT_THAT(ask(Post("/v1/embeddings", "{}")).body, HasSubstr("/v1/embeddings"));
  EXPECT_EQ(ask(Get("/v1/models/other")).status, 404);
  EXPECT_THAT(ask(Get("/v1/models/fake?x=1")).body, HasSubstr("\"id\":\"fake\""));
  EXPECT_THAT(ask(Get("/metrics")).body, HasSubstr("weir_http_connections"));
  EXPECT_THAT(ask(Post("/tokenize", "{\"prompt\":\"abc\"}")).body, HasSubstr("[0,1,2]"));
  EXPECT_EQ(ask(Post("/detokenize", "{\"tokens\":[1]}")).status, 501);  // the fake has none

  RawClient client(door.address());
  client.Send("HEAD /health HTTP/1.1\r\nHost: t\r\n\r\n" + Get("/health"));
  const HttpReply head = client.Read(/*head_only=*/true);
  EXPECT_EQ(head.Field("Content-Length"), "15");
  EXPECT_EQ(client.Read().body, "{\"status\":\"ok\"}");
  // HTTP/1.0: no chunks, and the connection ends.
  RawClient old(door.address());
  old.Send("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " +
           std::to_string(ChatBody(2, true).size()) + "\r\n\r\n" + ChatBody(2, true));
  EXPECT_TRUE(old.ReadUntil("data: [DONE]\n\n"));
  EXPECT_TRUE(old.ClosesWithin(milliseconds(2000)));
}

TEST(HttpServerTest, ThePage) {
  TestDoor door;
  const HttpReply page = Ask(door.address(), Get("/"));
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.Field("Content-Security-Policy"), HasSubstr("default-src 'none'"));
  const HttpReply same =
      Ask(door.address(), Get("/", "If-None-Match: " + page.Field("ETag") + "\r\n"));
  EXPECT_EQ(same.status, 304);
  EXPECT_EQ(same.body, "");
  EXPECT_EQ(Ask(door.address(), Get("/page/../../etc/passwd")).status, 404);
}

TEST(HttpServerTest, PagesOfOtherOrigins) {
  gateway::Options options;
  options.cors = "https://a.example, https://b.example";
  TestDoor door(FakeBackend::Options(), options);
  const std::string preflight =
      "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: t\r\nOrigin: https://ORIGIN.example\r\n"
      "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: "
      "authorization\r\n\r\n";
  const auto from = [&](const std::string& origin) {
    std::string request = preflight;
    return Ask(door.address(), request.replace(request.find("ORIGIN"), 6, origin));
  };
  EXPECT_EQ(from("b").status, 204);
  EXPECT_EQ(from("b").Field("Access-Control-Allow-Origin"), "https://b.example");
  EXPECT_EQ(from("b").Field("Access-Control-Allow-Headers"), "authorization");
  EXPECT_EQ(from("c").Field("Access-Control-Allow-Origin"), "");
  const HttpReply models = Ask(door.address(), Get("/v1/models", "Origin: https://a.example\r\n"));
  EXPECT_EQ(models.Field("Access-Control-Allow-Origin"), "https://a.example");
  EXPECT_EQ(models.Field("Vary"), "Origin");
}

TEST(HttpServerTest, NamesOfRequestsAndTheAccessLog) {
  const std::string path = ::testing::TempDir() + "/weir_access_" + std::to_string(getpid());
  gateway::Options options;
  options.access_log = path;
  {
    TestDoor door(FakeBackend::Options(), options);
    const HttpReply reply =
        Ask(door.address(), Post("/v1/chat/completions", ChatBody(3, true),
                                 "X-Request-ID: mine-1\r\ntraceparent: 00-ab-cd-01\r\n"));
    EXPECT_EQ(reply.Field("x-request-id"), "mine-1");
    const auto metadata = door.backend->last_metadata();
    EXPECT_EQ(metadata.find("x-request-id")->second, "mine-1");
    EXPECT_EQ(metadata.find("traceparent")->second, "00-ab-cd-01");
    const HttpReply other = Ask(door.address(), Get("/health", "X-Request-ID: a b\"\r\n"));
    EXPECT_EQ(other.Field("x-request-id").size(), 24u);
  }
  std::ifstream file(path);
  std::stringstream lines;
  lines << file.rdbuf();
  EXPECT_THAT(
      lines.str(),
      AllOf(HasSubstr("\"id\":\"mine-1\",\"method\":\"POST\",\"path\":\"/v1/chat/completions\","
                      "\"status\":200"),
            HasSubstr("\"prompt_tokens\":3,\"completion_tokens\":3,\"key\":null,"
                      "\"client\":\"127.0.0.1\"}\n"),
            Not(HasSubstr("secret")), Not(HasSubstr("w0"))));
  std::remove(path.c_str());
}

TEST(HttpServerTest, AWaitingStreamIsKeptOpen) {
  gateway::Options options;
  options.comment_us = 30'000;
  FakeBackend::Options slow;
  slow.tokens_per_s = 2;
  TestDoor door(slow, options);
  RawClient client(door.address());
  client.Send(Post("/v1/chat/completions", ChatBody(1000, true)));
  EXPECT_TRUE(client.ReadUntil(": keep-alive\n\n"));
}

// Whoever leaves stops the work for him, whether anything was being written or not.
TEST(HttpServerTest, ClientsThatLeaveCancel) {
  FakeBackend::Options slow;
  slow.tokens_per_s = 0.01;  // nothing to write
  TestDoor door(slow);
  const auto leaves = [&](bool stream, bool half) {
    const int64_t before = door.backend->cancelled();
    RawClient client(door.address());
    client.Send(Post("/v1/chat/completions", ChatBody(1000, stream)));
    EXPECT_TRUE(FakeBackend::WaitFor([&] { return door.backend->running() == 1; }));
    const auto begin = std::chrono::steady_clock::now();
    if (half) {
      client.CloseSending();
    } else {
      client.Close();
    }
    EXPECT_TRUE(FakeBackend::WaitFor([&] { return door.backend->running() == 0; }));
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(1000));
    EXPECT_EQ(door.backend->cancelled(), before + 1);
  };
  leaves(true, false);
  leaves(false, false);
  leaves(true, true);
  EXPECT_TRUE(door.AllGone());
  EXPECT_EQ(door.Metric("weir_http_requests_total{path=\"/v1/chat/completions\",status=\"499\"}"),
            3);
}

TEST(HttpServerTest, DrainingFinishesWhatRuns) {
  FakeBackend::Options options;
  options.tokens_per_s = 50;
  TestDoor door(options);
  RawClient running(door.address()), idle(door.address()), busy(door.address());
  idle.Send(Get("/health"));
  EXPECT_EQ(idle.Read().status, 200);
  running.Send(Post("/v1/chat/completions", ChatBody(20, true)));
  ASSERT_TRUE(running.ReadUntil("w0 "));
  door.gateway->BeginDrain();
  EXPECT_TRUE(idle.ClosesWithin(milliseconds(2000)));
  const HttpReply ready = Ask(door.address(), Get("/ready"));
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.Field("Connection"), "close");
  const HttpReply late = Ask(door.address(), Post("/v1/chat/completions", ChatBody(2, false)));
  EXPECT_EQ(late.status, 503);
  EXPECT_EQ(late.Field("Retry-After"), "1");
  EXPECT_EQ(Ask(door.address(), Get("/health")).status, 200);
  EXPECT_FALSE(door.gateway->WaitIdle(1000));
  EXPECT_TRUE(running.ReadUntil("data: [DONE]\n\n"));
  EXPECT_TRUE(door.gateway->WaitIdle(5'000'000));
  EXPECT_TRUE(running.ClosesWithin(milliseconds(2000)));
  EXPECT_EQ(door.backend->cancelled(), 0);
}

class OneKey final : public gateway::Authorizer {
 public:
  class OneUse final : public Use {
   public:
    explicit OneUse(OneKey* key) : key_(key) {}
    ~OneUse() override { ++key_->ended; }
    void AddTokens(int64_t tokens) override { key_->tokens += tokens; }

   private:
    OneKey* const key_;
  };
  std::variant<std::string, gateway::ApiError> Check(std::string_view authorization,
                                                     std::string_view) override {
    if (authorization == "Bearer good") return std::string("alice");
    return gateway::InvalidApiKey("This key is not known.");
  }
  std::variant<std::unique_ptr<Use>, gateway::ApiError> Admit(std::string_view) override {
    if (full) return gateway::HttpError(429, "Too many requests.", 1500);
    return std::make_unique<OneUse>(this);
  }
  std::atomic<bool> full{false};
  std::atomic<int64_t> tokens{0}, ended{0};
};

TEST(HttpServerTest, KeysAndTheirLimits) {
  OneKey key;
  TestDoor door(FakeBackend::Options(), gateway::Options(), &key);
  const auto chat = [&](const std::string& fields) {
    return Ask(door.address(), Post("/v1/chat/completions", ChatBody(5, false), fields));
  };
  EXPECT_EQ(chat("").status, 401);
  EXPECT_EQ(chat("Authorization: Bearer bad\r\n").Field("WWW-Authenticate"), "Bearer");
  EXPECT_EQ(Ask(door.address(), Get("/v1/models")).status, 401);
  EXPECT_EQ(Ask(door.address(), Get("/health")).status, 200);
  EXPECT_EQ(door.backend->started(), 0);
  EXPECT_EQ(chat("Authorization: Bearer good\r\n").status, 200);
  EXPECT_TRUE(FakeBackend::WaitFor([&] { return key.ended == 1; }));
  EXPECT_EQ(key.tokens, 8);  // 3 of the prompt, 5 of the answer
  key.full = true;
  const HttpReply refused = chat("Authorization: Bearer good\r\n");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.Field("Retry-After"), "2");
}

TEST(HttpServerTest, LargeBodiesAreAskedForFirst) {
  TestDoor door;
  RawClient client(door.address());
  const std::string body = ChatBody(2, false);
  client.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  ASSERT_TRUE(client.ReadUntil("HTTP/1.1 100 Continue\r\n\r\n"));
  client.Read();
  client.Send(body);
  EXPECT_EQ(client.Read().status, 200);
}

}  // namespace
}  // namespace weir::testing
