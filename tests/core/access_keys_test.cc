#include "core/access_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/clock.h"
#include "core/error_details.h"

namespace weir {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::string Line(const std::string& name, std::string_view secret, KeyLimits limits = {}) {
  return FormatAccessKey({name, DigestOf(secret), limits}) + "\n";
}

class AccessKeysTest : public ::testing::Test {
 protected:
  ~AccessKeysTest() override { std::remove(path_.c_str()); }

  void Write(const std::string& text) { std::ofstream(path_, std::ios::trunc) << text; }
  std::unique_ptr<AccessKeys> Load() {
    absl::StatusOr<std::unique_ptr<AccessKeys>> keys = AccessKeys::Load(path_, &clock_);
    EXPECT_TRUE(keys.ok()) << keys.status();
    return *std::move(keys);
  }

  const std::string path_ =
      absl::StrCat(::testing::TempDir(), "access_keys_", reinterpret_cast<uintptr_t>(this));
  VirtualClock clock_;
};

TEST(AccessKeyFile, KnowsTheDigestOfAKnownText) {
  // FIPS 180-4's example for "abc".
  const auto keys = ParseAccessKeys(
      "# people\n\n alice\tsha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD "
      "concurrent=4 tokens-per-minute=100 requests-per-minute=7\r\n");
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 1u);
  EXPECT_EQ(keys->front().name, "alice");
  EXPECT_EQ(keys->front().digest, DigestOf("abc"));
  EXPECT_EQ(FormatAccessKey(keys->front()),
            "alice sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad "
            "requests-per-minute=7 tokens-per-minute=100 concurrent=4");
}

TEST(AccessKeyFile, NamesTheLineThatIsWrong) {
  const std::string good = Line("a", "one");
  EXPECT_THAT(Message(ParseAccessKeys(good + "b secret").status()),
              StartsWith("line 2: the second word must be sha256:"));
  EXPECT_THAT(Message(ParseAccessKeys("alone").status()), HasSubstr("NAME sha256:HEX"));
  EXPECT_THAT(Message(ParseAccessKeys(good + Line("a", "two")).status()),
              HasSubstr("line 2: the name a is given twice"));
  EXPECT_THAT(Message(ParseAccessKeys(good + Line("b", "one")).status()),
              HasSubstr("line 2: the same key is given twice"));
  for (const char* limit : {" concurrent=0", " concurrent=-1", " concurrent", " concurrent=2x",
                            " tokens-per-hour=3", " requests-per-minute=99999999999999999999"}) {
    std::string line = good;
    line.insert(line.size() - 1, limit);
    EXPECT_FALSE(ParseAccessKeys(line).ok()) << line;
  }
}

TEST(AccessKeyFile, NewSecretsDiffer) {
  const std::string secret = NewSecret();
  EXPECT_EQ(secret.size(), 48u);
  EXPECT_THAT(secret, StartsWith("weir-"));
  EXPECT_NE(secret, NewSecret());
}

TEST(AccessKeyFile, BearerIsTheOnlyScheme) {
  EXPECT_EQ(BearerSecret("Bearer abc"), "abc");
  EXPECT_EQ(BearerSecret("bEARER  abc "), "abc");
  for (const char* wrong : {"", "Bearer", "Bearer ", "Basic abc", "abc", "Bearerabc"}) {
    EXPECT_EQ(BearerSecret(wrong), "") << wrong;
  }
}

