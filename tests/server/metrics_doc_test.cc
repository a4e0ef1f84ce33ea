// docs/metrics.md lists what a whole server registers, no less and no more.
#include <fstream>
#include <set>
#include <string>

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

TEST(MetricsDocTest, TheDocListsExactlyWhatIsExported) {
  TestServer::Options options;
  options.model = TestModel();
  TestServer server(options);
  const std::set<std::string> documented = DocumentedNames();
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

}  // namespace
}  // namespace weir::testing
