// A `weir` process under test: started, watched, talked to, stopped.
#pragma once

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/raw_call.h"
#include "weir/v1/generate.grpc.pb.h"
#include "weir/v1/info.grpc.pb.h"

namespace weir::testing {

std::string WeirBinary();
std::string TinyModel();  // models/weir-tiny
// A folder of this test process, removed at its end.
std::string TempFolder();
std::string ReadWhole(const std::string& path);
void WriteWhole(const std::string& path, const std::string& text);

// A finished process.
struct Ran {
  int exit_code = -1;  // 128 + signal when a signal ended it
  std::string out, err;
  double seconds = 0;
};
// Runs `arguments[0]` with the rest; `input` is its stdin. Killed after `limit_s` (exit code 137).
Ran RunProgram(const std::vector<std::string>& arguments, const std::string& input = "",
               const std::vector<std::string>& environment = {}, double limit_s = 60);

class ServerProcess {
 public:
  // `weir serve MODEL --grpc 127.0.0.1:0 --metrics 127.0.0.1:0 --http 127.0.0.1:0 --ready-file ...
  // flags`; returns when the ready file is there. Fails the test when the process ends before.
  explicit ServerProcess(std::vector<std::string> flags = {}, std::string model = TinyModel());
  ~ServerProcess();  // kills what still runs

  const std::string& grpc_address() const { return grpc_address_; }
  const std::string& http_address() const { return http_address_; }
  const std::string& metrics_address() const { return metrics_address_; }
  const std::string& ready_file() const { return ready_file_; }
  pid_t pid() const { return pid_; }
  std::string out() const { return ReadWhole(out_); }
  std::string err() const { return ReadWhole(err_); }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  v1::GenerationService::Stub& generation() { return *generation_; }

  v1::GetServerInfoResponse Info();
  // The value of one series of /metrics ("name" or "name{labels}"); nullopt: it is not there.
  std::optional<double> Metric(const std::string& series);
  // Waits until no stream is open, then expects that no slot, page or queue entry is in use.
  void ExpectNothingHeld();

  void Signal(int signal);
  // The exit code; 128 + signal when a signal ended it. Kills it after `limit_s` (137).
  int WaitExit(double limit_s = 30);

 private:
  std::string ready_file_, out_, err_;
  pid_t pid_ = -1;
  std::optional<int> exit_code_;
  std::string grpc_address_, http_address_, metrics_address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
};

// One call, gathered: choice 0.
struct Answer {
  grpc::Status status;
  std::vector<int32_t> ids;
  std::string text;
  v1::ChoiceFinished finished;
};
Answer Generate(v1::GenerationService::Stub& stub, const v1::GenerateRequest& request,
                grpc::ClientContext* rpc = nullptr);

// `count` ids that run for exactly `max_tokens` tokens.
v1::GenerateRequest LongRequest(int max_tokens);

// HTTP GET of http://address/path; "" when it fails.
std::string HttpGet(const std::string& address, const std::string& path);

}  // namespace weir::testing