TEST_F(AccessKeysTest, OnlyKnownKeysPass) {
  Write(Line("alice", "one") + Line("bob", "two"));
  const auto keys = Load();
  EXPECT_EQ(keys->Check("one").value(), "alice");
  EXPECT_EQ(keys->Check("two").value(), "bob");
  EXPECT_EQ(keys->Check("three").status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(keys->Check("").status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(AccessKeys::Load(path_ + ".none", &clock_).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(AccessKeysTest, LimitsWhatRunsAtOnce) {
  Write(Line("alice", "one", {.concurrent = 2}) + Line("bob", "two", {.concurrent = 1}));
  const auto keys = Load();
  std::optional<AccessKeys::Use> first = keys->Admit("one").value();
  AccessKeys::Use second = keys->Admit("one").value();
  EXPECT_EQ(second.name(), "alice");
  const absl::Status refused = keys->Admit("one").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused), HasSubstr("\"alice\" has used its 2 requests at once"));
  EXPECT_EQ(GetErrorDetails(refused).exhausted_resource, "key:requests at once");
  EXPECT_TRUE(keys->Admit("two").ok());  // another's limit is another's
  first.reset();
  EXPECT_TRUE(keys->Admit("one").ok());
}

TEST_F(AccessKeysTest, RequestsOfAMinuteComeBackEvenly) {
  Write(Line("alice", "one", {.requests_per_minute = 6}));
  const auto keys = Load();
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(keys->Admit("one").ok());
  EXPECT_EQ(GetErrorDetails(keys->Admit("one").status()).retry_after_ms.value_or(0), 10'001);
  clock_.AdvanceUs(9'000'000);
  EXPECT_FALSE(keys->Admit("one").ok());
  clock_.AdvanceUs(1'100'000);
  EXPECT_TRUE(keys->Admit("one").ok());
  EXPECT_FALSE(keys->Admit("one").ok());
  clock_.AdvanceUs(int64_t{3600} * 1'000'000);  // an hour saves up one minute's worth
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(keys->Admit("one").ok());
  EXPECT_FALSE(keys->Admit("one").ok());
}

TEST_F(AccessKeysTest, TokensMayBeOverdrawnAndAreWaitedFor) {
  Write(Line("alice", "one", {.tokens_per_minute = 600}));
  const auto keys = Load();
  keys->Admit("one").value().AddTokens(1199);
  const absl::Status refused = keys->Admit("one").status();
  EXPECT_THAT(Message(refused), HasSubstr("600 tokens per minute"));
  EXPECT_EQ(GetErrorDetails(refused).retry_after_ms.value_or(0), 60'001);
  clock_.AdvanceUs(60'100'000);
  EXPECT_TRUE(keys->Admit("one").ok());
}

TEST_F(AccessKeysTest, AChangedFileIsReadAndAWrongOneIsNot) {
  Write(Line("alice", "one"));
  const auto keys = Load();
  Write(Line("alice", "two") + Line("bob", "three"));
  EXPECT_TRUE(keys->Check("one").ok());  // looked at once a second
  clock_.AdvanceUs(1'000'001);
  EXPECT_FALSE(keys->Check("one").ok());
  EXPECT_EQ(keys->Check("three").value(), "bob");
  Write("nonsense");
  EXPECT_THAT(Message(keys->Reload()), HasSubstr("line 1"));
  EXPECT_EQ(keys->Check("two").value(), "alice");
  EXPECT_EQ(keys->num_keys(), 2);
}

TEST_F(AccessKeysTest, AReloadForgivesNothing) {
  Write(Line("alice", "one", {.requests_per_minute = 1, .concurrent = 1}));
  const auto keys = Load();
  const AccessKeys::Use use = keys->Admit("one").value();
  ASSERT_TRUE(keys->Reload().ok());
  EXPECT_THAT(Message(keys->Admit("one").status()), HasSubstr("requests at once"));
}

TEST_F(AccessKeysTest, ManyThreadsNeverExceedALimit) {
  Write(Line("alice", "one", {.concurrent = 3}));
  const auto keys = Load();
  std::atomic<int> running{0}, most{0}, admitted{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        absl::StatusOr<AccessKeys::Use> use = keys->Admit("one");
        if (!use.ok()) continue;
        const int now = ++running;
        ++admitted;
        int seen = most.load();
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        --running;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most.load(), 3);
  EXPECT_GT(admitted.load(), 2000);
  EXPECT_TRUE(keys->Admit("one").ok());  // all were given back
}

}  // namespace
}  // namespace weir
