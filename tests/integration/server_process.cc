#include "tests/integration/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "gtest/gtest.h"

namespace weir::testing {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int ExitCode(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Starts a program; 0 leaves the descriptor as it is.
pid_t Spawn(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
            int in, int out, int err) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  if (in >= 0) dup2(in, STDIN_FILENO);
  if (out >= 0) dup2(out, STDOUT_FILENO);
  if (err >= 0) dup2(err, STDERR_FILENO);
  for (int fd = 3; fd < 256; ++fd) close(fd);
  for (const std::string& entry : environment) putenv(const_cast<char*>(entry.c_str()));
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  _exit(127);
}

// Waits for a child; nullopt when it still runs after `limit_s`.
std::optional<int> WaitFor(pid_t pid, double limit_s) {
  const Clock::time_point start = Clock::now();
  while (true) {
    int status = 0;
    if (waitpid(pid, &status, WNOHANG) == pid) return ExitCode(status);
    if (SecondsSince(start) > limit_s) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

int Open(const std::string& path) {
  return open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
}

std::string UniquePath(const std::string& name) {
  static std::atomic<int> next{0};
  return TempFolder() + "/" + std::to_string(next++) + "_" + name;
}

}  // namespace

std::string WeirBinary() { return WEIR_BUILD_DIR "/weir"; }
std::string TinyModel() { return WEIR_SOURCE_DIR "/models/weir-tiny"; }

std::string TempFolder() {
  struct Folder {
    std::string path;
    Folder() {
      std::string name = ::testing::TempDir() + "/weir_XXXXXX";
      path = mkdtemp(name.data());
    }
    ~Folder() { std::filesystem::remove_all(path); }
  };
  static const Folder folder;
  return folder.path;
}

std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void WriteWhole(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

Ran RunProgram(const std::vector<std::string>& arguments, const std::string& input,
               const std::vector<std::string>& environment, double limit_s) {
  const std::string in_path = UniquePath("in"), out_path = UniquePath("out"),
                    err_path = UniquePath("err");
  WriteWhole(in_path, input);
  const int in = open(in_path.c_str(), O_RDONLY | O_CLOEXEC);
  const int out = Open(out_path), err = Open(err_path);
  const Clock::time_point start = Clock::now();
  const pid_t pid = Spawn(arguments, environment, in, out, err);
  close(in);
  close(out);
  close(err);
  std::optional<int> code = WaitFor(pid, limit_s);
  if (!code) {
    kill(pid, SIGKILL);
    code = WaitFor(pid, 10);
  }
  return {code.value_or(-1), ReadWhole(out_path), ReadWhole(err_path), SecondsSince(start)};
}

ServerProcess::ServerProcess(std::vector<std::string> flags, std::string model)
    : ready_file_(UniquePath("ready")), out_(UniquePath("out")), err_(UniquePath("err")) {
  std::vector<std::string> arguments = {WeirBinary(),  "serve",        model,         "--grpc",
                                        "127.0.0.1:0", "--metrics",    "127.0.0.1:0", "--http",
                                        "127.0.0.1:0", "--ready-file", ready_file_};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const int out = Open(out_), err = Open(err_);
  pid_ = Spawn(arguments, {}, -1, out, err);
  close(out);
  close(err);
  const Clock::time_point start = Clock::now();
  while (!std::filesystem::exists(ready_file_)) {
    exit_code_ = WaitFor(pid_, 0);
    if (exit_code_ || SecondsSince(start) > 60) {
      ADD_FAILURE() << "the server did not get ready: " << this->err();
      return;
    }
  }
  const auto json = nlohmann::json::parse(ReadWhole(ready_file_));
  grpc_address_ = json["grpc"].get<std::string>();
  if (json["http"].is_string()) http_address_ = json["http"].get<std::string>();
  if (json["metrics"].is_string()) metrics_address_ = json["metrics"].get<std::string>();
  EXPECT_EQ(json["pid"].get<int>(), pid_);
  grpc::ChannelArguments channel_arguments;
  channel_arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_arguments.SetMaxReceiveMessageSize(-1);
  channel_ = grpc::CreateCustomChannel(grpc_address_, grpc::InsecureChannelCredentials(),
                                       channel_arguments);
  generation_ = v1::GenerationService::NewStub(channel_);
}

ServerProcess::~ServerProcess() {
  if (exit_code_) return;
  kill(pid_, SIGKILL);
  WaitFor(pid_, 10);
}

v1::GetServerInfoResponse ServerProcess::Info() {
  v1::GetServerInfoResponse info;
  grpc::ClientContext rpc;
  const grpc::Status status = v1::ModelService::NewStub(channel_)->GetServerInfo(&rpc, {}, &info);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return info;
}

std::optional<double> ServerProcess::Metric(const std::string& series) {
  std::istringstream lines(HttpGet(metrics_address_, "/metrics"));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size() + 1));
  }
  return std::nullopt;
}

void ServerProcess::ExpectNothingHeld() {
  const Clock::time_point start = Clock::now();
  v1::ServerLoad load = Info().load();
  // A sequence that has ended keeps its memory until no step in flight touches it.
  while ((load.open_streams() > 0 || load.running_sequences() > 0 || load.queued_requests() > 0 ||
          load.slots_used() > 0 || load.pages_used() > 0) &&
         SecondsSince(start) < 20) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    load = Info().load();
  }
  EXPECT_EQ(load.open_streams(), 0);
  EXPECT_EQ(load.queued_requests(), 0);
  EXPECT_EQ(load.running_sequences(), 0);
  EXPECT_EQ(load.slots_used(), 0);
  EXPECT_EQ(load.pages_used(), 0);
  EXPECT_EQ(Metric("weir_slots{state=\"used\"}"), 0.0);
  EXPECT_EQ(Metric("weir_pages{state=\"used\"}"), 0.0);
  EXPECT_EQ(Metric("weir_queue_tokens"), 0.0);
}

void ServerProcess::Signal(int signal) { kill(pid_, signal); }

int ServerProcess::WaitExit(double limit_s) {
  if (!exit_code_) exit_code_ = WaitFor(pid_, limit_s);
  if (!exit_code_) {
    kill(pid_, SIGKILL);
    exit_code_ = WaitFor(pid_, 10);
  }
  return exit_code_.value_or(-1);
}

Answer Generate(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                grpc::ClientContext* rpc) {
  grpc::ClientContext own;
  const auto reader = stub.Generate(rpc == nullptr ? &own : rpc, request);
  Answer answer;
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
    if (event.has_choice_finished()) answer.finished = event.choice_finished();
    if (!event.has_delta()) continue;
    answer.ids.insert(answer.ids.end(), event.delta().token_ids().begin(),
                      event.delta().token_ids().end());
    answer.text += event.delta().text();
  }
  answer.status = reader->Finish();
  return answer;
}

v1::GenerateRequest LongRequest(int max_tokens) {
  v1::GenerateRequest request;
  for (const int32_t id : {30, 40, 50}) request.mutable_token_ids()->add_ids(id);
  request.mutable_stopping()->set_max_tokens(max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_sampling()->set_seed(1);
  return request;
}

std::string HttpGet(const std::string& address, const std::string& path) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) {
    const std::string get = "GET " + path + " HTTP/1.0\r\n\r\n";
    if (send(fd, get.data(), get.size(), 0) == static_cast<ssize_t>(get.size())) {
      char buffer[16384];
      for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
    }
  }
  close(fd);
  return answer;
}

}  // namespace weir::testing
