// Reading *.safetensors: eight bytes of header length, a JSON header, then raw tensors. The file is
// memory-mapped and trusted in nothing: every offset, shape and name is checked before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/dtype.h"
#include "core/status.h"

namespace weir::model {

struct StoredTensor {
  std::string name;
  std::string dtype_name;  // as written: "BF16", "F8_E4M3", ...
  std::optional<DType>
      dtype;  // nullopt: a type of the format that this program does not compute with
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // any alignment; valid while the file is open
  int64_t bytes = 0;

  std::string ShapeString() const;  // "[3, 64]"
};

// One mapped file. Movable; StoredTensor::data stays valid until the last owner goes.
class SafetensorsFile {
 public:
  // NOT_FOUND when it cannot be opened; DATA_LOSS, naming the file and what is wrong, when it is
  // not a well-formed file: short, header too long, not UTF-8 or not JSON, a tensor with an unknown
  // type, a negative or overflowing shape, a size that disagrees with its offsets, offsets past the
  // end, overlaps, gaps, a name that occurs twice.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  int64_t file_bytes() const { return file_bytes_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const StoredTensor* Find(absl::string_view name) const;

 private:
  std::string path_;
  int64_t file_bytes_ = 0;
  std::shared_ptr<const std::byte> mapping_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string, size_t, std::less<>> by_name_;
};

// All tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json
// names.
class Checkpoint {
 public:
  // NOT_FOUND when the folder holds neither; otherwise as SafetensorsFile::Open, and DATA_LOSS for
  // an index that is not valid, names a file outside the folder, promises a tensor that its shard
  // lacks, or two shards that hold one tensor.
  static absl::StatusOr<Checkpoint> Open(const std::string& folder);

  int64_t file_bytes() const;
  const std::map<std::string, const StoredTensor*, std::less<>>& tensors() const {
    return tensors_;
  }
  const StoredTensor* Find(absl::string_view name) const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const StoredTensor*, std::less<>> tensors_;
};

}  // namespace weir::model
