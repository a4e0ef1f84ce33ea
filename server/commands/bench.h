// The benchmarks under `weir bench`. Each prints JSON lines on stdout.
#pragma once

#include "CLI/CLI.hpp"

namespace weir::server {

void AddBenchKernels(CLI::App* bench, int* exit_code);
void AddBenchServe(CLI::App* bench, int* exit_code);
void AddBenchStep(CLI::App* bench, int* exit_code);

}  // namespace weir::server
