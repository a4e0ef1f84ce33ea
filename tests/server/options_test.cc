#include "server/options.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <set>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/gateway_options.h"

namespace weir::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class OptionsFileTest : public ::testing::Test {
 protected:
  ~OptionsFileTest() override { std::remove(path_.c_str()); }

  absl::Status Apply(const std::string& yaml) {
    std::ofstream(path_, std::ios::binary) << yaml;
    return ApplyYamlFile(path_, OptionTable(&options_));
  }
  std::string Message(const std::string& yaml) { return std::string(Apply(yaml).message()); }
  // "file:line"
  std::string At(int line) { return path_ + ":" + std::to_string(line) + ": "; }

  std::string path_ = ::testing::TempDir() + "/weir_options_" + std::to_string(getpid()) + ".yaml";
  ServerOptions options_;
};

TEST_F(OptionsFileTest, SetsEveryKind) {
  const absl::Status status = Apply(
      "# a comment\n"
      "model: /models/tiny\n"
      "grpc: \"[::]:0\"\n"
      "memory: 1.5 GiB\n"
      "slots: 12\n"
      "drain-time: 1m\n"
      "reflection: false\n"
      "dtype: bf16\n"
      "metrics: \"\"\n");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(options_.model, "/models/tiny");
  EXPECT_EQ(options_.grpc, "[::]:0");
  EXPECT_EQ(options_.memory_bytes, int64_t{3} << 29);
  EXPECT_EQ(options_.slots, 12);
  EXPECT_EQ(options_.drain_us, 60'000'000);
  EXPECT_FALSE(options_.reflection);
  EXPECT_EQ(options_.dtype, "bf16");
  EXPECT_EQ(options_.metrics, "");
}

TEST_F(OptionsFileTest, EmptyFilesSetNothing) {
  EXPECT_TRUE(Apply("").ok());
  EXPECT_TRUE(Apply("# nothing here\n").ok());
}

TEST_F(OptionsFileTest, NamesEveryMistakeWithItsLine) {
  const std::string message = Message(
      "slots: 3\n"
      "slot: 4\n"
      "drain-time: soon\n"
      "dtype: int8\n"
      "slots: 5\n"
      "threads: [1, 2]\n"
      "completely-different: 1\n");
  EXPECT_THAT(message, HasSubstr(At(2) + "unknown key \"slot\"; did you mean \"slots\"?"));
  EXPECT_THAT(message, HasSubstr(At(3) + "drain-time: \"soon\" is no duration"));
  EXPECT_THAT(message, HasSubstr(At(4) + "dtype: \"int8\" is none of auto, f32, bf16"));
  EXPECT_THAT(message, HasSubstr(At(5) + "slots: already set on line 1"));
  EXPECT_THAT(message, HasSubstr(At(6) + "threads: must be one value (integer), is a list"));
  EXPECT_THAT(message, AllOf(HasSubstr(At(7) + "unknown key \"completely-different\""),
                             Not(HasSubstr("did you mean \"d"))));
}

TEST_F(OptionsFileTest, RefusesValuesOutOfRange) {
  EXPECT_THAT(Message("slots: -1\n"), HasSubstr("-1 is out of range; allowed: 0 to 1048576"));
  EXPECT_THAT(Message("slots: 99999999999999999999\n"), HasSubstr("is no whole number"));
  EXPECT_THAT(Message("slots: 1.5\n"), HasSubstr("is no whole number"));
  EXPECT_THAT(Message("slots:\n"), HasSubstr("must be one value (integer), is nothing"));
  EXPECT_THAT(Message("reflection: maybe\n"), HasSubstr("is neither true nor false"));
  EXPECT_THAT(Message("max-request-bytes: 10\n"), HasSubstr("10 B is out of range"));
  EXPECT_THAT(Message("keepalive: 10us\n"), HasSubstr("10us is too short; at least 1s"));
}

