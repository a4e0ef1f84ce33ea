#include "metrics/alias_collector.h"

#include <algorithm>
#include <string>
#include <utility>

#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"

namespace weir::metrics {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;

// What is left of the labels of `series` without `where`; false: it does not match.
bool Matches(const ClientMetric& series, const Labels& where,
             std::vector<ClientMetric::Label>* rest) {
  size_t matched = 0;
  for (const ClientMetric::Label& label : series.label) {
    const auto wanted = where.find(label.name);
    if (wanted == where.end()) {
      rest->push_back(label);
    } else if (wanted->second == label.value) {
      ++matched;
    } else {
      return false;
    }
  }
  return matched == where.size();
}

void AppendSeries(const Alias& alias, const MetricFamily& source, MetricFamily* family) {
  for (const ClientMetric& series : source.metric) {
    std::vector<ClientMetric::Label> labels;
    if (!Matches(series, alias.where, &labels)) continue;
    for (const auto& [name, value] : alias.labels) labels.push_back({name, value});
    const auto same =
        std::find_if(family->metric.begin(), family->metric.end(),
                     [&](const ClientMetric& other) { return other.label == labels; });
    if (same != family->metric.end()) {
      same->counter.value += series.counter.value;
      continue;
    }
    family->metric.push_back(series);
    family->metric.back().label = std::move(labels);
  }
}

}  // namespace

std::vector<MetricFamily> AliasCollector::Collect() const {
  std::vector<MetricFamily> families;
  if (aliases_.empty()) return families;
  const std::vector<MetricFamily> sources = registry_->Collect();
  for (const Alias& alias : aliases_) {
    const auto source = std::find_if(sources.begin(), sources.end(),
                                     [&](const MetricFamily& f) { return f.name == alias.of; });
    if (source == sources.end()) continue;
    auto family = std::find_if(families.begin(), families.end(),
                               [&](const MetricFamily& f) { return f.name == alias.name; });
    if (family == families.end()) {
      families.push_back({alias.name, alias.help, source->type, {}});
      family = families.end() - 1;
    }
    AppendSeries(alias, *source, &*family);
  }
  return families;
}

}  // namespace weir::metrics
