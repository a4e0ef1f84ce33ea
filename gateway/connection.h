// Connection: one client's connection to the HTTP door, from accept to close.
//
// All of it runs on the thread of its io_context, as one coroutine that reads a request, answers
// it, and reads the next. Bytes are read only while somebody wants them: for a request, or to
// notice that the client leaves while its answer is being made (then a bounded number of bytes of
// further requests waits here). Every wait has a deadline.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "gateway/api_error.h"
#include "gateway/exchange.h"
#include "gateway/request_parser.h"
#include "gateway/stream.h"

namespace weir::gateway {

struct Door;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Clock = std::chrono::steady_clock;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  // `tls`: null in the clear. `client`: the peer's address, for the log. `door` and `io` outlive
  // it; what Waker gives may outlive them.
  Connection(Door* door, const std::shared_ptr<boost::asio::io_context>& io,
             boost::asio::ip::tcp::socket socket, std::shared_ptr<SSL_CTX> tls, std::string client);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Begins; `ended` is called on the thread when all is over.
  void Start(std::function<void()> ended);
  // Closes it when no request is being answered. On the thread.
  void CloseWhenIdle();
  // Ends it now. On the thread.
  void Kill();

  // For those who make answers, on the thread:

  Door& door() { return *door_; }
  const std::string& client() const { return client_; }
  // Suspends until Wake, or until `deadline`. May return early: look again at what was waited for.
  Awaitable<void> Wait(Clock::time_point deadline);
  void Wake();
  // A function that wakes it, for any thread, at any time. Does not keep it alive.
  std::function<void()> Waker();
  // Runs `work` on another thread and waits for it.
  Awaitable<void> OnWorker(std::function<void()> work);
  // From now on a client that leaves is noticed: it wakes, and gone() turns true. A client that
  // only closes its sending half counts as one that left.
  void Watch();
  bool gone() const { return ended_ || failed_; }

  // False: the client did not take it, and the connection is of no use any more.
  Awaitable<bool> Write(Exchange& exchange, std::string_view bytes);
  // A whole answer.
  Awaitable<bool> Respond(Exchange& exchange, Response response);
  Awaitable<bool> RespondError(Exchange& exchange, const ApiError& error);

 private:
  enum class Outcome : unsigned char { kOk, kEnded, kTimeout, kNoRoom };

  Awaitable<void> Run();
  Awaitable<bool> Handshake();
  // Reads and answers one request. False: the connection ends.
  Awaitable<bool> OneRequest();
  Awaitable<void> AnswerRequest(Exchange& exchange, RequestParser& parser);
  Awaitable<void> Dispatch(Exchange& exchange);
  // Until the parser has left `from`.
  Awaitable<Outcome> ReadWhile(RequestParser::State from, RequestParser& parser,
                               Exchange& exchange);
  // Takes what the client still sends, so that it gets to read the answer.
  Awaitable<void> Linger();

  void BeginExchange(Exchange& exchange, RequestParser& parser);
  void EndExchange(Exchange& exchange);
  // What is wrong with the request, as far as its header tells.
  bool CheckHeader(Exchange& exchange, ApiError* error) const;
  void ArmRead();
  void ArmWrite(Stream::Io want);
  void OnReadable(const boost::system::error_code& error);

  Door* const door_;
  boost::asio::io_context* const io_;
  const std::weak_ptr<boost::asio::io_context> weak_io_;
  const std::shared_ptr<SSL_CTX> tls_;
  Stream stream_;
  const std::string client_;
  boost::asio::steady_timer timer_;
  std::string input_;  // read and not yet parsed: from input_at_ on
  size_t input_at_ = 0;
  bool read_armed_ = false, write_armed_ = false;
  bool watching_ = false;
  bool waiting_ = false, woken_ = false;
  bool ended_ = false;   // the client sends nothing more
  bool failed_ = false;  // nothing can be sent either
  bool answering_ = false;
  bool first_request_ = true;
};

}  // namespace weir::gateway
