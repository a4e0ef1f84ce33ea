#include "gateway/gateway.h"

#include <netdb.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "core/log.h"
#include "gateway/access_log.h"
#include "gateway/api_error.h"
#include "gateway/connection.h"
#include "gateway/door.h"
#include "gateway/http_metrics.h"
#include "gateway/tls.h"

namespace weir::gateway {
namespace asio = boost::asio;
using asio::ip::tcp;
namespace {

constexpr int kBacklog = 4096;
constexpr int64_t kFilesForOthers = 256;  // descriptors that are no connections
constexpr std::chrono::milliseconds kAcceptPause{50};
constexpr int64_t kLastRequestsUs = 5'000'000;

// What a connection too many hears.
std::string TooMany() {
  const std::string body = ErrorBody(HttpError(503, "There are too many connections.", 1000));
  return absl::StrCat(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
      "Connection: close\r\nRetry-After: 1\r\nContent-Length: ",
      body.size(), "\r\n\r\n", body);
}

absl::Status CannotListen(const std::string& address, const std::string& why) {
  return absl::UnavailableError(absl::StrCat("cannot serve HTTP on ", address, ": ", why));
}

// Opens `acceptor` on "host:port" and leaves the real port in `port`.
absl::Status Listen(const std::string& address, tcp::acceptor* acceptor, int* port) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return CannotListen(address, "write host:port");
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found);
  if (code != 0) return CannotListen(address, gai_strerror(code));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(found, freeaddrinfo);
  tcp::endpoint endpoint;
  std::memcpy(endpoint.data(), found->ai_addr, found->ai_addrlen);
  endpoint.resize(found->ai_addrlen);
  boost::system::error_code error;
  acceptor->open(endpoint.protocol(), error);
  if (!error) acceptor->set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor->bind(endpoint, error);
  if (!error) acceptor->listen(kBacklog, error);
  if (error) return CannotListen(address, error.message());
  *port = acceptor->local_endpoint().port();
  return absl::OkStatus();
}

// Raises the process's limit of open files as far as it may; returns how many connections fit.
int64_t FitConnections(int64_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur == RLIM_INFINITY) return wanted;
  const int64_t room =
      std::max<int64_t>(16, static_cast<int64_t>(limit.rlim_cur) - kFilesForOthers);
  if (room < wanted) {
    LogWarning("gateway: at most ", room, " HTTP connections, not ", wanted,
               ": the process may open only ", limit.rlim_cur, " files");
  }
  return std::min(room, wanted);
}

int NumThreads(int64_t asked) {
  if (asked > 0) return static_cast<int>(asked);
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency() / 8, 1u, 4u));
}

struct IoThread {
  std::shared_ptr<asio::io_context> io = std::make_shared<asio::io_context>(1);
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(*io);
  std::unordered_set<std::shared_ptr<Connection>> connections;  // of the thread
  std::thread thread;
};

}  // namespace

struct Gateway::Impl {
  Door door;
  std::unique_ptr<HttpMetrics> metrics;
  std::unique_ptr<AccessLog> access_log;
  std::unique_ptr<Backends> backends;
  std::vector<std::unique_ptr<IoThread>> threads;
  std::unique_ptr<tcp::acceptor> acceptor;  // of the first thread, like all that accepts
  std::unique_ptr<asio::steady_timer> accept_pause;
  size_t next_thread = 0;
  int64_t max_connections = 0;
  WaitableCount open;  // connections
  std::string address;

  std::mutex tls_mutex;
  std::shared_ptr<SSL_CTX> tls;  // guarded by tls_mutex; null: in the clear

  absl::Status Begin(const Options& options, Parts parts);
  void Accept();
  void Take(IoThread* thread, tcp::socket socket);
  void ForEachConnection(void (Connection::*method)());
  void End();
};

absl::Status Gateway::Impl::Begin(const Options& options, Parts parts) {
  signal(SIGPIPE, SIG_IGN);
  door.options = options;
  if (!options.tls_cert.empty()) {
    ASSIGN_OR_RETURN(tls, MakeTlsContext(options));
  }
  metrics = std::make_unique<HttpMetrics>(parts.registry);
  ASSIGN_OR_RETURN(access_log,
                   AccessLog::Open(options.access_log, [this] { metrics->LogLineDropped(); }));
  max_connections = FitConnections(options.max_connections);
  for (int i = 0; i < NumThreads(options.threads); ++i) {
    threads.push_back(std::make_unique<IoThread>());
  }
  acceptor = std::make_unique<tcp::acceptor>(*threads[0]->io);
  accept_pause = std::make_unique<asio::steady_timer>(*threads[0]->io);
  int port = 0;
  RETURN_IF_ERROR(Listen(options.http, acceptor.get(), &port));
  address = absl::StrCat(options.http.substr(0, options.http.rfind(':')), ":", port);

  backends = std::make_unique<Backends>(std::move(parts.backends), metrics.get());
  door.metrics = metrics.get();
  door.access_log = access_log.get();
  door.backends = backends.get();
  door.authorizer = parts.authorizer;
  door.registry = parts.registry;
  door.own_server = parts.own_server;
  for (const absl::string_view origin : absl::StrSplit(options.cors, ',', absl::SkipWhitespace())) {
    door.origins.emplace_back(absl::StripAsciiWhitespace(origin));
  }
  for (const auto& thread : threads) {
    thread->thread = std::thread([io = thread->io.get()] { io->run(); });
  }
  asio::post(*threads[0]->io, [this] { Accept(); });
  return absl::OkStatus();
}

