// What clients that mean ill, or are broken, can do: they are refused in clear words, memory stays
// bounded, and others do not notice.
#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gateway/http_test_support.h"

namespace weir::testing {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using ::testing::HasSubstr;

std::string Chunked(const std::string& chunks) {
  return "POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks;
}

// The server serves others at once.
void ExpectServes(const TestDoor& door) {
  const auto begin = Clock::now();
  EXPECT_EQ(Ask(door.address(), Get("/health")).status, 200);
  EXPECT_EQ(Ask(door.address(), Post("/v1/chat/completions", ChatBody(2, false))).status, 200);
  EXPECT_LT(Clock::now() - begin, milliseconds(2000));
}

TEST(HttpHostileTest, WhatIsNoRequestIsRefusedAndTheConnectionEnds) {
  gateway::Options options;
  options.max_body_bytes = 64 << 10;
  TestDoor door(FakeBackend::Options(), options);
  const std::string many(64 << 10, 'x');
  std::string flood = "GET /health HTTP/1.1\r\nHost: t\r\n";
  for (int i = 0; i < 10'000; ++i) flood += "X-" + std::to_string(i) + ": y\r\n";
  const std::vector<std::pair<std::string, int>> cases = {
      {"garbage\r\n\r\n", 400},
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + many, 400},  // TLS
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"GET /health HTTP/3.0\r\n\r\n", 505},
      {"GET /health HTTP/1.1\r\n\r\n", 400},  // no host
      {"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"GET /health HTTP/1.1\nHost: a\n\n", 505},
      {"GET /health HTTP/1.1\r\nHost: t\r\nBad name: x\r\n\r\n", 400},
      {std::string("GET /he\0alth HTTP/1.1\r\nHost: t\r\n\r\n", 38), 400},
      {"GET /" + many + " HTTP/1.1\r\nHost: t\r\n\r\n", 431},
      {"GET /health HTTP/1.1\r\nHost: t\r\n" + many + ": x\r\n\r\n", 431},
      {"GET /health HTTP/1.1\r\nHost: t\r\nX: " + many + "\r\n\r\n", 431},
      {flood, 431},
      {"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n", 413},
      {"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
       400},
      {"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n"
       "Transfer-Encoding: chunked\r\n\r\n",
       400},
      {"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
      {"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked, x\r\n\r\n", 501},
      {Chunked("zz\r\n"), 400},
      {Chunked("5\r\nhelloXXXX"), 400},
      {Chunked("ffffffffffffffffff\r\n"), 400},
      {Chunked("20000\r\n"), 413},
      {Chunked("1;" + many), 400},
      {Chunked("1\r\nx\r\n0\r\n" + many), 400},  // trailers without end
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    RawClient client(door.address());
    client.Send(cases[i].first);
    const HttpReply reply = client.Read();
    EXPECT_EQ(reply.status, cases[i].second) << "case " << i << ": " << reply.head << reply.body;
    EXPECT_THAT(reply.body, HasSubstr("\"error\"")) << "case " << i;
    EXPECT_EQ(reply.Field("Connection"), "close") << "case " << i;
    client.CloseSending();
    EXPECT_TRUE(client.ClosesWithin(milliseconds(3000))) << "case " << i;
  }
  ExpectServes(door);
  EXPECT_TRUE(door.AllGone());
  EXPECT_EQ(door.backend->started(), 1);
}

TEST(HttpHostileTest, BodiesThatAreNoJson) {
  TestDoor door;
  RawClient client(door.address());  // one connection: these are requests, only wrong ones
  const std::string deep(1 << 20, '[');
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("nonsense"), deep,
        "{\"messages\":" + deep + "}", std::string("{\"model\":\"\xff\xfe\"}"),
        std::string("{\"a\":\"\\ud800\"}"), std::string(1 << 20, '\0'),
        std::string("{\"max_tokens\":1e999999}")}) {
    client.Send(Post("/v1/chat/completions", body));
    const HttpReply reply = client.Read();
    EXPECT_EQ(reply.status, 400) << reply.head;
    EXPECT_THAT(reply.body, HasSubstr("invalid_request_error"));
  }
  client.Send(Post("/v1/chat/completions", ChatBody(1, false)));
  EXPECT_EQ(client.Read().status, 200);
}

