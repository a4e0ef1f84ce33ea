// Starts that must fail: exit code 1 or 2, one clear sentence on stderr, soon.
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;

Ran Serve(std::vector<std::string> arguments) {
  std::vector<std::string> all = {WeirBinary(), "serve", "--grpc",    "127.0.0.1:0",
                                  "--http",     "",      "--metrics", ""};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return RunProgram(all, "", {}, 30);
}

void ExpectRefused(const Ran& ran, const std::string& sentence) {
  EXPECT_EQ(ran.exit_code, 1) << ran.err;
  EXPECT_THAT(ran.err, HasSubstr(sentence));
  EXPECT_THAT(ran.err, HasSubstr("weir serve: "));
}

// A copy of the tiny model's small files, and a link to its weights, to spoil.
std::string CopyOfTiny(const std::string& name) {
  const std::string folder = TempFolder() + "/" + name;
  std::filesystem::create_directories(folder);
  for (const auto& entry : std::filesystem::directory_iterator(TinyModel())) {
    const auto to = std::filesystem::path(folder) / entry.path().filename();
    if (entry.path().extension() == ".safetensors") {
      std::filesystem::create_symlink(entry.path(), to);
    } else {
      std::filesystem::copy_file(entry.path(), to);
    }
  }
  return folder;
}

TEST(StartTest, OccupiedPorts) {
  ServerProcess server({"--slots", "2"});
  ExpectRefused(
      Serve({TinyModel(), "--grpc", server.grpc_address()}),
      "cannot serve gRPC on " + server.grpc_address() + ": another process listens there");
  ExpectRefused(Serve({TinyModel(), "--metrics", server.metrics_address()}),
                "cannot serve metrics on " + server.metrics_address());
  ExpectRefused(Serve({TinyModel(), "--grpc", "192.0.2.1:5000"}), "no address of this machine");
  ExpectRefused(Serve({TinyModel(), "--grpc", "somewhere"}), "write host:port");
  EXPECT_TRUE(Generate(server.generation(), LongRequest(3)).status.ok());
}

TEST(StartTest, Settings) {
  ExpectRefused(Serve({}), "which model?");
  ExpectRefused(Serve({TinyModel(), "--slots", "-3"}), "--slots: -3 is out of range");
  ExpectRefused(Serve({TinyModel(), "--drain-time", "5"}), "--drain-time: \"5\" is no duration");
  ExpectRefused(Serve({TinyModel(), "--dtype", "int3"}),
                "--dtype: \"int3\" is none of auto, f32, bf16");
  ExpectRefused(Serve({TinyModel(), "--config", "/no/such.yaml"}),
                "cannot read the configuration file /no/such.yaml");
  ExpectRefused(Serve({TinyModel(), "--ready-file", "/no/such/folder/ready"}),
                "cannot write the ready file");
  const Ran unknown = Serve({TinyModel(), "--no-such-flag"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("--no-such-flag"));

  const std::string config = TempFolder() + "/config.yaml";
  WriteWhole(config, "slots: 3\nslotz: 4\nthreads: many\n");
  const Ran bad = Serve({TinyModel(), "--config", config});
  ExpectRefused(bad, config + ":2: unknown key \"slotz\"; did you mean \"slots\"?");
  ExpectRefused(bad, config + ":3: threads: \"many\" is no whole number");
}

TEST(StartTest, TheFileSetsAndTheCommandLineWins) {
  const std::string config = TempFolder() + "/good.yaml";
  WriteWhole(config, "slots: 3\nmax-choices: 2\nmax-queued-requests: 5\n");
  ServerProcess server({"--config", config, "--max-queued-requests", "7"});
  EXPECT_EQ(server.Info().limits().slots(), 3);
  EXPECT_EQ(server.Info().limits().max_choices(), 2);
  EXPECT_EQ(server.Info().limits().max_queued_requests(), 7);
}

TEST(StartTest, Folders) {
  ExpectRefused(Serve({"/no/such/model"}), "no model folder /no/such/model");
  ExpectRefused(Serve({TempFolder()}), "config.json");
  const std::string folder = CopyOfTiny("unknown_family");
  WriteWhole(folder + "/config.json", "{\"model_type\": \"perceiver_xyz\"}");
  ExpectRefused(Serve({folder}), "perceiver_xyz");
  WriteWhole(folder + "/config.json", "{nonsense");
  ExpectRefused(Serve({folder}), "config.json");
}

TEST(StartTest, TextFiles) {
  std::string folder = CopyOfTiny("bad_tokenizer");
  WriteWhole(folder + "/tokenizer.json", "{\"model\": 3}");
  ExpectRefused(Serve({folder}), "tokenizer.json");
  folder = CopyOfTiny("bad_generation_config");
  WriteWhole(folder + "/generation_config.json", "{\"top_p\": 7}");
  ExpectRefused(Serve({folder}), "generation_config.json: top_p is 7; allowed");
  WriteWhole(folder + "/generation_config.json", "[");
  ExpectRefused(Serve({folder}), "generation_config.json: no valid JSON");
}

TEST(StartTest, TruncatedWeights) {
  const std::string folder = CopyOfTiny("truncated");
  const std::string weights = folder + "/model.safetensors";
  const std::string whole = ReadWhole(weights);
  std::filesystem::remove(weights);
  WriteWhole(weights, whole.substr(0, whole.size() / 2));
  ExpectRefused(Serve({folder}), "model.safetensors");
}

}  // namespace
}  // namespace weir::testing
