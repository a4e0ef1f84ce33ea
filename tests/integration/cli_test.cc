// The commands that people type: generate and chat, with a server and with a folder; the example
// client.
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/server_process.h"

namespace weir::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

Ran Weir(std::vector<std::string> arguments, const std::string& input = "") {
  arguments.insert(arguments.begin(), WeirBinary());
  return RunProgram(arguments, input);
}

TEST(GenerateTest, AFolderAndAServerGiveTheSameTokens) {
  ServerProcess server({"--slots", "4"});
  const std::vector<std::string> what = {
      "--prompt", "Once upon a time", "--seed", "3", "--max-tokens", "15", "--json"};
  std::vector<std::string> inside = {"generate", TinyModel()};
  std::vector<std::string> outside = {"generate", "--server", server.grpc_address()};
  inside.insert(inside.end(), what.begin(), what.end());
  outside.insert(outside.end(), what.begin(), what.end());
  const Ran a = Weir(inside), b = Weir(outside);
  ASSERT_EQ(a.exit_code, 0) << a.err;
  ASSERT_EQ(b.exit_code, 0) << b.err;
  const Json answer = Json::parse(a.out), other = Json::parse(b.out);
  EXPECT_EQ(answer["tokens"].size(), answer["usage"]["completion_tokens"].get<size_t>());
  EXPECT_EQ(answer["tokens"], other["tokens"]);
  EXPECT_EQ(answer["text"], other["text"]);
  EXPECT_EQ(answer["seed"], 3);
  EXPECT_THAT((std::vector<std::string>{"stop", "length"}),
              ::testing::Contains(answer["finish_reason"].get<std::string>()));

  // Without --json the text itself, as it comes.
  outside.pop_back();
  EXPECT_EQ(Weir(outside).out, answer["text"].get<std::string>() + "\n");
}

TEST(GenerateTest, EveryFlagArrives) {
  const Ran ran = Weir({"generate",
                        TinyModel(),
                        "--tokens",
                        "30,40,50",
                        "--temperature",
                        "0.7",
                        "--top-k",
                        "50",
                        "--top-p",
                        "0.9",
                        "--min-p",
                        "0.01",
                        "--repetition-penalty",
                        "1.1",
                        "--presence-penalty",
                        "0.1",
                        "--frequency-penalty",
                        "0.1",
                        "--seed",
                        "5",
                        "--max-tokens",
                        "6",
                        "--min-tokens",
                        "6",
                        "--stop",
                        "xyzzy",
                        "--stop",
                        "plugh",
                        "--stop-token",
                        "7,8",
                        "--logit-bias",
                        "100=-100",
                        "--logprobs",
                        "2",
                        "--prompt-logprobs",
                        "0",
                        "-n",
                        "2",
                        "--priority",
                        "1",
                        "--include-stop",
                        "--ignore-eos",
                        "--show-special-tokens",
                        "--timeout",
                        "30s",
                        "--json"});
  ASSERT_EQ(ran.exit_code, 0) << ran.err;
  const Json answer = Json::parse(ran.out);
  ASSERT_EQ(answer["choices"].size(), 2u);
  for (const Json& choice : answer["choices"]) {
    EXPECT_EQ(choice["tokens"].size(), 6u);
    EXPECT_EQ(choice["logprobs"].size(), 6u);
    EXPECT_EQ(choice["logprobs"][0]["top"].size(), 2u);
  }
  EXPECT_EQ(answer["prompt_logprobs"].size(), 2u);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 12);
}

TEST(GenerateTest, ChatsAreReadAsPeopleHaveThem) {
  const std::string messages = R"([{"role": "user", "content": "What is 23 plus 45?"}])";
  const std::string file = TempFolder() + "/chat.json";
  WriteWhole(file, R"({"messages": )" + messages + R"(, "template_kwargs": {"x": 1}})");
  std::string first;
  for (const std::string& chat : {messages, "@" + file, std::string("-")}) {
    const Ran ran = Weir({"generate", TinyModel(), "--chat", chat, "--temperature", "0"}, messages);
    ASSERT_EQ(ran.exit_code, 0) << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("68"));
    if (first.empty()) first = ran.out;
    EXPECT_EQ(ran.out, first);
  }
}

TEST(GenerateTest, MistakesAreSentences) {
  const auto error = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "generate");
    const Ran ran = Weir(arguments);
    EXPECT_EQ(ran.exit_code, 1);
    EXPECT_EQ(ran.out, "");
    return ran.err;
  };
  EXPECT_THAT(error({"--prompt", "x"}), HasSubstr("name a model folder, or a server"));
  EXPECT_THAT(error({TinyModel(), "--server", "h:1", "--prompt", "x"}), HasSubstr("not both"));
  EXPECT_THAT(error({TinyModel()}), HasSubstr("give one of --prompt"));
  EXPECT_THAT(error({TinyModel(), "--prompt", "x", "--tokens", "1"}), HasSubstr("give one of"));
  EXPECT_THAT(error({TinyModel(), "--tokens", "1,two"}), HasSubstr("\"two\" is no token id"));
  EXPECT_THAT(error({TinyModel(), "--prompt", "x", "--logit-bias", "5"}),
              HasSubstr("not ID=VALUE"));
  EXPECT_THAT(error({TinyModel(), "--prompt", "x", "--top-p", "7"}),
              HasSubstr("INVALID_ARGUMENT: sampling.top_p: is 7"));
  EXPECT_THAT(error({TinyModel(), "--chat", "{"}), HasSubstr("no valid JSON"));
  EXPECT_THAT(error({TinyModel(), "--chat", "[{\"rolle\": \"x\"}]"}),
              HasSubstr("messages[0].rolle is no key of a message"));
  EXPECT_THAT(error({"--server", "127.0.0.1:1", "--prompt", "x"}),
              HasSubstr("no server answers at 127.0.0.1:1"));
}