void Gateway::Impl::Accept() {
  IoThread* const thread = threads[next_thread++ % threads.size()].get();
  acceptor->async_accept(
      *thread->io, [this, thread](const boost::system::error_code& error, tcp::socket socket) {
        if (!acceptor->is_open()) return;
        if (!error) {
          Take(thread, std::move(socket));
          return Accept();
        }
        if (error == asio::error::connection_aborted) return Accept();
        // No descriptors, no memory: they come back when something ends.
        accept_pause->expires_after(kAcceptPause);
        accept_pause->async_wait([this](const boost::system::error_code& stopped) {
          if (!stopped) Accept();
        });
      });
}

void Gateway::Impl::Take(IoThread* thread, tcp::socket socket) {
  boost::system::error_code error;
  const tcp::endpoint peer = socket.remote_endpoint(error);
  if (error) return;  // gone already
  socket.set_option(tcp::no_delay(true), error);
  socket.non_blocking(true, error);
  std::shared_ptr<SSL_CTX> context;
  {
    std::lock_guard<std::mutex> lock(tls_mutex);
    context = tls;
  }
  if (metrics->connections() >= max_connections) {
    metrics->ConnectionRefused();
    if (context == nullptr) {
      const std::string answer = TooMany();
      send(socket.native_handle(), answer.data(), answer.size(), MSG_NOSIGNAL);
    }
    return;
  }
  metrics->ConnectionOpened();
  open.Add(1);
  auto connection = std::make_shared<Connection>(&door, thread->io, std::move(socket),
                                                 std::move(context), peer.address().to_string());
  asio::post(*thread->io, [this, thread, connection = std::move(connection)] {
    thread->connections.insert(connection);
    connection->Start([this, thread, raw = connection.get()] {
      metrics->ConnectionClosed();
      // Later, as this is called from inside it.
      asio::post(*thread->io, [this, thread, gone = raw->shared_from_this()] {
        thread->connections.erase(gone);
        open.Add(-1);
      });
    });
  });
}

void Gateway::Impl::ForEachConnection(void (Connection::*method)()) {
  for (const auto& thread : threads) {
    asio::post(*thread->io, [thread = thread.get(), method] {
      // A copy: what is called may end connections.
      const std::vector<std::shared_ptr<Connection>> all(thread->connections.begin(),
                                                         thread->connections.end());
      for (const auto& connection : all) (connection.get()->*method)();
    });
  }
}

void Gateway::Impl::End() {
  if (threads.empty() || !threads[0]->thread.joinable()) return;
  door.draining = true;
  WaitableCount accepting;
  accepting.Add(1);
  asio::post(*threads[0]->io, [this, &accepting] {
    acceptor->close();
    accept_pause->cancel();
    accepting.Add(-1);
  });
  accepting.WaitZero(kLastRequestsUs);
  ForEachConnection(&Connection::Kill);
  if (!open.WaitZero(kLastRequestsUs)) LogWarning("gateway: a connection does not end");
  door.workers.join();
  for (const auto& thread : threads) {
    thread->io->stop();
    thread->thread.join();
  }
}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Start(const Options& options, Parts parts) {
  auto impl = std::make_unique<Impl>();
  const absl::Status begun = impl->Begin(options, std::move(parts));
  std::unique_ptr<Gateway> gateway(new Gateway(std::move(impl)));
  RETURN_IF_ERROR(begun);
  return gateway;
}

Gateway::Gateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Gateway::~Gateway() {
  impl_->End();
  // Connections' last calls are cancelled; the watching ends with the backends.
  impl_->accept_pause.reset();
  impl_->acceptor.reset();
  impl_->threads.clear();
  impl_->backends.reset();
}

const std::string& Gateway::address() const { return impl_->address; }

bool Gateway::tls() const { return !impl_->door.options.tls_cert.empty(); }

void Gateway::BeginDrain() {
  impl_->door.draining = true;
  impl_->ForEachConnection(&Connection::CloseWhenIdle);
}

bool Gateway::WaitIdle(int64_t us) { return impl_->door.in_flight.WaitZero(us); }

absl::Status Gateway::Reload() {
  const absl::Status reopened = impl_->access_log->Reopen();
  if (tls()) {
    ASSIGN_OR_RETURN(auto context, MakeTlsContext(impl_->door.options));
    std::lock_guard<std::mutex> lock(impl_->tls_mutex);
    impl_->tls = std::move(context);
  }
  return reopened;
}

}  // namespace weir::gateway