TEST_F(OptionsFileTest, RefusesWhatIsNoMap) {
  EXPECT_THAT(Message("- a\n- b\n"), HasSubstr("the file must be a map"));
  EXPECT_THAT(Message("just words\n"), HasSubstr("the file must be a map"));
  EXPECT_THAT(Message("a: [1\nb: 2\n"), HasSubstr("no valid YAML"));
  EXPECT_THAT(Message("? [a, b]\n: 1\n"), HasSubstr("a key must be a plain name"));
  const absl::Status missing = ApplyYamlFile("/no/such/file.yaml", OptionTable(&options_));
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/no/such/file.yaml"));
  EXPECT_EQ(ApplyYamlFile("/", OptionTable(&options_)).code(), absl::StatusCode::kNotFound);
}

TEST(OptionsTest, DefaultsAreWhatTheTableSays) {
  ServerOptions options;
  const ServerOptions before = options;
  for (const OptionSpec& spec : OptionTable(&options)) {
    EXPECT_TRUE(spec.set(spec.default_value).ok()) << spec.name << " = " << spec.default_value;
    EXPECT_FALSE(spec.help.empty()) << spec.name;
  }
  EXPECT_EQ(options.max_request_bytes, before.max_request_bytes);
  EXPECT_EQ(options.drain_us, before.drain_us);
  EXPECT_EQ(options.grpc, before.grpc);
  EXPECT_TRUE(CheckOptions(options).ok());
}

// docs/configuration.md has one row for each setting, with its kind, default and sentence.
TEST(OptionsTest, EverySettingIsDocumented) {
  ServerOptions options;
  GatewayOptions gateway_options;
  std::vector<OptionSpec> table = OptionTable(&options);
  for (OptionSpec& spec : GatewayOptionTable(&gateway_options)) table.push_back(std::move(spec));
  std::set<std::string> rows;
  for (const OptionSpec& spec : table) {
    rows.insert("| `" + spec.name + "` | " + absl::StrReplaceAll(spec.kind, {{"|", ", "}}) + " | " +
                (spec.default_value.empty() ? "" : "`" + spec.default_value + "`") + " | " +
                spec.help + " |");
  }
  std::ifstream file(WEIR_SOURCE_DIR "/docs/configuration.md");
  std::set<std::string> documented;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("| `", 0) == 0) documented.insert(line);
  }
  for (const std::string& row : rows) EXPECT_TRUE(documented.count(row)) << "missing: " << row;
  for (const std::string& row : documented) EXPECT_TRUE(rows.count(row)) << "stale: " << row;
}

TEST(OptionsTest, ContradictionsAreRefused) {
  const auto message = [](auto change) {
    ServerOptions options;
    change(&options);
    return std::string(CheckOptions(options).message());
  };
  EXPECT_THAT(message([](ServerOptions* o) { o->grpc = "nonsense"; }),
              HasSubstr("write host:port"));
  EXPECT_THAT(message([](ServerOptions* o) { o->grpc = "h:70000"; }), HasSubstr("write host:port"));
  EXPECT_THAT(message([](ServerOptions* o) { o->metrics = ":1"; }), HasSubstr("metrics:"));
  EXPECT_THAT(message([](ServerOptions* o) { o->memory_bytes = o->slots = o->kv_pages = 9; }),
              HasSubstr("leave one of the three out"));
  EXPECT_THAT(
      message([](ServerOptions* o) { o->step_tokens = 512, o->prefill_chunk_tokens = 513; }),
      HasSubstr("prefill-chunk"));
  EXPECT_THAT(message([](ServerOptions* o) { o->step_tokens = 512, o->step_sequences = 513; }),
              HasSubstr("step-sequences"));
}

TEST(OptionsTest, Durations) {
  EXPECT_EQ(*ParseDurationUs("30s"), 30'000'000);
  EXPECT_EQ(*ParseDurationUs("1.5 s"), 1'500'000);
  EXPECT_EQ(*ParseDurationUs("250ms"), 250'000);
  EXPECT_EQ(*ParseDurationUs("0"), 0);
  for (const char* bad : {"", "5", "-1s", "inf", "1 fortnight", "99999h"}) {
    EXPECT_FALSE(ParseDurationUs(bad).ok()) << bad;
  }
  for (const char* text : {"0", "250us", "250ms", "7s", "3m"}) {
    EXPECT_EQ(FormatDurationUs(*ParseDurationUs(text)), text);
  }
}

}  // namespace
}  // namespace weir::server
