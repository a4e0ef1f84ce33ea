#include "metrics/registry.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "metrics/alias_collector.h"
#include "metrics/process_collector.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace weir::metrics {
namespace {

class CounterImpl final : public Counter {
 public:
  explicit CounterImpl(prometheus::Counter* counter) : counter_(counter) {}
  void Increment(double by) override { counter_->Increment(by); }
  double Value() const override { return counter_->Value(); }

 private:
  prometheus::Counter* const counter_;
};

class GaugeImpl final : public Gauge {
 public:
  explicit GaugeImpl(prometheus::Gauge* gauge) : gauge_(gauge) {}
  void Set(double value) override { gauge_->Set(value); }
  double Value() const override { return gauge_->Value(); }

 private:
  prometheus::Gauge* const gauge_;
};

class HistogramImpl final : public Histogram {
 public:
  explicit HistogramImpl(prometheus::Histogram* histogram) : histogram_(histogram) {}
  void Observe(double value) override { histogram_->Observe(value); }

 private:
  prometheus::Histogram* const histogram_;
};

// Opens and closes one connection to `port` of this machine.
void Touch(uint16_t port) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(port);
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(port);
  v6.sin6_addr = in6addr_loopback;
  const std::pair<const sockaddr*, socklen_t> targets[] = {
      {reinterpret_cast<const sockaddr*>(&v4), sizeof(v4)},
      {reinterpret_cast<const sockaddr*>(&v6), sizeof(v6)}};
  for (const auto& [address, size] : targets) {
    const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) continue;
    // The answer does not matter: the attempt itself wakes the listener.
    [[maybe_unused]] const int answer = connect(fd, address, size);
    close(fd);
  }
}

// Stops the HTTP server. Its listener looks at the stop flag when a connection comes, or every two
// seconds: connections from here make that at once.
void StopExposer(std::unique_ptr<prometheus::Exposer> exposer) {
  const std::vector<int> ports = exposer->GetListeningPorts();
  std::mutex mutex;
  std::condition_variable changed;
  bool stopped = false;
  std::thread waker([&] {
    std::unique_lock<std::mutex> lock(mutex);
    while (!changed.wait_for(lock, std::chrono::milliseconds(5), [&] { return stopped; })) {
      for (int port : ports) Touch(static_cast<uint16_t>(port));
    }
  });
  exposer.reset();
  {
    std::lock_guard<std::mutex> lock(mutex);
    stopped = true;
  }
  changed.notify_one();
  waker.join();
}

}  // namespace

struct Registry::Impl {
  std::mutex mutex;
  // Family name -> type letter and help; guards against one name used in two ways.
  std::map<std::string, std::pair<char, std::string>> families;
  std::vector<std::unique_ptr<Counter>> counters;
  std::vector<std::unique_ptr<Gauge>> gauges;
  std::vector<std::unique_ptr<Histogram>> histograms;
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<ProcessCollector> process = std::make_shared<ProcessCollector>();
  std::shared_ptr<AliasCollector> aliases = std::make_shared<AliasCollector>(registry);
  // Last: its threads read the three above and end first.
  std::unique_ptr<prometheus::Exposer> exposer;

  // REQUIRES: mutex held.
  void NoteFamily(char type, const std::string& name, const std::string& help) {
    const auto [it, added] = families.emplace(name, std::make_pair(type, help));
    WEIR_CHECK(added || it->second == std::make_pair(type, help))
        << "metric " << name << " was added before with another type or help";
  }
};

Registry::Registry() : impl_(std::make_unique<Impl>()) {
  for (const auto& [name, help] : ProcessCollector::Families()) {
    impl_->families.emplace(name, std::make_pair('p', help));
  }
}

Registry::~Registry() {
  if (impl_->exposer != nullptr) StopExposer(std::move(impl_->exposer));
}

Counter* Registry::AddCounter(const std::string& name, const std::string& help,
                              const Labels& labels) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->NoteFamily('c', name, help);
  auto& family = prometheus::BuildCounter().Name(name).Help(help).Register(*impl_->registry);
  return impl_->counters.emplace_back(std::make_unique<CounterImpl>(&family.Add(labels))).get();
}

Gauge* Registry::AddGauge(const std::string& name, const std::string& help, const Labels& labels) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->NoteFamily('g', name, help);
  auto& family = prometheus::BuildGauge().Name(name).Help(help).Register(*impl_->registry);
  return impl_->gauges.emplace_back(std::make_unique<GaugeImpl>(&family.Add(labels))).get();
}

Histogram* Registry::AddHistogram(const std::string& name, const std::string& help,
                                  const std::vector<double>& upper_bounds, const Labels& labels) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->NoteFamily('h', name, help);
  auto& family = prometheus::BuildHistogram().Name(name).Help(help).Register(*impl_->registry);
  return impl_->histograms
      .emplace_back(std::make_unique<HistogramImpl>(&family.Add(labels, upper_bounds)))
      .get();
}

void Registry::AddAlias(const Alias& alias) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  WEIR_CHECK(impl_->exposer == nullptr) << "aliases come before Expose";
  const auto source = impl_->families.find(alias.of);
  WEIR_CHECK(source != impl_->families.end()) << "there is no metric " << alias.of;
  impl_->NoteFamily(source->second.first, alias.name, alias.help);
  impl_->aliases->Add(alias);
}

std::string Registry::Serialize() const {
  std::vector<prometheus::MetricFamily> families = impl_->registry->Collect();
  for (auto& family : impl_->aliases->Collect()) families.push_back(std::move(family));
  for (auto& family : impl_->process->Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

std::vector<std::pair<std::string, std::string>> Registry::Families() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  std::vector<std::pair<std::string, std::string>> families;
  for (const auto& [name, family] : impl_->families) families.emplace_back(name, family.second);
  return families;
}

absl::StatusOr<int> Registry::Expose(const std::string& address) {
  WEIR_CHECK(impl_->exposer == nullptr) << "Expose is called once";
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (ports.empty()) {
      return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address));
    }
    exposer->RegisterCollectable(impl_->registry);
    exposer->RegisterCollectable(impl_->aliases);
    exposer->RegisterCollectable(impl_->process);
    impl_->exposer = std::move(exposer);
    return ports.front();
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address,
                                               ": the address is in use by another "
                                               "process or is not one of this machine (",
                                               error.what(),
                                               "); choose another, or port 0 for any free one"));
  }
}

std::vector<double> LatencyBuckets() {
  return {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,
          0.5,   0.75,   1.0,   2.5,  5.0,  7.5,  10.0, 20.0, 40.0, 60.0};
}

}  // namespace weir::metrics
