// `weir check`: does this build on this machine reproduce the reference logits stored beside a
// model?
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "model/check.h"
#include "nlohmann/json.hpp"
#include "server/commands/commands.h"

namespace weir::server {
namespace {

struct Options {
  std::string model_dir;
  std::string expected;
  std::string dtype = "auto";
  std::string device = "auto";
  double tolerance = 0;
  uint64_t seed = 1;
  int threads = 0;
  bool json = false;
};

// Relative error of logits that rounding alone explains: float32 sums of a few thousand terms, and
// bfloat16 inputs (8 bits of mantissa) through a few dozen layers.
constexpr double kToleranceF32 = 5e-5;
constexpr double kToleranceBF16 = 2e-2;
// Sums on a GPU are ordered by whatever kernel a shape gets.
constexpr double kToleranceGpuF32 = 1e-3;

nlohmann::json ToJson(const model::CheckReport& report) {
  nlohmann::json json = {{"model", report.info.name},
                         {"family", report.info.family},
                         {"dtype", std::string(DTypeName(report.info.compute_dtype))},
                         {"device", report.info.device},
                         {"prompts", report.prompts},
                         {"tolerance", report.tolerance},
                         {"ok", report.ok}};
  for (const model::PathReport& path : report.paths) {
    json["paths"].push_back({{"path", path.path},
                             {"relative_error", path.relative_error},
                             {"max_abs_error", path.max_abs_error},
                             {"greedy_tokens", path.greedy_tokens},
                             {"greedy_equal", path.greedy_equal},
                             {"greedy_ties", path.greedy_ties},
                             {"ok", path.ok}});
  }
  return json;
}

void Print(const model::CheckReport& report) {
  std::printf("%s (%s), %s, %d prompts, tolerance %g\n", report.info.name.c_str(),
              report.info.family.c_str(), std::string(DTypeName(report.info.compute_dtype)).c_str(),
              report.prompts, report.tolerance);
  std::printf("%-16s %14s %14s %16s  %s\n", "path", "relative error", "largest error",
              "greedy tokens", "");
  for (const model::PathReport& path : report.paths) {
    std::string greedy = "-";
    if (path.greedy_tokens > 0)
      greedy = absl::StrCat(path.greedy_equal, " of ", path.greedy_tokens);
    if (path.greedy_ties > 0) absl::StrAppend(&greedy, ", ", path.greedy_ties, " ties");
    std::printf("%-16s %14.2e %14.2e %16s  %s\n", path.path.c_str(), path.relative_error,
                path.max_abs_error, greedy.c_str(), path.ok ? "ok" : "FAILED");
  }
  std::printf("%s\n", report.ok ? "ok" : "FAILED");
}

// The folder itself when it is a model, else its subfolders that are.
std::vector<std::string> ModelFolders(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<std::string> found;
  std::error_code error;
  if (!fs::exists(fs::path(path) / "config.json", error)) {
    for (const auto& entry : fs::directory_iterator(path, error)) {
      if (fs::exists(entry.path() / "config.json", error)) found.push_back(entry.path().string());
    }
    std::sort(found.begin(), found.end());
  }
  if (found.empty()) found.push_back(path);
  return found;
}

absl::StatusOr<bool> CheckOne(const std::string& model_dir, const Options& options) {
  model::LoadOptions load;
  ASSIGN_OR_RETURN(load.dtype, ParseComputeDType(options.dtype));
  ASSIGN_OR_RETURN(load.device, ParseDevice(options.device));
  load.threads = options.threads;
  double tolerance = options.tolerance;
  if (tolerance < 0) return absl::InvalidArgumentError("--tolerance must not be negative");
  if (tolerance == 0) {
    ASSIGN_OR_RETURN(const model::ModelInfo info, model::DescribeModel(model_dir, load));
    tolerance = info.compute_dtype != DType::kF32 ? kToleranceBF16
                : info.on_gpu                     ? kToleranceGpuF32
                                                  : kToleranceF32;
  }
  ASSIGN_OR_RETURN(const model::CheckReport report,
                   model::CheckModel(model_dir, options.expected, load, tolerance, options.seed));
  if (options.json) {
    std::printf("%s\n", ToJson(report).dump().c_str());
  } else {
    Print(report);
  }
  return report.ok;
}

absl::StatusOr<bool> RunCheck(const Options& options) {
  const std::vector<std::string> folders = ModelFolders(options.model_dir);
  if (folders.size() > 1 && !options.expected.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.model_dir, " holds ", folders.size(),
                                                   " models; each has its own expected file"));
  }
  int failed = 0;
  for (const std::string& folder : folders) {
    const absl::StatusOr<bool> ok = CheckOne(folder, options);
    if (folders.size() == 1) return ok;
    if (!ok.ok()) {
      std::fprintf(stderr, "weir check: %s: %s\n", folder.c_str(),
                   std::string(ok.status().message()).c_str());
    }
    failed += ok.ok() && *ok ? 0 : 1;
  }
  if (!options.json) {
    std::printf("%zu models, %d failed\n", folders.size(), failed);
  }
  return failed == 0;
}

}  // namespace

void AddCheckCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* check = app.add_subcommand(
      "check",
      "Compare with reference logits: whole prompts, chunks, token by token, packed together");
  check->add_option("model", options->model_dir, "Model folder, or a folder of model folders")
      ->required();
  check->add_option("expected", options->expected,
                    "Safetensors file with prompt_<i>, logits_<i> and greedy_<i>; default: "
                    "expected.safetensors in the folder");
  check
      ->add_option("--tolerance", options->tolerance,
                   "Largest relative error; 0: 5e-5 in f32, 2e-2 in bf16")
      ->capture_default_str();
  check->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  check->add_option("--dtype", options->dtype, "auto, f32 or bf16")->capture_default_str();
  check->add_option("--seed", options->seed, "Where prompts are cut and which slots they get")
      ->capture_default_str();
  check->add_option("--threads", options->threads, "Threads; 0: all usable cores")
      ->capture_default_str();
  check->add_flag("--json", options->json, "Print one JSON object per model");
  check->callback([options, exit_code] {
    const absl::StatusOr<bool> ok = RunCheck(*options);
    if (!ok.ok())
      std::fprintf(stderr, "weir check: %s\n", std::string(ok.status().message()).c_str());
    *exit_code = ok.ok() && *ok ? 0 : 1;
  });
}

}  // namespace weir::server
