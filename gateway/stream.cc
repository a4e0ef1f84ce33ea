#include "gateway/stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

namespace weir::gateway {
namespace {

int ClampToInt(size_t size) {
  return static_cast<int>(std::min<size_t>(size, std::numeric_limits<int>::max()));
}

}  // namespace

void Stream::FreeSsl::operator()(SSL* ssl) const { SSL_free(ssl); }

Stream::Stream(boost::asio::ip::tcp::socket socket, SSL_CTX* tls)
    : socket_(std::move(socket)), secure_(tls != nullptr) {
  if (tls == nullptr) return;
  ssl_.reset(SSL_new(tls));
  if (ssl_ == nullptr) return;
  SSL_set_fd(ssl_.get(), socket_.native_handle());
  SSL_set_accept_state(ssl_.get());
}

Stream::~Stream() = default;

Stream::Io Stream::SslError(int result) {
  const int error = SSL_get_error(ssl_.get(), result);
  // The queue is the thread's: what one connection leaves there, the next would find.
  ERR_clear_error();
  switch (error) {
    case SSL_ERROR_WANT_READ:
      return Io::kWantRead;
    case SSL_ERROR_WANT_WRITE:
      return Io::kWantWrite;
    case SSL_ERROR_ZERO_RETURN:
      return Io::kClosed;
    default:
      return Io::kFailed;
  }
}

Stream::Io Stream::Handshake() {
  if (ssl_ == nullptr) return secure_ ? Io::kFailed : Io::kOk;  // never in the clear instead
  const int result = SSL_do_handshake(ssl_.get());
  return result == 1 ? Io::kOk : SslError(result);
}

Stream::Result Stream::Read(char* to, size_t size) {
  if (ssl_ != nullptr) {
    const int got = SSL_read(ssl_.get(), to, ClampToInt(size));
    if (got > 0) return {Io::kOk, static_cast<size_t>(got)};
    return {SslError(got), 0};
  }
  const ssize_t got = recv(socket_.native_handle(), to, size, 0);
  if (got > 0) return {Io::kOk, static_cast<size_t>(got)};
  if (got == 0) return {Io::kClosed, 0};
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return {Io::kWantRead, 0};
  return {Io::kFailed, 0};
}

Stream::Result Stream::Write(const char* from, size_t size) {
  if (ssl_ != nullptr) {
    const int put = SSL_write(ssl_.get(), from, ClampToInt(size));
    if (put > 0) return {Io::kOk, static_cast<size_t>(put)};
    return {SslError(put), 0};
  }
  const ssize_t put = send(socket_.native_handle(), from, size, MSG_NOSIGNAL);
  if (put > 0) return {Io::kOk, static_cast<size_t>(put)};
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return {Io::kWantWrite, 0};
  return {Io::kFailed, 0};
}

// Not SSL_has_pending, which also says yes to the first half of a record: whoever read again at
// once would do so until the client sends the other half.
bool Stream::HasBuffered() const { return ssl_ != nullptr && SSL_pending(ssl_.get()) > 0; }

void Stream::ShutdownSend() {
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_.get()) == 1) {
    SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }
  boost::system::error_code ignored;
  socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
}

void Stream::Close() {
  boost::system::error_code ignored;
  socket_.close(ignored);
}

}  // namespace weir::gateway
