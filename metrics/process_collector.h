// What the kernel says of this process, read when somebody scrapes. Linux.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "prometheus/collectable.h"

namespace weir::metrics {

class ProcessCollector final : public prometheus::Collectable {
 public:
  // Any thread. A value that cannot be read is left out.
  std::vector<prometheus::MetricFamily> Collect() const override;
  // Name and help of every family that Collect may give.
  static std::vector<std::pair<std::string, std::string>> Families();
};

}  // namespace weir::metrics
