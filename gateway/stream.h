// Stream: the bytes of one connection, in the clear or under TLS, without waiting. Whoever uses it
// waits for the socket and calls again. One thread.
#pragma once

#include <openssl/types.h>

#include <boost/asio/ip/tcp.hpp>
#include <cstddef>
#include <memory>

namespace weir::gateway {

class Stream {
 public:
  enum class Io : unsigned char {
    kOk,
    kWantRead,   // again when the socket is readable
    kWantWrite,  // again when it is writable
    kClosed,     // the peer sends nothing more
    kFailed,     // the connection is of no use any more
  };
  struct Result {
    Io io = Io::kOk;
    size_t bytes = 0;
  };

  // With `tls` the TLS side of a server; null: in the clear. The socket must not block.
  Stream(boost::asio::ip::tcp::socket socket, SSL_CTX* tls);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  boost::asio::ip::tcp::socket& socket() { return socket_; }

  // kOk when done, at once without TLS. Anything but kOk and the kWants ends the connection.
  Io Handshake();
  Result Read(char* to, size_t size);
  // May take a part. REQUIRES: size > 0.
  Result Write(const char* from, size_t size);
  // Bytes were taken from the socket that the next Read gives, whatever the socket says.
  bool HasBuffered() const;
  // Says that nothing more is sent.
  void ShutdownSend();
  void Close();

 private:
  struct FreeSsl {
    void operator()(SSL* ssl) const;
  };
  Io SslError(int result);

  boost::asio::ip::tcp::socket socket_;
  const bool secure_;
  std::unique_ptr<SSL, FreeSsl> ssl_;  // null: in the clear
};

}  // namespace weir::gateway