TEST(ChatTest, KeepsAHistoryAndKnowsItsCommands) {
  const Ran ran =
      Weir({"chat", TinyModel(), "--temperature", "0", "--max-tokens", "60"},
           "What is 12 plus 30?\n/system You are brief.\n/reset\n/nope\n/help\n\n/quit\nx");
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("\n\n12 + 30 = 42\n"));  // behind the reasoning
  EXPECT_THAT(ran.out, Not(HasSubstr("think>")));
  EXPECT_THAT(ran.out, HasSubstr("tokens/s, first token after"));
  EXPECT_THAT(ran.out, HasSubstr("system message set"));
  EXPECT_THAT(ran.out, HasSubstr("starts anew"));
  EXPECT_THAT(ran.out, HasSubstr("unknown command /nope"));
  EXPECT_THAT(ran.out, HasSubstr("/reset "));
}

// A terminal of its own, as a person has one.
class Terminal {
 public:
  explicit Terminal(const std::vector<std::string>& arguments) {
    pid_ = forkpty(&fd_, nullptr, nullptr, nullptr);
    if (pid_ != 0) return;
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Terminal() {
    close(fd_);
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  void Type(const std::string& text) {
    ASSERT_EQ(write(fd_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  // Reads until `text` has come after what was last expected; fails after 20 s.
  void Expect(const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    std::string& seen = seen_;
    while (seen.find(text) == std::string::npos) {
      fd_set set;
      FD_ZERO(&set);
      FD_SET(fd_, &set);
      timeval wait{1, 0};
      char buffer[4096];
      ssize_t n = 0;
      if (select(fd_ + 1, &set, nullptr, nullptr, &wait) > 0) {
        n = read(fd_, buffer, sizeof(buffer));
        if (n <= 0) break;
        seen.append(buffer, static_cast<size_t>(n));
      }
      if (std::chrono::steady_clock::now() - start > std::chrono::seconds(20)) break;
    }
    ASSERT_THAT(seen, HasSubstr(text));
    seen.erase(0, seen.find(text) + text.size());
  }
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  int fd_ = -1;
  pid_t pid_ = -1;
  std::string seen_;  // and not yet expected
};

TEST(ChatTest, ControlCStopsTheAnswerAndNotTheProgram) {
  Terminal terminal({WeirBinary(), "chat", TinyModel(), "--ignore-eos", "--max-tokens", "8000"});
  terminal.Expect("> ");
  terminal.Type("Tell me a tale\n");
  terminal.Expect("tale");  // the echo
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  terminal.Type("\x03");
  terminal.Expect(", stopped]");
  terminal.Expect("> ");
  terminal.Type("\x03");  // nothing to stop
  terminal.Expect("ends the chat");
  terminal.Type("/quit\n");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST(HealthTest, SaysWhetherAServerServes) {
  ServerProcess server({"--slots", "4", "--drain-time", "20s"});
  const std::string address = server.grpc_address();
  const Ran serves = Weir({"health", "--server", address});
  EXPECT_EQ(serves.exit_code, 0) << serves.err;
  EXPECT_EQ(serves.out, "SERVING\n");
  EXPECT_EQ(
      Weir({"health", "--server", address, "--service", "weir.v1.GenerationService"}).exit_code, 0);
  const Ran unknown = Weir({"health", "--server", address, "--service", "weir.v1.Other"});
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_EQ(unknown.out, "SERVICE_UNKNOWN\n");

  // While it drains it answers, and says no.
  grpc::ClientContext rpc;
  const auto running = server.generation().Generate(&rpc, LongRequest(8000));
  v1::GenerateEvent event;
  ASSERT_TRUE(running->Read(&event));
  server.Signal(SIGTERM);
  Ran drains;
  do {
    drains = Weir({"health", "--server", address});
  } while (drains.exit_code == 0);
  EXPECT_EQ(drains.exit_code, 1);
  EXPECT_EQ(drains.out, "NOT_SERVING\n") << drains.err;
  rpc.TryCancel();
  EXPECT_EQ(server.WaitExit(), 0);

  const Ran nobody = Weir({"health", "--server", address, "--timeout", "1"});
  EXPECT_EQ(nobody.exit_code, 1);
  EXPECT_EQ(nobody.out, "");
  EXPECT_THAT(nobody.err, HasSubstr("no answer from " + address));
}

TEST(ExampleTest, ThePythonClientStreams) {
  const std::string python = WEIR_BUILD_DIR "/venv/bin/python";
  const std::string stubs = WEIR_BUILD_DIR "/python";
  if (!std::filesystem::exists(python) || !std::filesystem::exists(stubs + "/done")) {
    GTEST_SKIP() << "no Python client libraries; make python installs them";
  }
  ServerProcess server({"--slots", "4"});
  const std::string client = WEIR_SOURCE_DIR "/examples/client.py";
  const std::vector<std::string> environment = {"PYTHONPATH=" + stubs};
  const Ran ran =
      RunProgram({python, client, server.grpc_address(), "What is 23 plus 45?"}, "", environment);
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr(" tokens]"));
  EXPECT_GT(ran.out.size(), 20u);
  const Ran refused = RunProgram({python, client, server.grpc_address(), ""}, "", environment);
  EXPECT_EQ(refused.exit_code, 0) << refused.err;  // an empty message is a message
  server.Signal(SIGTERM);
  server.WaitExit();
  const Ran gone = RunProgram({python, client, server.grpc_address(), "hi"}, "", environment);
  EXPECT_EQ(gone.exit_code, 1);
  EXPECT_THAT(gone.err, HasSubstr("UNAVAILABLE"));
}

}  // namespace
}  // namespace weir::testing
