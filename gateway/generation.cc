#include "gateway/generation.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gateway/authorizer.h"
#include "gateway/backends.h"
#include "gateway/connection.h"
#include "gateway/door.h"
#include "gateway/generate_call.h"
#include "gateway/http_metrics.h"
#include "gateway/openai/answer.h"
#include "gateway/openai/call.h"
#include "gateway/request_id.h"
#include "weir/v1/tokenize.grpc.pb.h"

namespace weir::gateway {
namespace {

// Larger bodies are parsed beside the connection's thread, which has others to serve.
constexpr size_t kParseHere = 16 << 10;
constexpr int64_t kRetryMs = 1000;

using Facts = std::shared_ptr<const ModelFacts>;

ApiError NoServer() { return HttpError(503, "No server is ready to answer; try again.", kRetryMs); }

ApiError Draining() {
  return HttpError(503, "The server is shutting down; try again elsewhere.", kRetryMs);
}

// Reads the body as a request to the first of `models` that it fits; `facts` tells which.
template <typename Parsed, typename Parse>
std::variant<Parsed, ApiError> ParseFor(const std::vector<Facts>& models, Facts* facts,
                                        const Parse& parse) {
  *facts = models.front();
  std::variant<Parsed, ApiError> parsed = parse(**facts);
  for (size_t i = 1; i < models.size(); ++i) {
    const auto* error = std::get_if<ApiError>(&parsed);
    if (error == nullptr || error->code != "model_not_found") break;
    std::variant<Parsed, ApiError> other = parse(*models[i]);
    const auto* again = std::get_if<ApiError>(&other);
    if (again != nullptr && again->code == "model_not_found") continue;
    *facts = models[i];
    return other;
  }
  return parsed;
}

CallMetadata MakeMetadata(const Exchange& exchange) {
  CallMetadata metadata = {{"x-request-id", exchange.id}};
  const Request& request = *exchange.request;
  if (IsTraceField(request.traceparent)) {
    metadata.emplace_back("traceparent", request.traceparent);
    if (IsTraceField(request.tracestate)) metadata.emplace_back("tracestate", request.tracestate);
  }
  return metadata;
}

class Generation {
 public:
  Generation(Connection& connection, Exchange& exchange)
      : connection_(connection), door_(connection.door()), exchange_(exchange) {}
  ~Generation() { CancelAll(); }

  boost::asio::awaitable<void> Run();

 private:
  struct Part {
    std::shared_ptr<GenerateCall> call;  // null: ended
    std::vector<const Backend*> tried;
    int64_t tokens = 0;  // of the answer, as far as its events tell
  };

  boost::asio::awaitable<void> Parse();
  // Asks for leave and starts every call.
  bool Begin();
  bool StartPart(size_t index);
  // Takes what has arrived; appends to out_ what the client is to get of it.
  void TakeAll();
  void TakePart(size_t index);
  // Counts what the event tells for the client's key.
  void Count(const v1::GenerateEvent& event, Part* part);
  void OnPartEnd(size_t index, const grpc::Status& status);
  boost::asio::awaitable<void> Pump();
  // Sends out_, in one piece; `last`: and the end of the body.
  boost::asio::awaitable<bool> Send(bool last);
  boost::asio::awaitable<void> Finish();
  void CancelAll();

  Connection& connection_;
  Door& door_;
  Exchange& exchange_;

