#include "gateway/connection.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/log.h"
#include "gateway/access_log.h"
#include "gateway/authorizer.h"
#include "gateway/door.h"
#include "gateway/generation.h"
#include "gateway/http_metrics.h"
#include "gateway/request_id.h"
#include "gateway/simple_routes.h"

namespace weir::gateway {
namespace asio = boost::asio;
namespace {

constexpr size_t kReadBytes = 64 << 10;
// Of further requests, while one is being answered.
constexpr size_t kMaxReadAhead = 64 << 10;
constexpr size_t kWriteProgress = 64 << 10;
constexpr size_t kKeptCapacity = 1024;
constexpr std::chrono::seconds kLingerTime{10};
constexpr std::chrono::seconds kLingerPause{2};

std::chrono::microseconds Us(int64_t us) { return std::chrono::microseconds(us); }

// Room for one read; the thread's, as nothing waits while it is in use.
char* Scratch() {
  thread_local const std::unique_ptr<char[]> bytes(new char[kReadBytes]);
  return bytes.get();
}

}  // namespace

Connection::Connection(Door* door, const std::shared_ptr<asio::io_context>& io,
                       asio::ip::tcp::socket socket, std::shared_ptr<SSL_CTX> tls,
                       std::string client)
    : door_(door),
      io_(io.get()),
      weak_io_(io),
      tls_(std::move(tls)),
      stream_(std::move(socket), tls_.get()),
      client_(std::move(client)),
      timer_(*io) {}

Connection::~Connection() = default;

void Connection::Start(std::function<void()> ended) {
  asio::co_spawn(*io_, Run(),
                 [self = shared_from_this(), ended = std::move(ended)](std::exception_ptr error) {
                   if (error != nullptr) LogError("gateway: a connection ended by an exception");
                   self->stream_.Close();
                   ended();
                 });
}

void Connection::CloseWhenIdle() {
  if (!answering_) Wake();
}

void Connection::Kill() {
  failed_ = true;
  stream_.Close();
  Wake();
}

Connection::Awaitable<void> Connection::Wait(Clock::time_point deadline) {
  if (!std::exchange(woken_, false)) {
    timer_.expires_at(deadline);
    waiting_ = true;
    boost::system::error_code ignored;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    waiting_ = false;
    woken_ = false;
  }
}

void Connection::Wake() {
  if (std::exchange(woken_, true)) return;
  if (waiting_) timer_.cancel();
}

std::function<void()> Connection::Waker() {
  return [weak_io = weak_io_, weak = weak_from_this()] {
    const auto io = weak_io.lock();
    if (io == nullptr) return;
    asio::post(*io, [weak] {
      if (const auto self = weak.lock()) self->Wake();
    });
  };
}

Connection::Awaitable<void> Connection::OnWorker(std::function<void()> work) {
  bool done = false;
  std::exception_ptr thrown;
  asio::post(door_->workers, [this, &work, &done, &thrown] {
    try {
      work();
    } catch (...) {
      thrown = std::current_exception();
    }
    asio::post(*io_, [this, &done] {
      done = true;
      Wake();
    });
  });
  while (!done) co_await Wait(Clock::time_point::max());
  if (thrown != nullptr) std::rethrow_exception(thrown);
}

void Connection::ArmRead() {
  if (read_armed_ || gone()) return;
  read_armed_ = true;
  auto on_readable = [self = shared_from_this()](const boost::system::error_code& error) {
    self->OnReadable(error);
  };
  if (stream_.HasBuffered()) {
    asio::post(*io_, [on_readable] { on_readable({}); });
  } else {
    stream_.socket().async_wait(asio::socket_base::wait_read, std::move(on_readable));
  }
}

void Connection::ArmWrite(Stream::Io want) {
  if (write_armed_) return;
  write_armed_ = true;
  const auto kind =
      want == Stream::Io::kWantRead ? asio::socket_base::wait_read : asio::socket_base::wait_write;
  stream_.socket().async_wait(kind, [self = shared_from_this()](const auto&) {
    self->write_armed_ = false;
    self->Wake();
  });
}

void Connection::OnReadable(const boost::system::error_code& error) {
  read_armed_ = false;
  if (failed_) return;
  if (error) {
    failed_ = true;
  } else {
    char* const scratch = Scratch();
    const Stream::Result got = stream_.Read(scratch, kReadBytes);
    switch (got.io) {
      case Stream::Io::kOk:
        input_.append(scratch, got.bytes);
        break;
      case Stream::Io::kClosed:
        ended_ = true;
        break;
      case Stream::Io::kFailed:
        failed_ = true;
        break;
      default:
        break;
    }
  }
  if (watching_ && !gone()) {
    if (input_.size() - input_at_ < kMaxReadAhead) ArmRead();
    return;
  }
  Wake();
}

void Connection::Watch() {
  watching_ = true;
  if (input_.size() - input_at_ < kMaxReadAhead) ArmRead();
}

Connection::Awaitable<bool> Connection::Write(Exchange& exchange, std::string_view bytes) {
  Clock::time_point deadline = Clock::now() + Us(door_->options.write_us);
  size_t progress = 0;
  while (!bytes.empty()) {
    if (failed_) co_return false;
    const Stream::Result put = stream_.Write(bytes.data(), bytes.size());
    if (put.io == Stream::Io::kOk) {
      bytes.remove_prefix(put.bytes);
      exchange.sent_bytes += static_cast<int64_t>(put.bytes);
      progress += put.bytes;
      if (progress >= kWriteProgress) {
        progress = 0;
        deadline = Clock::now() + Us(door_->options.write_us);
      }
      continue;
    }
    if (put.io == Stream::Io::kFailed || put.io == Stream::Io::kClosed ||
        Clock::now() >= deadline) {
      failed_ = true;
      co_return false;
    }
    ArmWrite(put.io);
    co_await Wait(deadline);
  }
  co_return true;
}

Connection::Awaitable<bool> Connection::Respond(Exchange& exchange, Response response) {
  exchange.status = response.status;
  const bool no_body = response.status == 204 || response.status == 304;
  std::string bytes =
      MakeHead(exchange, response, no_body ? 0 : static_cast<int64_t>(response.body.size()),
               exchange.request == nullptr ? "" : door_->CorsFor(exchange.request->origin));
  const bool head_only = exchange.request != nullptr && exchange.request->method == "HEAD";
  if (!head_only && !no_body) bytes += response.body;
  const bool written = co_await Write(exchange, bytes);
  co_return written;
}

Connection::Awaitable<bool> Connection::RespondError(Exchange& exchange, const ApiError& error) {
  Response response;
  response.status = error.status;
  response.body = ErrorBody(error);
  if (error.retry_after_ms > 0) {
    response.headers.emplace_back("Retry-After", absl::StrCat((error.retry_after_ms + 999) / 1000));
  }
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (error.status == 405) {
    const std::string_view allowed = AllowedMethods(exchange.route);
    response.headers.emplace_back("Allow", std::string(allowed));
  }
  if (!exchange.whole) exchange.close = true;
  const bool written = co_await Respond(exchange, std::move(response));
  co_return written;
}

Connection::Awaitable<void> Connection::Run() {
  const bool ready = co_await Handshake();
  if (!ready) co_return;
  bool more = true;
  while (more) more = co_await OneRequest();
  if (!failed_) co_await Linger();
}

Connection::Awaitable<bool> Connection::Handshake() {
  const Clock::time_point deadline = Clock::now() + Us(door_->options.header_us);
  while (!failed_) {  // a socket that was closed may have become another connection's
    const Stream::Io io = stream_.Handshake();
    if (io == Stream::Io::kOk) co_return true;
    if (io == Stream::Io::kFailed || io == Stream::Io::kClosed) co_return false;
    if (Clock::now() >= deadline) co_return false;
    ArmWrite(io);
    co_await Wait(deadline);
  }
  co_return false;
}

Connection::Awaitable<Connection::Outcome> Connection::ReadWhile(RequestParser::State from,
                                                                 RequestParser& parser,
                                                                 Exchange& exchange) {
  const Options& options = door_->options;
  const bool header = from == RequestParser::State::kHeader;
  bool started = !header || parser.started();
  Clock::time_point deadline =
      Clock::now() +
      Us(header ? (first_request_ ? options.header_us : options.idle_us) : options.body_us);
  while (true) {
    const size_t taken = parser.Put(std::string_view(input_).substr(input_at_));
    input_at_ += taken;
    exchange.received_bytes += static_cast<int64_t>(taken);
    if (input_at_ == input_.size() || input_at_ > kReadBytes) {
      input_.erase(0, input_at_);
      input_at_ = 0;
    }
    if (parser.state() != from) co_return Outcome::kOk;
    if (!started && parser.started()) {
      started = true;
      deadline = Clock::now() + Us(options.header_us);
    }
    if (!header) {
      const auto held = static_cast<int64_t>(parser.request().body.size());
      if (exchange.budget.Hold(held) > options.max_bodies_bytes) co_return Outcome::kNoRoom;
    } else if (!started) {
      if (input_.capacity() > kKeptCapacity) std::string().swap(input_);
      // A connection that has just come may still ask whether the server is ready.
      if (door_->draining && !first_request_) co_return Outcome::kEnded;
    }
    if (gone()) co_return Outcome::kEnded;
    if (Clock::now() >= deadline) co_return Outcome::kTimeout;
    ArmRead();
    co_await Wait(deadline);
  }
}

Connection::Awaitable<bool> Connection::OneRequest() {
  RequestParser parser({.header_bytes = static_cast<size_t>(door_->options.max_header_bytes),
                        .body_bytes = static_cast<uint64_t>(door_->options.max_body_bytes)});
  Exchange exchange(&door_->body_bytes);
  watching_ = false;
  answering_ = false;
  const Outcome outcome = co_await ReadWhile(RequestParser::State::kHeader, parser, exchange);
  if (outcome == Outcome::kEnded) co_return false;
  if (outcome == Outcome::kTimeout && !parser.started()) co_return false;
  first_request_ = false;
  answering_ = true;
  BeginExchange(exchange, parser);
  bool thrown = false;
  if (outcome == Outcome::kTimeout) {
    exchange.close = true;
    const ApiError late = HttpError(408, "The request's header took too long to come.");
    co_await RespondError(exchange, late);
  } else {
    try {
      co_await AnswerRequest(exchange, parser);
    } catch (const std::exception& error) {  // of the library: no memory, for one
      LogError("gateway: request ", exchange.id, ": ", error.what());
      thrown = true;
    }
  }
  if (thrown) {
    exchange.close = true;
    if (exchange.sent_bytes == 0) {
      const ApiError failed = HttpError(500, "The gateway failed; its log says why.");
      co_await RespondError(exchange, failed);
    }
    exchange.status = 500;
  }
  EndExchange(exchange);
  co_return !exchange.close && !gone();
}

void Connection::BeginExchange(Exchange& exchange, RequestParser& parser) {
  exchange.begin = Exchange::Clock::now();
  exchange.request = &parser.request();
  exchange.route = FindRoute(exchange.request->path());
  exchange.id =
      IsRequestId(exchange.request->request_id) ? exchange.request->request_id : NewRequestId();
  exchange.close = !exchange.request->keep_alive || door_->draining;
  exchange.whole = parser.state() == RequestParser::State::kDone;
  door_->metrics->RequestBegun();
  door_->in_flight.Add(1);
}

void Connection::EndExchange(Exchange& exchange) {
  const double seconds = exchange.Seconds();
  door_->metrics->RequestEnded(exchange.route, exchange.status, seconds, exchange.first_token_s,
                               exchange.received_bytes, exchange.sent_bytes);
  const std::string_view path = exchange.request->path();
  AccessLine line;
  line.id = exchange.id;
  line.method = exchange.request->method;
  line.path = path;
  line.key = exchange.key;
  line.client = client_;
  line.status = exchange.status;
  line.received_bytes = exchange.received_bytes;
  line.sent_bytes = exchange.sent_bytes;
  line.ms = seconds * 1e3;
  line.first_token_ms = exchange.first_token_s * 1e3;
  line.prompt_tokens = exchange.prompt_tokens;
  line.completion_tokens = exchange.completion_tokens;
  door_->access_log->Write(line);
  door_->in_flight.Add(-1);
}

bool Connection::CheckHeader(Exchange& exchange, ApiError* error) const {
  const Request& request = *exchange.request;
  if (request.method == "OPTIONS" && exchange.route != Route::kUnknown) return true;
  if (exchange.route == Route::kUnknown) {
    *error = UnknownPath(request.method, std::string(request.path()));
    return false;
  }
  if (!IsAllowed(exchange.route, request.method)) {
    const std::string_view allowed = AllowedMethods(exchange.route);
    *error = HttpError(405, absl::StrCat(request.method, " is not for this path; it takes ",
                                         std::string(allowed), "."));
    return false;
  }
  if (door_->authorizer != nullptr && NeedsKey(exchange.route)) {
    auto checked = door_->authorizer->Check(request.authorization, client_);
    if (auto* refused = std::get_if<ApiError>(&checked)) {
      *error = std::move(*refused);
      return false;
    }
    exchange.key = std::get<std::string>(std::move(checked));
  }
  return true;
}

Connection::Awaitable<void> Connection::AnswerRequest(Exchange& exchange, RequestParser& parser) {
  ApiError error;
  if (parser.state() == RequestParser::State::kFailed) {
    exchange.close = true;
    error = HttpError(parser.status(), parser.error());
    co_await RespondError(exchange, error);
    co_return;
  }
  if (!CheckHeader(exchange, &error)) {
    co_await RespondError(exchange, error);
    co_return;
  }
  if (parser.state() == RequestParser::State::kBody) {
    if (exchange.request->expects_continue && input_.size() == input_at_) {
      const bool written = co_await Write(exchange, "HTTP/1.1 100 Continue\r\n\r\n");
      if (!written) co_return;
    }
    const Outcome outcome = co_await ReadWhile(RequestParser::State::kBody, parser, exchange);
    if (outcome == Outcome::kEnded) {
      exchange.close = true;
      exchange.status = 499;
      co_return;
    }
    if (outcome == Outcome::kTimeout) {
      error = HttpError(408, "The request's body took too long to come.");
    } else if (outcome == Outcome::kNoRoom) {
      error = HttpError(503, "Too many large requests are being read; try again.", 1000);
    } else if (parser.state() == RequestParser::State::kFailed) {
      error = HttpError(parser.status(), parser.error());
    } else {
      exchange.whole = true;
    }
    if (!exchange.whole) {
      co_await RespondError(exchange, error);
      co_return;
    }
  }
  co_await Dispatch(exchange);
}

Connection::Awaitable<void> Connection::Dispatch(Exchange& exchange) {
  switch (exchange.request->method == "OPTIONS" ? Route::kHealth : exchange.route) {
    case Route::kChat:
    case Route::kCompletions:
      co_await ServeGeneration(*this, exchange);
      break;
    case Route::kTokenize:
    case Route::kDetokenize:
      co_await ServeTokenizer(*this, exchange);
      break;
    case Route::kMetrics: {
      Response response;
      co_await OnWorker([this, &response] { response = MetricsResponse(*door_); });
      co_await Respond(exchange, std::move(response));
      break;
    }
    default: {
      auto answer = AnswerSimple(*door_, exchange);
      if (auto* error = std::get_if<ApiError>(&answer)) {
        co_await RespondError(exchange, *error);
      } else {
        co_await Respond(exchange, std::get<Response>(std::move(answer)));
      }
    }
  }
}

Connection::Awaitable<void> Connection::Linger() {
  stream_.ShutdownSend();
  const Clock::time_point end = Clock::now() + kLingerTime;
  watching_ = false;
  Clock::time_point pause = Clock::now() + kLingerPause;
  while (!gone() && Clock::now() < std::min(end, pause)) {
    if (input_.size() > 0) {
      pause = Clock::now() + kLingerPause;
      std::string().swap(input_);
    }
    ArmRead();
    co_await Wait(std::min(end, pause));
  }
}

}  // namespace weir::gateway
