// Writes small model folders for tests.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace weir::model {

// A folder of its own under the test's temporary directory, empty.
std::string MakeFolder(const std::string& name);
void WriteText(const std::string& path, const std::string& text);

// Raw safetensors: `header` as it stands, then `data`. header_bytes overrides the length that is
// written.
void WriteRaw(const std::string& path, const std::string& header, const std::string& data,
              int64_t header_bytes = -1);

struct TestTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;  // converted to the file's type
};
using TestTensors = std::map<std::string, TestTensor>;
void WriteTensors(const std::string& path, const TestTensors& tensors, DType dtype = DType::kF32);

// Pseudo-random tensors for a `hybrid` config: what its checkpoint must hold, under the names
// there.
TestTensors RandomTensors(const std::string& config);
// config.json and model.safetensors.
std::string WriteModel(const std::string& name, const std::string& config,
                       DType dtype = DType::kF32);

}  // namespace weir::model
