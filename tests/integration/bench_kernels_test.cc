// `weir bench kernels` on the CPU: every line says what was measured, in numbers that make sense.
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

std::vector<Json> Lines(const std::string& out) {
  std::vector<Json> lines;
  std::istringstream stream(out);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

TEST(BenchKernelsTest, EveryOpIsMeasured) {
  const Ran ran =
      RunProgram({WeirBinary(), "bench", "kernels", "--device", "cpu", "--seconds", "0"});
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  const std::vector<Json> lines = Lines(ran.out);
  ASSERT_GT(lines.size(), 20u);
  EXPECT_EQ(lines[0]["phase"], "machine");
  EXPECT_GT(lines[0]["read_gigabytes_per_second"], 0);
  EXPECT_GT(lines[0]["bf16_teraflops_per_second"], 0);
  std::set<std::string> ops;
  for (size_t i = 1; i < lines.size(); ++i) {
    const Json& line = lines[i];
    EXPECT_FALSE(line.contains("skipped")) << line;
    EXPECT_GT(line["us"], 0) << line;
    EXPECT_GT(line["gigabytes_per_second"], 0) << line;
    // No op does more arithmetic than the machine can; timers and neighbours allow some slack.
    EXPECT_LT(line["percent_of_matrix_rate"], 150) << line;
    ops.insert(line["op"]);
  }
  EXPECT_THAT(ops,
              ::testing::ElementsAre("add_rms_norm", "gate_multiply", "matmul", "matmul_gated",
                                     "paged_attention", "recurrence_chunk", "recurrence_step"));
}

TEST(BenchKernelsTest, CasesAreChosen) {
  const Ran ran = RunProgram({WeirBinary(), "bench", "kernels", "--device", "cpu", "--seconds", "0",
                              "--op", "matmul,add_rms_norm", "--filter", "\"rows\":1,"});
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  std::vector<Json> lines = Lines(ran.out);
  lines.erase(lines.begin());
  EXPECT_FALSE(lines.empty());
  for (const Json& line : lines) {
    EXPECT_EQ(line["rows"], 1);
    EXPECT_THAT((std::vector<std::string>{"matmul", "add_rms_norm"}),
                ::testing::Contains(line["op"].get<std::string>()));
  }
  const Ran none = RunProgram({WeirBinary(), "bench", "kernels", "--device", "cpu", "--op", "x"});
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_THAT(none.err, HasSubstr("no case matches"));
  const Ran device = RunProgram({WeirBinary(), "bench", "kernels", "--device", "tpu"});
  EXPECT_EQ(device.exit_code, 1);
  EXPECT_THAT(device.err, HasSubstr("--device is auto, cpu or cuda"));
}

}  // namespace
}  // namespace weir::testing
