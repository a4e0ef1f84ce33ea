// The commands of the `weir` binary. Each adds its subcommand, whose callback leaves the process's
// exit code in `exit_code`: 0 done, 1 refused or failed (a sentence on stderr says why).
#pragma once

#include "CLI/CLI.hpp"
#include "core/status.h"
#include "model/model.h"

namespace weir::server {

void AddServeCommand(CLI::App& app, int* exit_code);
void AddGatewayCommand(CLI::App& app, int* exit_code);
void AddGenerateCommand(CLI::App& app, int* exit_code);
void AddChatCommand(CLI::App& app, int* exit_code);
void AddInspectCommand(CLI::App& app, int* exit_code);
void AddCheckCommand(CLI::App& app, int* exit_code);
void AddBenchCommand(CLI::App& app, int* exit_code);
void AddKeysCommand(CLI::App& app, int* exit_code);
void AddHealthCommand(CLI::App& app, int* exit_code);

// "auto", "cpu", "cuda" as commands take it.
absl::StatusOr<model::DeviceChoice> ParseDevice(const std::string& name);
// "auto", "f32", "bf16" as commands take it.
absl::StatusOr<model::ComputeDType> ParseComputeDType(const std::string& name);

}  // namespace weir::server
