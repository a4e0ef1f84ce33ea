// The same numbers once more under names that other tools know.
#pragma once

#include <memory>
#include <vector>

#include "metrics/registry.h"
#include "prometheus/collectable.h"
#include "prometheus/registry.h"

namespace weir::metrics {

class AliasCollector final : public prometheus::Collectable {
 public:
  explicit AliasCollector(std::shared_ptr<const prometheus::Registry> registry)
      : registry_(std::move(registry)) {}

  // REQUIRES: before the first Collect().
  void Add(Alias alias) { aliases_.push_back(std::move(alias)); }

  // Any thread. Reads the registry once; one family per alias name.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::shared_ptr<const prometheus::Registry> registry_;
  std::vector<Alias> aliases_;
};

}  // namespace weir::metrics