  Facts facts_;
  std::optional<ApiError> error_;
  std::optional<Call> call_;
  std::unique_ptr<Authorizer::Use> use_;
  CallMetadata metadata_;
  std::optional<Answer> answer_;
  std::vector<Part> parts_;
  std::vector<v1::GenerateEvent> events_;
  std::string out_, framed_;
  bool accepted_ = false;
  bool head_sent_ = false;
};

boost::asio::awaitable<void> Generation::Parse() {
  const std::vector<Facts> models = door_.backends->Models();
  if (models.empty()) {
    error_ = NoServer();
    co_return;
  }
  std::optional<std::variant<Call, ApiError>> parsed;
  const auto work = [&] {
    const std::string& body = exchange_.request->body;
    parsed = ParseFor<Call>(models, &facts_, [&](const ModelFacts& facts) {
      return exchange_.route == Route::kChat ? ParseChatCompletion(body, facts)
                                             : ParseCompletion(body, facts);
    });
  };
  if (exchange_.request->body.size() > kParseHere) {
    co_await connection_.OnWorker(work);
  } else {
    work();
  }
  std::string().swap(exchange_.request->body);
  exchange_.budget.Hold(0);
  if (auto* error = std::get_if<ApiError>(&*parsed)) {
    error_ = std::move(*error);
  } else {
    call_ = std::get<Call>(std::move(*parsed));
  }
}

bool Generation::Begin() {
  if (door_.authorizer != nullptr) {
    auto admitted = door_.authorizer->Admit(exchange_.request->authorization);
    if (auto* error = std::get_if<ApiError>(&admitted)) {
      error_ = std::move(*error);
      return false;
    }
    use_ = std::get<std::unique_ptr<Authorizer::Use>>(std::move(admitted));
  }
  metadata_ = MakeMetadata(exchange_);
  answer_.emplace(*call_, *facts_,
                  absl::StrCat(call_->chat ? "chatcmpl-" : "cmpl-", NewRequestId()),
                  std::time(nullptr));
  parts_.resize(call_->prompts.size());
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (!StartPart(i)) {
      error_ = NoServer();
      return false;
    }
  }
  return true;
}

bool Generation::StartPart(size_t index) {
  Part& part = parts_[index];
  std::shared_ptr<Backend> backend = door_.backends->Pick(facts_->id, part.tried);
  if (backend == nullptr) return false;
  part.tried.push_back(backend.get());
  part.call = GenerateCall::Start(std::move(backend), call_->prompts[index], metadata_,
                                  connection_.Waker());
  return true;
}

void Generation::TakePart(size_t index) {
  const std::shared_ptr<GenerateCall> call = parts_[index].call;
  events_.clear();
  const bool ended = call->Take(&events_);
  for (const v1::GenerateEvent& event : events_) {
    accepted_ = accepted_ || event.has_accepted();
    if (exchange_.first_token_s < 0 && event.has_delta()) {
      exchange_.first_token_s = exchange_.Seconds();
    }
    Count(event, &parts_[index]);
    answer_->OnEvent(index, event, &out_);
  }
  if (ended) {
    parts_[index].call = nullptr;
    const bool untouched =
        call->status().error_code() == grpc::StatusCode::UNAVAILABLE && !call->begun();
    if (untouched && StartPart(index)) {
      door_.metrics->Retried();
    } else {
      OnPartEnd(index, call->status());
    }
  }
}

void Generation::Count(const v1::GenerateEvent& event, Part* part) {
  if (event.has_accepted()) {
    if (use_ != nullptr) use_->AddTokens(event.accepted().prompt_tokens());
  } else if (event.has_delta()) {
    const v1::Delta& delta = event.delta();
    part->tokens += std::max({1, delta.token_ids_size(), delta.logprobs().token_ids_size()});
  } else if (event.has_finished()) {
    part->tokens = event.finished().usage().completion_tokens();
  }
}

void Generation::OnPartEnd(size_t index, const grpc::Status& status) {
  std::optional<ApiError> error = answer_->OnEnd(index, status, &out_);
  if (error && !error_) error_ = std::move(error);
}

void Generation::TakeAll() {
  for (size_t i = 0; i < parts_.size() && !error_; ++i) {
    if (parts_[i].call != nullptr) TakePart(i);
  }
}

boost::asio::awaitable<bool> Generation::Send(bool last) {
  framed_.clear();
  if (!head_sent_) {
    head_sent_ = true;
    exchange_.status = 200;
    if (!exchange_.request->http11) exchange_.close = true;
    Response response;
    response.content_type = "text/event-stream; charset=utf-8";
    response.headers = {{"Cache-Control", "no-store"}, {"X-Accel-Buffering", "no"}};
    framed_ = MakeHead(exchange_, response, -1, door_.CorsFor(exchange_.request->origin));
  }
  if (exchange_.request->http11) {
    if (!out_.empty()) {
      absl::StrAppendFormat(&framed_, "%x\r\n", out_.size());
      absl::StrAppend(&framed_, out_, "\r\n");
    }
    if (last) framed_ += "0\r\n\r\n";
  } else {
    framed_ += out_;
  }
  out_.clear();
  const bool written = co_await connection_.Write(exchange_, framed_);
  co_return written;
}

boost::asio::awaitable<void> Generation::Pump() {
  const auto comment_time = std::chrono::microseconds(door_.options.comment_us);
  connection_.Watch();
  auto last_write = Connection::Clock::now();
  while (true) {
    TakeAll();
    if (connection_.gone()) {
      exchange_.status = 499;
      co_return;
    }
    if (error_ || answer_->complete()) break;
    if (call_->stream) {
      const auto now = Connection::Clock::now();
      if (out_.empty() && now - last_write >= comment_time) out_ = ": keep-alive\n\n";
      if (!out_.empty() || (accepted_ && !head_sent_)) {
        last_write = now;
        const bool written = co_await Send(false);
        if (!written) {
          exchange_.status = 499;
          co_return;
        }
        continue;  // events that came meanwhile have woken the write, and wake nobody again
      }
      co_await connection_.Wait(last_write + comment_time);
    } else {
      co_await connection_.Wait(Connection::Clock::time_point::max());
    }
  }
  co_await Finish();
}

boost::asio::awaitable<void> Generation::Finish() {
  CancelAll();
  bool written = false;
  if (error_ && !head_sent_) {
    written = co_await connection_.RespondError(exchange_, *error_);
  } else if (call_->stream) {
    written = co_await Send(true);
    if (error_) exchange_.status = error_->status;  // for the log; the client saw 200
  } else {
    Response response;
    response.body = answer_->Body();
    response.headers.emplace_back("Cache-Control", "no-store");
    written = co_await connection_.Respond(exchange_, std::move(response));
  }
  if (!written) exchange_.status = 499;
}

void Generation::CancelAll() {
  for (Part& part : parts_) {
    if (part.call != nullptr) part.call->Cancel();
    part.call = nullptr;
  }
}

boost::asio::awaitable<void> Generation::Run() {
  if (door_.draining) {
    error_ = Draining();
  } else {
    co_await Parse();
  }
  if (error_ || !Begin()) {
    co_await connection_.RespondError(exchange_, *error_);
    co_return;
  }
  co_await Pump();
  exchange_.prompt_tokens = answer_->prompt_tokens();
  exchange_.completion_tokens = answer_->completion_tokens();
  // Also of an answer whose reader left: only the end of one tells all of its tokens.
  for (const Part& part : parts_) {
    if (use_ != nullptr) use_->AddTokens(part.tokens);
  }
}

// A unary call; lives until gRPC is done with it, whoever still waits.
template <typename RequestT, typename ResponseT>
struct UnaryCall {
  grpc::ClientContext context;
  RequestT request;
  ResponseT response;
  grpc::Status status;
  std::atomic<bool> done{false};
};

// Starts the call by `start(call, on_done)` and waits. False: the client left.
template <typename RequestT, typename ResponseT, typename Start>
boost::asio::awaitable<bool> CallUnary(Connection& connection, Exchange& exchange,
                                       std::shared_ptr<UnaryCall<RequestT, ResponseT>> call,
                                       Start start) {
  for (const auto& [name, value] : MakeMetadata(exchange)) {
    call->context.AddMetadata(name, value);
  }
  start(call.get(), [call, wake = connection.Waker()](const grpc::Status& status) {
    call->status = status;
    call->done.store(true, std::memory_order_release);
    wake();
  });
  connection.Watch();
  while (!call->done.load(std::memory_order_acquire)) {
    if (connection.gone()) {
      call->context.TryCancel();
      exchange.status = 499;
      co_return false;
    }
    co_await connection.Wait(Connection::Clock::time_point::max());
  }
  co_return true;
}

boost::asio::awaitable<void> Tokenize(Connection& connection, Exchange& exchange,
                                      const Facts& facts, v1::TokenizerService::Stub& stub,
                                      const TokenizeCall& asked) {
  using Unary = UnaryCall<v1::TokenizeRequest, v1::TokenizeResponse>;
  auto call = std::make_shared<Unary>();
  call->request = asked.request;
  const bool done = co_await CallUnary(connection, exchange, call, [&](Unary* unary, auto on_done) {
    stub.async()->Tokenize(&unary->context, &unary->request, &unary->response, std::move(on_done));
  });
  if (!done) co_return;
  if (!call->status.ok()) {
    // Named, not a temporary: GCC 12 destroys default arguments in co_await expressions twice.
    const ApiError error = FromStatus(call->status);
    co_await connection.RespondError(exchange, error);
    co_return;
  }
  exchange.prompt_tokens = call->response.ids_size();
  Response response;
  response.body = TokenizeBody(asked, call->response, *facts);
  co_await connection.Respond(exchange, std::move(response));
}

boost::asio::awaitable<void> Detokenize(Connection& connection, Exchange& exchange,
                                        v1::TokenizerService::Stub& stub,
                                        v1::DetokenizeRequest request) {
  using Unary = UnaryCall<v1::DetokenizeRequest, v1::DetokenizeResponse>;
  auto call = std::make_shared<Unary>();
  call->request = std::move(request);
  const bool done = co_await CallUnary(connection, exchange, call, [&](Unary* unary, auto on_done) {
    stub.async()->Detokenize(&unary->context, &unary->request, &unary->response,
                             std::move(on_done));
  });
  if (!done) co_return;
  if (!call->status.ok()) {
    // Named, not a temporary: GCC 12 destroys default arguments in co_await expressions twice.
    const ApiError error = FromStatus(call->status);
    co_await connection.RespondError(exchange, error);
    co_return;
  }
  Response response;
  response.body = DetokenizeBody(call->response);
  co_await connection.Respond(exchange, std::move(response));
}

}  // namespace

