// The main numbers once more under the names and labels that vLLM exports: what routers such as
// llm-d's endpoint picker scrape to choose a server, and what dashboards made for it show.
#pragma once

namespace weir::metrics {
class Registry;
}

namespace weir::server {

struct ServedModel;

// REQUIRES: the scheduler's and the server's own metrics are in `registry`. docs/metrics.md lists
// which is which.
void ExportVllmMetrics(const ServedModel& model, metrics::Registry* registry);

}  // namespace weir::server
