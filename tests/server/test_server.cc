#include "tests/server/test_server.h"

#include "core/check.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace weir::testing {

TestServer::TestServer(Options options) : options_(std::move(options)) {
  options_.server.grpc = options_.listen ? "127.0.0.1:0" : "";
  FakeOptions fake;
  fake.limits = options_.model.limits;
  fake.step_us = options_.step_us;
  executor_ = std::make_unique<FakeExecutor>(fake);
  scheduler::SchedulerOptions scheduling;
  scheduling.max_queued_requests = static_cast<int32_t>(options_.server.max_queued_requests);
  scheduling.max_queued_tokens = options_.server.max_queued_tokens;
  scheduler_ =
      std::make_unique<scheduler::Scheduler>(scheduling, executor_.get(), &clock_, &registry_);
  scheduler_->Start();
  auto server = server::Server::Start(options_.server, &options_.model, scheduler_.get(), &clock_,
                                      &registry_);
  WEIR_CHECK(server.ok()) << server.status();
  server_ = *std::move(server);
  channel_ = server_->InProcessChannel();
  generation_ = v1::GenerationService::NewStub(channel_);
}

TestServer::~TestServer() {
  generation_.reset();
  channel_.reset();
  server_.reset();
  scheduler_.reset();
}

Gathered TestServer::Generate(const v1::GenerateRequest& request, grpc::ClientContext* rpc) {
  grpc::ClientContext own;
  if (rpc == nullptr) rpc = &own;
  Gathered out;
  const auto reader = generation_->Generate(rpc, request);
  v1::GenerateEvent event;
  const auto at = [&out](int32_t choice) -> Gathered::Choice& {
    if (out.choices.size() <= static_cast<size_t>(choice)) out.choices.resize(choice + 1);
    return out.choices[static_cast<size_t>(choice)];
  };
  while (reader->Read(&event)) {
    out.events.push_back(event);
    if (event.has_accepted()) out.accepted = event.accepted();
    if (event.has_finished()) out.finished = event.finished();
    if (event.has_prompt_logprobs()) out.prompt_logprobs.MergeFrom(event.prompt_logprobs());
    if (event.has_choice_finished()) {
      at(event.choice_finished().choice()).finished = event.choice_finished();
    }
    if (event.has_delta()) {
      Gathered::Choice& choice = at(event.delta().choice());
      choice.ids.insert(choice.ids.end(), event.delta().token_ids().begin(),
                        event.delta().token_ids().end());
      choice.text += event.delta().text();
      choice.logprobs.MergeFrom(event.delta().logprobs());
    }
  }
  out.status = reader->Finish();
  return out;
}

void TestServer::ExpectNothingHeld() {
  scheduler_->WaitIdle();
  const scheduler::SchedulerStats stats = scheduler_->stats();
  EXPECT_EQ(stats.queued_requests, 0);
  EXPECT_EQ(stats.running_sequences, 0);
  EXPECT_EQ(stats.slots_used, 0);
  EXPECT_EQ(stats.pages_used, 0);
}

bool IsServing(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  // HealthCheckRequest{1: service}; HealthCheckResponse{1: status}, where 1 is SERVING.
  std::string request;
  if (!service.empty()) request = std::string{'\x0a', static_cast<char>(service.size())} + service;
  std::string answer;
  const grpc::Status status = CallRaw(channel, "/grpc.health.v1.Health/Check", request, &answer);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return answer == "\x08\x01";
}

v1::GenerateRequest IdsRequest(const std::vector<int32_t>& ids, int max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.mutable_stopping()->set_max_tokens(max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

template <typename Detail>
bool GetDetail(const grpc::Status& status, Detail* detail) {
  google::rpc::Status wire;
  if (!wire.ParseFromString(status.error_details())) return false;
  EXPECT_EQ(wire.code(), static_cast<int>(status.error_code()));
  for (const auto& any : wire.details()) {
    if (any.UnpackTo(detail)) return true;
  }
  return false;
}
template bool GetDetail(const grpc::Status&, google::rpc::BadRequest*);
template bool GetDetail(const grpc::Status&, google::rpc::QuotaFailure*);
template bool GetDetail(const grpc::Status&, google::rpc::PreconditionFailure*);
template bool GetDetail(const grpc::Status&, google::rpc::RetryInfo*);

}  // namespace weir::testing
