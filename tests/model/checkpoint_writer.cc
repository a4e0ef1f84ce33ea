#include "tests/model/checkpoint_writer.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/check.h"
#include "core/philox.h"
#include "model/config.h"
#include "model/families/registry.h"

namespace weir::model {

std::string MakeFolder(const std::string& name) {
  const std::string folder = testing::TempDir() + "weir_model_" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

void WriteText(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

void WriteRaw(const std::string& path, const std::string& header, const std::string& data,
              int64_t header_bytes) {
  const uint64_t length = header_bytes < 0 ? header.size() : static_cast<uint64_t>(header_bytes);
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  WriteText(path, bytes + header + data);
}

void WriteTensors(const std::string& path, const TestTensors& tensors, DType dtype) {
  std::string header, data;
  const char* type = dtype == DType::kBF16 ? "BF16" : "F32";
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    for (const float value : tensor.values) {
      if (dtype == DType::kBF16) {
        const BFloat16 narrow = ToBFloat16(value);
        data.append(reinterpret_cast<const char*>(&narrow), 2);
      } else {
        data.append(reinterpret_cast<const char*>(&value), 4);
      }
    }
    absl::StrAppend(&header, header.empty() ? "{" : ",", "\"", name, "\":{\"dtype\":\"", type,
                    "\",\"shape\":[", absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[",
                    begin, ",", data.size(), "]}");
  }
  WriteRaw(path, header.empty() ? "{}" : header + "}", data);
}

TestTensors RandomTensors(const std::string& config) {
  auto fields = Fields::Parse(config, "config.json");
  WEIR_CHECK(fields.ok()) << fields.status().ToString();
  auto family = FindFamily(fields->String("model_type"));
  WEIR_CHECK(family.ok()) << family.status().ToString();
  auto model = (*family)->parse(*fields);
  WEIR_CHECK(model.ok()) << model.status().ToString();
  TestTensors tensors;
  uint64_t seed = 1;
  for (const TensorNeed& need : ModelTensors(*model)) {
    TestTensor tensor;
    tensor.shape = need.shape;
    const bool norm = need.role == TensorNeed::Role::kNorm;
    const auto width = static_cast<float>(need.shape.back());
    for (int64_t i = 0; i < need.num_elements(); ++i) {
      const float u = 2 * ToUniform(Philox(seed, static_cast<uint64_t>(i))[0]) - 1;
      tensor.values.push_back(norm ? 1 + 0.2f * u : u * 1.7f / std::sqrt(std::min(width, 64.0f)));
    }
    ++seed;
    tensors[(*family)->place(*model, need, nullptr).tensor] = std::move(tensor);
  }
  return tensors;
}

std::string WriteModel(const std::string& name, const std::string& config, DType dtype) {
  const std::string folder = MakeFolder(name);
  WriteText(folder + "/config.json", config);
  WriteTensors(folder + "/model.safetensors", RandomTensors(config), dtype);
  return folder;
}

}  // namespace weir::model