TEST(HttpHostileTest, AHundredMegabytes) {
  TestDoor door;
  ExpectServes(door);
  const int64_t before = ResidentBytes();
  const std::string megabyte(1 << 20, 'x');
  RawClient client(door.address());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 104857600\r\n\r\n");
  for (int i = 0; i < 100; ++i) {
    if (!client.Send(megabyte)) break;
  }
  EXPECT_EQ(client.Read().status, 413);
  // The same in chunks: taken until the limit.
  RawClient chunks(door.address());
  chunks.Send(Chunked(""));
  for (int i = 0; i < 100; ++i) {
    if (!chunks.Send("100000\r\n" + megabyte + "\r\n")) break;
  }
  EXPECT_EQ(chunks.Read().status, 413);
  EXPECT_LT(ResidentBytes() - before, 64 << 20);
  ExpectServes(door);
}

TEST(HttpHostileTest, ManyLargeBodiesShareABudget) {
  gateway::Options options;
  options.max_body_bytes = 4 << 20;
  options.max_bodies_bytes = 8 << 20;
  TestDoor door(FakeBackend::Options(), options);
  const std::string most =
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 4194304\r\n\r\n" +
      std::string(3 << 20, ' ');
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<RawClient>(door.address()));
    clients.back()->Send(most);
  }
  // One of them was too much. The others wait for their rest.
  EXPECT_TRUE(FakeBackend::WaitFor([&] {
    return door.Metric("weir_http_requests_total{path=\"/v1/completions\",status=\"503\"}") == 1;
  }));
  ExpectServes(door);
  clients.clear();
  EXPECT_TRUE(door.AllGone());
}

TEST(HttpHostileTest, TheSlowAreNotWaitedFor) {
  gateway::Options options;
  options.header_us = options.body_us = options.idle_us = 300'000;
  TestDoor door(FakeBackend::Options(), options);
  std::vector<std::unique_ptr<RawClient>> clients;
  const auto add = [&](const std::string& beginning) {
    clients.push_back(std::make_unique<RawClient>(door.address()));
    clients.back()->Send(beginning);
  };
  for (int i = 0; i < 60; ++i) add("GET /health HTTP/1.1\r\nX-Slow: ");
  for (int i = 0; i < 60; ++i) {
    add("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{");
  }
  for (int i = 0; i < 60; ++i) add("");
  for (int drip = 0; drip < 8; ++drip) {
    for (size_t i = 0; i < 120; ++i) clients[i]->Send("x");
    ExpectServes(door);
    std::this_thread::sleep_for(milliseconds(50));
  }
  for (size_t i = 0; i < clients.size(); ++i) {
    if (i < 120) {
      EXPECT_EQ(clients[i]->Read().status, 408) << i;
    }
    clients[i]->CloseSending();
    EXPECT_TRUE(clients[i]->ClosesWithin(milliseconds(4000))) << i;
  }
  EXPECT_TRUE(door.AllGone());
}

TEST(HttpHostileTest, WhoDoesNotReadIsDropped) {
  gateway::Options options;
  options.write_us = 300'000;
  FakeBackend::Options large;
  large.text = [](int) { return std::string(16 << 10, 'x'); };
  TestDoor door(large, options);
  ExpectServes(door);
  const int64_t before = ResidentBytes();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(std::make_unique<RawClient>(door.address()));
    clients.back()->SetReceiveBuffer(4096);
    clients.back()->Send(Post("/v1/chat/completions", ChatBody(1'000'000, true)));
  }
  EXPECT_TRUE(FakeBackend::WaitFor([&] { return door.backend->running() == 4; }));
  ExpectServes(door);
  EXPECT_TRUE(FakeBackend::WaitFor([&] { return door.backend->running() == 0; }));
  EXPECT_EQ(door.backend->cancelled(), 4);
  EXPECT_LT(ResidentBytes() - before, 128 << 20);
  EXPECT_TRUE(door.AllGone());
}

