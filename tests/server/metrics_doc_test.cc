// docs/metrics.md lists what a whole server registers, no less and no more.
#include <fstream>
#include <set>
#include <string>

#include "gateway/http_metrics.h"
#include "gtest/gtest.h"
#include "tests/server/test_model.h"
#include "tests/server/test_server.h"

namespace weir::testing {
namespace {

// The names in the first column of the tables.
std::set<std::string> DocumentedNames() {
  std::ifstream file(WEIR_SOURCE_DIR "/docs/metrics.md");
  std::set<std::string> names;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("| `", 0) != 0) continue;
    const size_t end = line.find('`', 3);
    EXPECT_TRUE(names.insert(line.substr(3, end - 3)).second) << "listed twice: " << line;
  }
  return names;
}

void ExpectListedAsExported(const std::string& metrics_compat,
                            const std::set<std::string>& documented) {
  TestServer::Options options;
  options.model = TestModel();
  options.server.metrics_compat = metrics_compat;
  options.server.otlp_endpoint = "127.0.0.1:1";  // with all that is exported on request
  TestServer server(options);
  gateway::HttpMetrics http(&server.registry());
  http.AddBackend("in-process");
  std::set<std::string> exported;
  for (const auto& [name, help] : server.registry().Families()) {
    exported.insert(name);
    EXPECT_FALSE(help.empty()) << name;
    EXPECT_TRUE(documented.count(name)) << name << " is not in docs/metrics.md";
  }
  for (const std::string& name : documented) {
    EXPECT_TRUE(exported.count(name)) << name << " is in docs/metrics.md but not exported";
  }
}

TEST(MetricsDocTest, TheDocListsExactlyWhatIsExported) {
  std::set<std::string> ours = DocumentedNames();
  std::erase_if(ours, [](const std::string& name) { return name.rfind("vllm:", 0) == 0; });
  ExpectListedAsExported("none", ours);
}

TEST(MetricsDocTest, TheDocListsTheNamesForRouters) {
  ExpectListedAsExported("vllm", DocumentedNames());
}

// What an endpoint picker reads, as it would find it.
TEST(MetricsDocTest, RoutersFindTheirNumbers) {
  TestServer::Options options;
  options.model = TestModel();
  options.model.name = "tiny";
  options.server.metrics_compat = "vllm";
  TestServer server(options);
  ASSERT_TRUE(server.Generate(IdsRequest({1, 2, 3}, 4)).status.ok());
  server.ExpectNothingHeld();
  const std::string text = server.registry().Serialize();
  const cache::CacheSize& sizes = options.model.limits.cache;
  for (const std::string& line :
       {std::string("vllm:num_requests_running{model_name=\"tiny\"} 0"),
        std::string("vllm:num_requests_waiting{model_name=\"tiny\"} 0"),
        std::string("vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0"),
        "vllm:cache_config_info{block_size=\"" +
            std::to_string(options.model.limits.layout.page_tokens) +
            "\",model_name=\"tiny\",num_gpu_blocks=\"" + std::to_string(sizes.pages) + "\"} 1",
        std::string("vllm:generation_tokens_total{model_name=\"tiny\"} 4"),
        std::string("vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} 1"),
        std::string(
            "vllm:request_success_total{finished_reason=\"length\",model_name=\"tiny\"} 1")}) {
    EXPECT_NE(text.find(line + "\n"), std::string::npos) << line << "\nnot in\n" << text;
  }
}

}  // namespace
}  // namespace weir::testing
