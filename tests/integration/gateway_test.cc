// `weir gateway` as a process, in front of a real server.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(GatewayTest, ServesWhatTheServersServeAndDrains) {
  ServerProcess server({"--slots", "2"});
  const std::string ready = TempFolder() + "/gateway_ready";
  // The second address leads nowhere: the gateway lives with it.
  const std::string script = WeirBinary() + " gateway --backend " + server.grpc_address() +
                             ",127.0.0.1:1 --http 127.0.0.1:0 --access-log - --ready-file " +
                             ready + " & pid=$!; while [ ! -f " + ready +
                             " ]; do sleep 0.02; done\n"
                             "http=http://$(sed 's/.*\"http\":\"\\([^\"]*\\)\".*/\\1/' " +
                             ready +
                             ")\n"
                             "until curl -sf $http/ready; do sleep 0.02; done; echo\n"
                             "curl -s $http/v1/chat/completions -d "
                             "'{\"model\":\"weir-tiny\",\"max_tokens\":4,\"messages\":"
                             "[{\"role\":\"user\",\"content\":\"Hello\"}]}'; echo\n"
                             "curl -s $http/metrics | grep backend_healthy\n"
                             "kill -TERM $pid; wait $pid; echo exit $?; ls " +
                             ready;
  const Ran ran = RunProgram({"/bin/sh", "-c", script});
  EXPECT_THAT(ran.out, AllOf(HasSubstr("OpenAI API and web page on http://127.0.0.1:"),
                             HasSubstr("\"finish_reason\":\"length\""),
                             HasSubstr("\"path\":\"/v1/chat/completions\",\"status\":200"),
                             HasSubstr("weir_http_backend_healthy{backend=\"127.0.0.1:1\"} 0"),
                             HasSubstr("exit 0\n")))
      << ran.err;
  EXPECT_NE(ran.exit_code, 0);  // the ready file is gone
  server.ExpectNothingHeld();
}

TEST(GatewayTest, RefusesWhatMakesNoSense) {
  const auto refused = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {WeirBinary(), "gateway"});
    const Ran ran = RunProgram(flags);
    EXPECT_EQ(ran.exit_code, 1);
    return ran.err;
  };
  EXPECT_THAT(refused({"--backend", ""}), HasSubstr("weir gateway: backend: which server?"));
  EXPECT_THAT(refused({"--backend", "nowhere"}), HasSubstr("write host:port"));
  EXPECT_THAT(refused({"--http", ""}), HasSubstr("without an address"));
  EXPECT_THAT(refused({"--http-tls-cert", "x"}), HasSubstr("TLS needs both"));
}

}  // namespace
}  // namespace weir::testing
