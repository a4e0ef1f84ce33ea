#include "server/commands/bench.h"

#include "server/commands/commands.h"

namespace weir::server {

void AddBenchCommand(CLI::App& app, int* exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "Benchmarks; each prints JSON lines");
  bench->require_subcommand(1);
  AddBenchKernels(bench, exit_code);
  AddBenchServe(bench, exit_code);
  AddBenchStep(bench, exit_code);
}

}  // namespace weir::server
