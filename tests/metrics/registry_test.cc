#include "metrics/registry.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace weir::metrics {
namespace {

using ::testing::HasSubstr;

// One HTTP/1.0 GET of /metrics; "" when it fails.
std::string Scrape(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string get = "GET /metrics HTTP/1.0\r\n\r\n";
    if (send(fd, get.data(), get.size(), 0) == static_cast<ssize_t>(get.size())) {
      char buffer[4096];
      for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
    }
  }
  close(fd);
  return answer;
}

TEST(RegistryTest, NumbersAppearInTheTextFormat) {
  Registry registry;
  Counter* ok = registry.AddCounter("weir_test_total", "Things.", {{"code", "OK"}});
  Counter* bad = registry.AddCounter("weir_test_total", "Things.", {{"code", "BAD"}});
  ok->Increment();
  ok->Increment(2);
  bad->Increment();
  Gauge* gauge = registry.AddGauge("weir_level", "A level.");
  gauge->Set(7);
  registry.AddHistogram("weir_wait_seconds", "A wait.", {0.1, 1.0})->Observe(0.5);

  EXPECT_EQ(ok->Value(), 3);
  EXPECT_EQ(gauge->Value(), 7);
  const std::string text = registry.Serialize();
  EXPECT_THAT(text, HasSubstr("weir_test_total{code=\"OK\"} 3"));
  EXPECT_THAT(text, HasSubstr("weir_test_total{code=\"BAD\"} 1"));
  EXPECT_THAT(text, HasSubstr("# TYPE weir_level gauge"));
  EXPECT_THAT(text, HasSubstr("weir_wait_seconds_bucket{le=\"0.1\"} 0"));
  EXPECT_THAT(text, HasSubstr("weir_wait_seconds_bucket{le=\"1\"} 1"));
  EXPECT_THAT(text, HasSubstr("process_resident_memory_bytes "));
}

TEST(RegistryTest, FamiliesAreSortedAndNamedOnce) {
  Registry registry;
  registry.AddCounter("weir_b_total", "B.", {{"x", "1"}});
  registry.AddCounter("weir_b_total", "B.", {{"x", "2"}});
  registry.AddGauge("weir_a", "A.");
  const auto families = registry.Families();
  EXPECT_TRUE(std::is_sorted(families.begin(), families.end()));
  EXPECT_EQ(std::count(families.begin(), families.end(),
                       std::make_pair(std::string("weir_b_total"), std::string("B."))),
            1);
  // Every family that is served is listed.
  const std::string text = registry.Serialize();
  for (size_t at = text.find("# TYPE "); at != std::string::npos;
       at = text.find("# TYPE ", at + 1)) {
    const size_t begin = at + 7;
    const std::string name = text.substr(begin, text.find(' ', begin) - begin);
    EXPECT_TRUE(std::any_of(families.begin(), families.end(), [&](const auto& family) {
      return family.first == name;
    })) << name;
  }
}

TEST(RegistryTest, OneNameWithTwoMeaningsIsABug) {
  Registry registry;
  registry.AddGauge("weir_a", "A.");
  EXPECT_DEATH(registry.AddCounter("weir_a", "A."), "weir_a");
}

TEST(RegistryTest, AliasesRepeatSeriesUnderOtherNames) {
  Registry registry;
  registry.AddCounter("weir_ended_total", "Ended.", {{"outcome", "stop"}, {"x", "1"}})
      ->Increment(4);
  registry.AddCounter("weir_ended_total", "Ended.", {{"outcome", "cancelled"}, {"x", "1"}})
      ->Increment(2);
  registry.AddCounter("weir_ended_total", "Ended.", {{"outcome", "deadline"}, {"x", "1"}})
      ->Increment(3);
  Histogram* wait = registry.AddHistogram("weir_wait_seconds", "A wait.", {0.1, 1.0});
  const Labels model = {{"model_name", "m"}};
  registry.AddAlias({"other:wait_seconds", "Their wait.", "weir_wait_seconds", {}, model});
  registry.AddAlias({"other:success_total",
                     "Theirs.",
                     "weir_ended_total",
                     {{"outcome", "stop"}},
                     {{"finished_reason", "stop"}}});
  for (const char* outcome : {"cancelled", "deadline"}) {
    registry.AddAlias({"other:success_total",
                       "Theirs.",
                       "weir_ended_total",
                       {{"outcome", outcome}},
                       {{"finished_reason", "abort"}}});
  }
  wait->Observe(0.5);  // after the alias: it is no copy

  const std::string text = registry.Serialize();
  EXPECT_THAT(text, HasSubstr("# HELP other:wait_seconds Their wait."));
  EXPECT_THAT(text, HasSubstr("other:wait_seconds_bucket{model_name=\"m\",le=\"1\"} 1"));
  EXPECT_THAT(text, HasSubstr("weir_wait_seconds_bucket{le=\"1\"} 1"));
  EXPECT_THAT(text, HasSubstr("other:success_total{x=\"1\",finished_reason=\"stop\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("other:success_total{x=\"1\",finished_reason=\"abort\"} 5\n"));
  size_t types = 0;
  for (size_t at = 0;
       (at = text.find("# TYPE other:success_total counter", at)) != std::string::npos; ++at) {
    ++types;
  }
  EXPECT_EQ(types, 1u);

  const absl::StatusOr<int> port = registry.Expose("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_THAT(Scrape(*port), HasSubstr("other:wait_seconds_count{model_name=\"m\"} 1"));
}

TEST(RegistryTest, AnAliasOfNothingIsABug) {
  Registry registry;
  EXPECT_DEATH(registry.AddAlias({"other:a", "A.", "weir_a", {}, {}}), "weir_a");
}

TEST(RegistryTest, ServesOnAFreePortAndRefusesATakenOne) {
  Registry registry;
  registry.AddGauge("weir_level", "A level.")->Set(5);
  const absl::StatusOr<int> port = registry.Expose("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  const std::string answer = Scrape(*port);
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("weir_level 5"));

  Registry other;
  const std::string taken = "127.0.0.1:" + std::to_string(*port);
  const absl::StatusOr<int> refused = other.Expose(taken);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(taken));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("in use"));
}

}  // namespace
}  // namespace weir::metrics
