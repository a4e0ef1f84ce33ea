#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace weir::model {
namespace {

using Json = nlohmann::json;

// The format's own bound on a header.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 16;

struct TypeInfo {
  const char* name;
  int bytes;
  std::optional<DType> dtype;
};
const TypeInfo kTypes[] = {
    {"F32", 4, DType::kF32},      {"BF16", 2, DType::kBF16},    {"F16", 2, DType::kF16},
    {"I32", 4, DType::kI32},      {"I64", 8, DType::kI64},      {"U8", 1, DType::kU8},
    {"BOOL", 1, std::nullopt},    {"I8", 1, std::nullopt},      {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},     {"U32", 4, std::nullopt},     {"U64", 8, std::nullopt},
    {"F64", 8, std::nullopt},     {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
    {"F8_E8M0", 1, std::nullopt},
};

absl::Status Bad(absl::string_view path, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(path, " is not a valid safetensors file: ", what));
}

// A name from the file, fit for a message.
std::string Quoted(absl::string_view name) {
  return absl::StrCat("\"", name.substr(0, 120), name.size() > 120 ? "...\"" : "\"");
}

struct Mapping {
  std::shared_ptr<const std::byte> data;
  int64_t bytes = 0;
};

absl::StatusOr<Mapping> MapFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", strerror(errno)));
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return absl::NotFoundError(absl::StrCat(path, " is not a regular file"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size < 8) {
    close(fd);
    return Bad(path, absl::StrCat("it has ", size,
                                  " bytes, less than the 8 that hold its header's length"));
  }
  void* p = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (p == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot map ", path, ": ", strerror(errno)));
  }
  madvise(p, size, MADV_WILLNEED);
  Mapping mapping;
  mapping.bytes = static_cast<int64_t>(size);
  mapping.data = std::shared_ptr<const std::byte>(
      static_cast<const std::byte*>(p),
      [size](const std::byte* q) { munmap(const_cast<std::byte*>(q), size); });
  return mapping;
}

// The header as JSON, refusing a key that occurs twice anywhere.
absl::StatusOr<Json> ParseHeader(const std::string& path, const char* text, size_t size) {
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      std::string key = parsed.get<std::string>();
      if (!keys.back().insert(key).second && duplicate.empty()) duplicate = std::move(key);
    }
    return true;
  };
  Json header;
  try {
    header = Json::parse(text, text + size, watch);
  } catch (const Json::exception& e) {
    return Bad(path, absl::StrCat("its header is not valid JSON: ", e.what()));
  }
  if (!duplicate.empty()) {
    return Bad(path, absl::StrCat("its header names ", Quoted(duplicate), " twice"));
  }
  if (!header.is_object()) return Bad(path, "its header is not a JSON object");
  return header;
}

bool ReadSize(const Json& value, int64_t* out) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{INT64_MAX}) return false;
  *out = value.get<int64_t>();
  return true;
}

// One header entry; begin and end are bytes after the header.
absl::Status ReadEntry(const std::string& path, const std::string& name, const Json& entry,
                       int64_t data_bytes, StoredTensor* tensor, int64_t* begin) {
  const auto bad = [&](absl::string_view what) {
    return Bad(path, absl::StrCat("tensor ", Quoted(name), " ", what));
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets")) {
    return bad("lacks dtype, shape or data_offsets");
  }
  const Json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
  if (!dtype.is_string()) return bad("has a dtype that is not a string");
  tensor->name = name;
  tensor->dtype_name = dtype.get<std::string>();
  const TypeInfo* type = nullptr;
  for (const TypeInfo& candidate : kTypes) {
    if (tensor->dtype_name == candidate.name) type = &candidate;
  }
  if (type == nullptr)
    return bad(absl::StrCat("has the unknown dtype ", Quoted(tensor->dtype_name)));
  tensor->dtype = type->dtype;
  if (!shape.is_array() || shape.size() > kMaxRank)
    return bad("has a shape that is not a short list");
  int64_t bytes = type->bytes;
  for (const Json& size : shape) {
    int64_t n = 0;
    if (!ReadSize(size, &n)) return bad("has a shape with an entry that is not a size");
    tensor->shape.push_back(n);
    if (__builtin_mul_overflow(bytes, n, &bytes)) {
      return bad(absl::StrCat("has the shape ", tensor->ShapeString(), ", whose size overflows"));
    }
  }
  int64_t end = 0;
  if (!offsets.is_array() || offsets.size() != 2 || !ReadSize(offsets[0], begin) ||
      !ReadSize(offsets[1], &end)) {
    return bad("has data_offsets that are not two sizes");
  }
  if (*begin > end) return bad(absl::StrCat("begins at ", *begin, " and ends before, at ", end));
  if (end > data_bytes) {
    return bad(absl::StrCat("ends at byte ", end, ", but the file has ", data_bytes,
                            " bytes of data: it is cut short or damaged"));
  }
  if (end - *begin != bytes) {
    return bad(absl::StrCat("has ", end - *begin, " bytes, but its shape ", tensor->ShapeString(),
                            " in ", tensor->dtype_name, " needs ", bytes));
  }
  tensor->bytes = bytes;
  return absl::OkStatus();
}

