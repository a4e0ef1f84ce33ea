// What `weir gateway` costs: its processor time and the delay that it adds to tokens, and its
// memory under idle connections.
//
// A server without a model (in this process) sends every stream a token at each tick of its clock,
// all streams at once, as the steps of an engine do. Each token's text is the time at which it was
// written. Clients in this process read them twice: over gRPC straight from that server, and over
// HTTP through a `weir gateway` process of its own; its processor time and memory are what the
// kernel says of that process. Both delays contain the same server and comparable clients on the
// same machine, so their difference is the gateway's.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/gateway/fake_backend.h"
#include "weir/v1/generate.grpc.pb.h"

namespace weir::testing {
namespace {

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Flags {
  std::string weir = WEIR_BUILD_DIR "/weir";
  int streams = 256, idle = 10'000, phases = 1;
  double rate = 50, seconds = 10;
};

// The measured part of a run: the first second is not.
struct Window {
  int64_t begin_ns = 0, end_ns = 0;
  bool Has(int64_t now) const { return now >= begin_ns && now < end_ns; }
};

struct Delays {
  std::vector<float> ms;
  double At(double quantile) {
    if (ms.empty()) return 0;
    std::sort(ms.begin(), ms.end());
    return ms[static_cast<size_t>(quantile * static_cast<double>(ms.size() - 1))];
  }
};

void Print(const char* name, Delays* delays, double seconds) {
  std::printf("%-8s %8.0f tokens/s   delay ms: p50 %.3f  p90 %.3f  p99 %.3f  max %.3f\n", name,
              static_cast<double>(delays->ms.size()) / seconds, delays->At(0.5), delays->At(0.9),
              delays->At(0.99), delays->At(1));
  std::fflush(stdout);
}

// `weir gateway` as a child; ended with this object.
class GatewayProcess {
 public:
  GatewayProcess(const Flags& flags, const std::string& backend) {
    const std::string ready = "/tmp/weir_gateway_bench_" + std::to_string(getpid());
    pid_ = fork();
    if (pid_ == 0) {
      execl(flags.weir.c_str(), "weir", "gateway", "--backend", backend.c_str(), "--http",
            "127.0.0.1:0", "--http-idle-time", "10m", "--ready-file", ready.c_str(), nullptr);
      _exit(127);
    }
    while (access(ready.c_str(), R_OK) != 0) {
      if (waitpid(pid_, nullptr, WNOHANG) == pid_) std::exit(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::ifstream file(ready);
    const std::string address = nlohmann::json::parse(file)["http"];
    port_ = static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)));
  }
  ~GatewayProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  double CpuSeconds() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    int64_t user = 0, system = 0;
    std::sscanf(text.c_str() + text.rfind(')') + 2,
                "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &system);
    return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  double ResidentMb() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/statm");
    int64_t size = 0, resident = 0;
    file >> size >> resident;
    return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / 1e6;
  }
  int Connect() const {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port_);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) {
      std::perror("connect");
      std::exit(1);
    }
    return fd;
  }

 private:
  pid_t pid_;
  uint16_t port_ = 0;
};

