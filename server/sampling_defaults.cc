#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "server/served_model.h"

namespace weir::server {
namespace {

// Reads a number in [least, most] into *target; absent or null: left as it is.
template <typename T>
absl::Status ReadNumber(const nlohmann::json& config, const char* key, double least, double most,
                        T* target) {
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_number()) return absl::InvalidArgumentError(absl::StrCat(key, " is no number"));
  const double value = it->get<double>();
  if (!(value >= least && value <= most)) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, " is ", value, "; allowed: ", least, " to ", most));
  }
  *target = static_cast<T>(value);
  return absl::OkStatus();
}

absl::StatusOr<SamplingDefaults> Read(const nlohmann::json& config) {
  SamplingDefaults defaults;
  if (!config.is_object()) return absl::InvalidArgumentError("it is no JSON object");
  RETURN_IF_ERROR(ReadNumber(config, "temperature", 0, 100, &defaults.temperature));
  RETURN_IF_ERROR(ReadNumber(config, "top_k", 0, 1 << 30, &defaults.top_k));
  RETURN_IF_ERROR(ReadNumber(config, "top_p", 1e-9, 1, &defaults.top_p));
  RETURN_IF_ERROR(ReadNumber(config, "min_p", 0, 1, &defaults.min_p));
  RETURN_IF_ERROR(
      ReadNumber(config, "repetition_penalty", 1e-3, 100, &defaults.repetition_penalty));
  const auto do_sample = config.find("do_sample");
  if (do_sample != config.end() && do_sample->is_boolean() && !do_sample->get<bool>()) {
    defaults.temperature = 0.0f;
  }
  return defaults;
}

}  // namespace

absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/generation_config.json");
  std::ifstream file(path, std::ios::binary);
  if (!file) return SamplingDefaults();
  std::stringstream text;
  text << file.rdbuf();
  const nlohmann::json config =
      nlohmann::json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no valid JSON"));
  }
  absl::StatusOr<SamplingDefaults> defaults = Read(config);
  if (!defaults.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", defaults.status().message()));
  }
  return defaults;
}

}  // namespace weir::server