// Tensors must tile the data exactly.
absl::Status CheckTiling(const std::string& path, const std::vector<StoredTensor>& tensors,
                         const std::byte* data, int64_t data_bytes) {
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::pair(a->data, a->bytes) < std::pair(b->data, b->bytes);
  });
  int64_t at = 0;
  const StoredTensor* previous = nullptr;
  for (const StoredTensor* tensor : order) {
    const int64_t begin = tensor->data - data;
    if (begin < at) {
      return Bad(path, absl::StrCat("tensors ", Quoted(previous->name), " and ",
                                    Quoted(tensor->name), " overlap"));
    }
    if (begin > at) {
      return Bad(path, absl::StrCat("bytes ", at, " to ", begin, " before tensor ",
                                    Quoted(tensor->name), " belong to no tensor"));
    }
    at += tensor->bytes;
    previous = tensor;
  }
  if (at != data_bytes) {
    return Bad(path, absl::StrCat("the last ", data_bytes - at, " bytes belong to no tensor"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& path, int64_t max_bytes) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const int64_t size = file.tellg();
  if (size < 0 || size > max_bytes) {
    return absl::DataLossError(
        absl::StrCat(path, " has ", size, " bytes, too many to be what it claims"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  return text;
}

// Tensor name -> shard file name.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(path, static_cast<int64_t>(kMaxHeaderBytes)));
  const auto bad = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(path, ": ", what));
  };
  const Json index = Json::parse(text, nullptr, false);
  if (index.is_discarded() || !index.is_object() || !index.contains("weight_map") ||
      !index["weight_map"].is_object() || index["weight_map"].empty()) {
    return bad("not a JSON object with a weight_map");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string())
      return bad(absl::StrCat("the file of ", Quoted(name), " is not a string"));
    std::string shard = file.get<std::string>();
    if (shard.empty() || shard[0] == '.' || shard.find('/') != std::string::npos ||
        shard.find('\0') != std::string::npos) {
      return bad(absl::StrCat("the file of ", Quoted(name), " is ", Quoted(shard),
                              ", not a plain file name in this folder"));
    }
    shards[name] = std::move(shard);
  }
  return shards;
}

}  // namespace

std::string StoredTensor::ShapeString() const {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(Mapping mapping, MapFile(path));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping.data.get(), 8);  // little-endian, as every host served
  if (header_bytes > kMaxHeaderBytes) {
    return Bad(path, absl::StrCat("it claims a header of ", header_bytes, " bytes; at most ",
                                  kMaxHeaderBytes, " are allowed"));
  }
  if (header_bytes > static_cast<uint64_t>(mapping.bytes) - 8) {
    return Bad(path, absl::StrCat("it claims a header of ", header_bytes, " bytes but has only ",
                                  mapping.bytes - 8, " bytes after the length: it is cut short"));
  }
  const auto* text = reinterpret_cast<const char*>(mapping.data.get()) + 8;
  ASSIGN_OR_RETURN(const Json header, ParseHeader(path, text, header_bytes));
  SafetensorsFile file;
  const std::byte* data = mapping.data.get() + 8 + header_bytes;
  const int64_t data_bytes = mapping.bytes - 8 - static_cast<int64_t>(header_bytes);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    StoredTensor tensor;
    int64_t begin = 0;
    RETURN_IF_ERROR(ReadEntry(path, name, entry, data_bytes, &tensor, &begin));
    tensor.data = data + begin;
    file.by_name_[name] = file.tensors_.size();
    file.tensors_.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(CheckTiling(path, file.tensors_, data, data_bytes));
  file.path_ = path;
  file.file_bytes_ = mapping.bytes;
  file.mapping_ = std::move(mapping.data);
  return file;
}

const StoredTensor* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& folder) {
  const std::string single = folder + "/model.safetensors";
  const std::string index = folder + "/model.safetensors.index.json";
  std::map<std::string, std::string> promised;  // tensor -> shard
  std::set<std::string> names;
  if (access(index.c_str(), F_OK) == 0) {
    ASSIGN_OR_RETURN(promised, ReadIndex(index));
    for (const auto& [tensor, shard] : promised) names.insert(shard);
  } else if (access(single.c_str(), F_OK) == 0) {
    names.insert("model.safetensors");
  } else {
    return absl::NotFoundError(
        absl::StrCat(folder, " holds neither model.safetensors nor model.safetensors.index.json"));
  }
  Checkpoint checkpoint;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(folder + "/" + name));
    checkpoint.files_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
    for (const StoredTensor& tensor : checkpoint.files_.back()->tensors()) {
      if (!checkpoint.tensors_.emplace(tensor.name, &tensor).second) {
        return absl::DataLossError(
            absl::StrCat("tensor ", Quoted(tensor.name), " is in two files of ", folder));
      }
    }
  }
  for (const auto& [tensor, shard] : promised) {
    if (!checkpoint.tensors_.contains(tensor)) {
      return absl::DataLossError(absl::StrCat(index, " promises tensor ", Quoted(tensor), " in ",
                                              shard, ", which lacks it"));
    }
  }
  return checkpoint;
}

int64_t Checkpoint::file_bytes() const {
  int64_t bytes = 0;
  for (const auto& file : files_) bytes += file->file_bytes();
  return bytes;
}

const StoredTensor* Checkpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : it->second;
}

}  // namespace weir::model