class DirectStream final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  DirectStream(v1::GenerationService::Stub* stub, int tokens, const Window* window)
      : window_(window) {
    request_.mutable_token_ids()->add_ids(1);
    request_.mutable_stopping()->set_max_tokens(tokens);
    stub->async()->Generate(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    const int64_t now = NowNs();
    if (event_.has_delta() && window_->Has(now)) {
      delays_.push_back(static_cast<float>(now - std::atoll(event_.delta().text().c_str())) *
                        1e-6f);
    }
    StartRead(&event_);
  }
  void OnDone(const grpc::Status&) override { done_ = true; }
  void CancelAndWait() {
    context_.TryCancel();
    while (!done_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const std::vector<float>& delays() const { return delays_; }

 private:
  const Window* const window_;
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateEvent event_;
  std::vector<float> delays_;
  std::atomic<bool> done_{false};
};

Delays MeasureDirect(const Flags& flags, const std::string& address) {
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  const auto stub = v1::GenerationService::NewStub(channel);
  Window window;
  window.begin_ns = NowNs() + 1'000'000'000;
  window.end_ns = window.begin_ns + static_cast<int64_t>(flags.seconds * 1e9);
  std::vector<std::unique_ptr<DirectStream>> streams;
  for (int i = 0; i < flags.streams; ++i) {
    streams.push_back(std::make_unique<DirectStream>(stub.get(), 1'000'000, &window));
  }
  while (NowNs() < window.end_ns) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  Delays all;
  for (const auto& stream : streams) {
    stream->CancelAndWait();
    all.ms.insert(all.ms.end(), stream->delays().begin(), stream->delays().end());
  }
  return all;
}

// Takes every "content":"<time>" out of what has come on one stream.
void TakeTokens(std::string* input, const Window& window, Delays* delays) {
  constexpr std::string_view kBefore = "\"content\":\"";
  size_t from = 0;
  const int64_t now = NowNs();
  while (true) {
    const size_t at = input->find(kBefore, from);
    if (at == std::string::npos) break;
    const size_t begin = at + kBefore.size();
    const size_t end = input->find('"', begin);
    if (end == std::string::npos) break;
    if (end > begin && window.Has(now)) {
      delays->ms.push_back(static_cast<float>(now - std::atoll(input->c_str() + begin)) * 1e-6f);
    }
    from = end;
  }
  input->erase(0, std::max(from, input->size() > 32 ? input->size() - 32 : 0));
}

Delays MeasureHttp(const Flags& flags, GatewayProcess* gateway, double* cores) {
  const std::string chat =
      "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
      "\"max_tokens\":1000000,\"stream\":true}";
  const std::string request =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
      "Content-Length: " +
      std::to_string(chat.size()) + "\r\n\r\n" + chat;
  const int poller = epoll_create1(0);
  std::vector<int> sockets;
  for (int i = 0; i < flags.streams; ++i) {
    const int fd = gateway->Connect();
    if (send(fd, request.data(), request.size(), 0) < 0) std::exit(1);
    epoll_event event{.events = EPOLLIN, .data = {.u64 = sockets.size()}};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    sockets.push_back(fd);
  }
  std::vector<std::string> inputs(sockets.size());
  Window window;
  window.begin_ns = NowNs() + 1'000'000'000;
  window.end_ns = window.begin_ns + static_cast<int64_t>(flags.seconds * 1e9);
  Delays delays;
  double cpu_begin = -1;
  int64_t cpu_at = 0;
  while (NowNs() < window.end_ns) {
    if (cpu_begin < 0 && NowNs() >= window.begin_ns) {
      cpu_begin = gateway->CpuSeconds();
      cpu_at = NowNs();
    }
    epoll_event ready[64];
    const int count = epoll_wait(poller, ready, 64, 10);
    for (int i = 0; i < count; ++i) {
      const size_t index = ready[i].data.u64;
      char bytes[65536];
      const ssize_t got = recv(sockets[index], bytes, sizeof(bytes), 0);
      if (got <= 0) {
        std::fprintf(stderr, "a stream ended: %s\n", inputs[index].c_str());
        std::exit(1);
      }
      inputs[index].append(bytes, static_cast<size_t>(got));
      TakeTokens(&inputs[index], window, &delays);
    }
  }
  *cores = (gateway->CpuSeconds() - cpu_begin) / (static_cast<double>(NowNs() - cpu_at) * 1e-9);
  for (const int fd : sockets) close(fd);
  close(poller);
  return delays;
}

void MeasureIdle(const Flags& flags, GatewayProcess* gateway) {
  const double before = gateway->ResidentMb();
  const std::string request = "GET /health HTTP/1.1\r\nHost: bench\r\n\r\n";
  std::vector<int> sockets;
  for (int i = 0; i < flags.idle; ++i) {
    const int fd = gateway->Connect();
    char bytes[4096];
    if (send(fd, request.data(), request.size(), 0) < 0 || recv(fd, bytes, sizeof(bytes), 0) <= 0) {
      std::fprintf(stderr, "connection %d was refused\n", i);
      std::exit(1);
    }
    sockets.push_back(fd);
  }
  const double after = gateway->ResidentMb();
  const double cpu = gateway->CpuSeconds();
  std::this_thread::sleep_for(std::chrono::seconds(2));
  std::printf(
      "idle     %zu keep-alive connections: %.1f MB resident (%.1f MB without them, %.2f kB "
      "each), %.1f%% of a core\n",
      sockets.size(), after, before, (after - before) * 1e3 / flags.idle,
      (gateway->CpuSeconds() - cpu) * 50);
  for (const int fd : sockets) close(fd);
}

int Main(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--weir") flags.weir = value;
    if (name == "--streams") flags.streams = std::stoi(value);
    if (name == "--rate") flags.rate = std::stod(value);
    if (name == "--seconds") flags.seconds = std::stod(value);
    if (name == "--phases") flags.phases = std::stoi(value);
    if (name == "--idle") flags.idle = std::stoi(value);
  }
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  signal(SIGPIPE, SIG_IGN);
  FakeBackend::Options options;
  options.listen = true;
  options.tokens_per_s = flags.rate;
  options.phases = flags.phases;
  options.text = [](int) { return std::to_string(NowNs()); };
  FakeBackend backend(options);
  // The child before gRPC's threads hold locks of their own work: nothing is called yet.
  GatewayProcess gateway(flags, backend.address());
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  std::printf("%d streams at %.0f tokens/s each, %.0f s\n", flags.streams, flags.rate,
              flags.seconds);
  Delays direct = MeasureDirect(flags, backend.address());
  Print("direct", &direct, flags.seconds);
  double cores = 0;
  Delays http = MeasureHttp(flags, &gateway, &cores);
  Print("gateway", &http, flags.seconds);
  std::printf("added    p50 %.3f ms  p99 %.3f ms;  the gateway used %.2f cores\n",
              http.At(0.5) - direct.At(0.5), http.At(0.99) - direct.At(0.99), cores);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  if (flags.idle > 0) MeasureIdle(flags, &gateway);
  return 0;
}

}  // namespace
}  // namespace weir::testing

int main(int argc, char** argv) { return weir::testing::Main(argc, argv); }