boost::asio::awaitable<void> ServeGeneration(Connection& connection, Exchange& exchange) {
  Generation generation(connection, exchange);
  co_await generation.Run();
}

boost::asio::awaitable<void> ServeTokenizer(Connection& connection, Exchange& exchange) {
  Door& door = connection.door();
  const std::vector<Facts> models = door.backends->Models();
  if (models.empty() || door.draining) {
    const ApiError unavailable = door.draining ? Draining() : NoServer();
    co_await connection.RespondError(exchange, unavailable);
    co_return;
  }
  Facts facts;
  std::optional<std::variant<TokenizeCall, ApiError>> tokenize;
  std::optional<std::variant<v1::DetokenizeRequest, ApiError>> detokenize;
  const auto parse = [&] {
    const std::string& body = exchange.request->body;
    if (exchange.route == Route::kTokenize) {
      tokenize = ParseFor<TokenizeCall>(
          models, &facts, [&body](const ModelFacts& model) { return ParseTokenize(body, model); });
    } else {
      detokenize = ParseFor<v1::DetokenizeRequest>(
          models, &facts,
          [&body](const ModelFacts& model) { return ParseDetokenize(body, model); });
    }
  };
  if (exchange.request->body.size() > kParseHere) {
    co_await connection.OnWorker(parse);
  } else {
    parse();
  }
  const ApiError* error =
      tokenize ? std::get_if<ApiError>(&*tokenize) : std::get_if<ApiError>(&*detokenize);
  if (error != nullptr) {
    co_await connection.RespondError(exchange, *error);
    co_return;
  }
  const std::shared_ptr<Backend> backend = door.backends->Pick(facts->id, {});
  if (backend == nullptr) {
    const ApiError unavailable = NoServer();
    co_await connection.RespondError(exchange, unavailable);
    co_return;
  }
  const auto stub = v1::TokenizerService::NewStub(backend->channel());
  if (tokenize) {
    co_await Tokenize(connection, exchange, facts, *stub, std::get<TokenizeCall>(*tokenize));
  } else {
    co_await Detokenize(connection, exchange, *stub,
                        std::get<v1::DetokenizeRequest>(std::move(*detokenize)));
  }
}

}  // namespace weir::gateway
