// Prometheus metrics. Each part of the server declares a struct of its own numbers and resolves
// them at construction: registry lookups do not happen while serving. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"

namespace weir::metrics {

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Increment(double by = 1.0) = 0;
  virtual double Value() const = 0;
};

class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
  virtual double Value() const = 0;
};

class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

using Labels = std::map<std::string, std::string>;

// A family under one more name, for tools that look for theirs. Several aliases may share a name:
// counters that end up with equal labels are added.
struct Alias {
  std::string name;
  std::string help;
  std::string of;  // a family of this registry
  Labels where;    // only its series with these labels, which are then left out
  Labels labels;   // added to each series
};

class Registry {
 public:
  Registry();
  ~Registry();

  // Names carry the unit ("weir_time_to_first_token_seconds"); counters end in _total. The same
  // name may be added with different labels. The pointers live as long as the registry.
  Counter* AddCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge* AddGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram* AddHistogram(const std::string& name, const std::string& help,
                          const std::vector<double>& upper_bounds, const Labels& labels = {});

  // REQUIRES: `alias.of` was added, and is a counter where names are shared; before Expose().
  void AddAlias(const Alias& alias);

  // Text exposition format.
  std::string Serialize() const;
  // Name and help of every metric family, sorted: what docs/metrics.md must list.
  std::vector<std::pair<std::string, std::string>> Families() const;

  // Serves /metrics on `address` ("127.0.0.1:9464"; port 0: any) until the registry dies. Returns
  // the port. ALREADY_EXISTS-like UNAVAILABLE with a sentence when the port is taken.
  absl::StatusOr<int> Expose(const std::string& address);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Bounds for latencies in seconds: 1 ms ... 60 s.
std::vector<double> LatencyBuckets();

}  // namespace weir::metrics