TEST(HttpHostileTest, HalfClosedAndPipelinedGarbage) {
  TestDoor door;
  RawClient half(door.address());
  half.Send(Get("/health"));
  half.CloseSending();
  EXPECT_EQ(half.Read().status, 200);
  EXPECT_TRUE(half.ClosesWithin(milliseconds(2000)));

  RawClient unfinished(door.address());
  unfinished.Send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{");
  unfinished.CloseSending();
  EXPECT_TRUE(unfinished.ClosesWithin(milliseconds(2000)));

  RawClient garbage(door.address());
  garbage.Send(Post("/v1/chat/completions", ChatBody(2, true)) + std::string(1 << 20, '\xff'));
  EXPECT_TRUE(garbage.Read().whole);
  EXPECT_EQ(garbage.Read().status, 400);

  // Requests without end behind a running one: a bounded part is read.
  FakeBackend::Options slow;
  slow.tokens_per_s = 0.01;
  TestDoor waiting(slow);
  const int64_t before = ResidentBytes();
  RawClient greedy(waiting.address());
  greedy.Send(Post("/v1/chat/completions", ChatBody(1000, true)));
  std::thread sender([&] {
    const std::string requests = [] {
      std::string all;
      while (all.size() < (4 << 20)) all += Get("/health");
      return all;
    }();
    greedy.Send(requests);
  });
  EXPECT_TRUE(FakeBackend::WaitFor([&] { return waiting.backend->running() == 1; }));
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_LT(ResidentBytes() - before, 32 << 20);
  EXPECT_EQ(Ask(waiting.address(), Get("/health")).status, 200);
  waiting.gateway.reset();
  sender.join();
}

TEST(HttpHostileTest, ConnectionsHaveALimit) {
  gateway::Options options;
  options.max_connections = 8;
  TestDoor door(FakeBackend::Options(), options);
  ASSERT_TRUE(door.AllGone());
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<RawClient>(door.address()));
    clients.back()->Send(Get("/health"));
    EXPECT_EQ(clients.back()->Read().status, 200);
  }
  RawClient late(door.address());
  EXPECT_EQ(late.Read().status, 503);
  EXPECT_EQ(door.Metric("weir_http_connections_total{outcome=\"refused\"}"), 1);
  clients[0]->Send(Get("/health"));
  EXPECT_EQ(clients[0]->Read().status, 200);
  clients.clear();
  EXPECT_TRUE(door.AllGone());
  ExpectServes(door);
}

TEST(HttpHostileTest, Tls) {
  const std::string folder = ::testing::TempDir() + "/weir_tls_" + std::to_string(getpid());
  const std::string make =
      "mkdir -p " + folder + " && cd " + folder +
      " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
      " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
      " 2> /dev/null";
  ASSERT_EQ(std::system(make.c_str()), 0);
  gateway::Options options;
  options.tls_cert = folder + "/cert.pem";
  options.tls_key = folder + "/key.pem";
  options.header_us = 1'000'000;
  const auto curl = [&](const TestDoor& door, const std::string& more) {
    const std::string command = "curl -s --max-time 5 --cacert " + folder + "/cert.pem " + more +
                                " https://" + door.address() + "/ready > /dev/null";
    return std::system(command.c_str());
  };
  {
    TestDoor door(FakeBackend::Options(), options);
    EXPECT_EQ(curl(door, ""), 0);
    EXPECT_EQ(curl(door, "https://" + door.address() + "/v1/models"), 0);  // keep-alive
    RawClient plain(door.address()), garbage(door.address()), silent(door.address());
    plain.Send(Get("/health"));
    EXPECT_TRUE(plain.ClosesWithin(milliseconds(3000)));
    garbage.Send(std::string("\x16\x03\x01\xff\xff", 5) + std::string(100'000, '\xee'));
    EXPECT_TRUE(garbage.ClosesWithin(milliseconds(3000)));
    EXPECT_TRUE(silent.ClosesWithin(milliseconds(3000)));
    EXPECT_EQ(curl(door, ""), 0);
    EXPECT_TRUE(door.gateway->Reload().ok());
    EXPECT_EQ(curl(door, ""), 0);
  }
  options.client_ca = options.tls_cert;
  TestDoor door(FakeBackend::Options(), options);
  EXPECT_NE(curl(door, ""), 0);
  EXPECT_EQ(curl(door, "--cert " + folder + "/cert.pem --key " + folder + "/key.pem"), 0);
  options.tls_key = folder + "/none.pem";
  const auto refused = gateway::Gateway::Start(options, {});
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("none.pem"));
  std::system(("rm -r " + folder).c_str());
}

}  // namespace
}  // namespace weir::testing
