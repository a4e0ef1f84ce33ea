// `weir health`: asks a server whether it serves. For container images, which have no shell, and
// for probes that must speak TLS.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/commands/client_channel.h"
#include "server/commands/commands.h"

namespace weir::server {
namespace {

struct Arguments {
  std::string server = "127.0.0.1:50051";
  std::string service;
  std::string tls_name;
  double timeout_s = 2;
  ClientFlags client;
};

// HealthCheckRequest{1: service}: a string of fewer than 128 bytes.
grpc::ByteBuffer Request(const std::string& service) {
  std::string bytes;
  if (!service.empty()) bytes = std::string{'\x0a', static_cast<char>(service.size())} + service;
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// HealthCheckResponse{1: status}, where 0 is written as nothing.
const char* StatusName(const grpc::ByteBuffer& response) {
  grpc::Slice slice;
  if (!response.TrySingleSlice(&slice).ok() || slice.size() != 2) return "UNKNOWN";
  switch (slice.begin()[1]) {
    case 1:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "UNKNOWN";
  }
}

absl::StatusOr<std::string> Ask(const Arguments& arguments) {
  if (arguments.service.size() > 127) {
    return absl::InvalidArgumentError("--service: a name has at most 127 bytes");
  }
  grpc::ChannelArguments channel_arguments;
  if (!arguments.tls_name.empty()) channel_arguments.SetSslTargetNameOverride(arguments.tls_name);
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                   MakeClientChannel(arguments.server, arguments.client, channel_arguments));
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::microseconds(static_cast<int64_t>(arguments.timeout_s * 1e6)));
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                          Request(arguments.service), &queue);
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return std::string("SERVICE_UNKNOWN");
  if (!status.ok()) {
    return absl::UnavailableError(
        absl::StrCat("no answer from ", arguments.server, ": ", status.error_message()));
  }
  return std::string(StatusName(response));
}

}  // namespace

void AddHealthCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* health =
      app.add_subcommand("health", "Ask a server whether it serves: exit code 0 or 1");
  health->add_option("--server", arguments->server, "Its gRPC address [127.0.0.1:50051]");
  health->add_option("--service", arguments->service, "One service of it [all]");
  health->add_option("--timeout", arguments->timeout_s, "Seconds to wait for the answer [2]")
      ->check(CLI::Range(0.001, 3600.0));
  AddClientFlags(health, &arguments->client);
  health->add_option("--tls-name", arguments->tls_name,
                     "Name that its certificate is for [that in --server]");
  health->callback([arguments, exit_code] {
    const absl::StatusOr<std::string> answer = Ask(*arguments);
    if (answer.ok()) {
      std::printf("%s\n", answer->c_str());
    } else {
      std::fprintf(stderr, "weir health: %s\n", std::string(answer.status().message()).c_str());
    }
    *exit_code = answer.ok() && *answer == "SERVING" ? 0 : 1;
  });
}

}  // namespace weir::server
