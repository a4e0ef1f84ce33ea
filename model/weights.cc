#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/cuda/runtime.h"
#include "core/philox.h"
#include "core/thread_pool.h"

namespace weir::model {
namespace {

using Role = TensorNeed::Role;

// FNV-1a: a seed for each tensor's random values.
uint64_t HashName(absl::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

template <typename T>
float LoadOne(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return ToFloat(value);
}

float LoadFloat(const std::byte* data, DType dtype, int64_t index) {
  const std::byte* at = data + index * DTypeSize(dtype);
  if (dtype == DType::kBF16) return LoadOne<BFloat16>(at);
  if (dtype == DType::kF16) return LoadOne<Float16>(at);
  return LoadOne<float>(at);
}

bool IsFloat(const StoredTensor& stored) {
  return stored.dtype == DType::kF32 || stored.dtype == DType::kBF16 || stored.dtype == DType::kF16;
}

int64_t RowElements(const TensorNeed& need) {
  return need.shape[0] == 0 ? 0 : need.num_elements() / need.shape[0];
}

std::string ShapeOf(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// "3 missing: a, b, c"; cut after twelve names.
void Complain(const char* what, const std::vector<std::string>& items, std::string* text) {
  if (items.empty()) return;
  constexpr size_t kShown = 12;
  const size_t shown = std::min(items.size(), kShown);
  absl::StrAppend(text, text->empty() ? "" : "; ", items.size(), " ", what, ": ",
                  absl::StrJoin(items.begin(), items.begin() + static_cast<int64_t>(shown), ", "));
  if (shown < items.size()) absl::StrAppend(text, " and ", items.size() - shown, " more");
}

}  // namespace

absl::StatusOr<FloatVector> FloatVector::From(const std::vector<float>& values, Stream stream) {
  FloatVector vector;
  if (values.empty()) return vector;
  vector.size_ = static_cast<int64_t>(values.size());
  if (stream.device == Device::kCuda) {
    ASSIGN_OR_RETURN(vector.buffer_, cuda::AllocateDevice(values.size() * 4, "weights"));
    // From pageable memory: staged before the call returns.
    cuda::Copy(vector.buffer_.data(), values.data(), values.size() * 4, stream);
    return vector;
  }
  ASSIGN_OR_RETURN(vector.buffer_, Buffer::Allocate(values.size() * 4, "weights"));
  std::copy(values.begin(), values.end(), vector.buffer_.as<float>());
  return vector;
}

absl::StatusOr<WeightReader> WeightReader::Create(const ModelDescription& model,
                                                  const Family& family,
                                                  const Checkpoint* checkpoint, Options options,
                                                  std::vector<std::string>* skipped) {
  WeightReader reader;
  reader.options_ = std::move(options);
  std::vector<std::string> missing, extra, wrong;
  std::set<std::string, std::less<>> used;
  for (TensorNeed& need : ModelTensors(model)) {
    Entry entry;
    reader.bytes_total_ += need.num_elements() * DTypeSize(reader.options_.compute);
    if (checkpoint != nullptr) {
      entry.place = family.place(model, need, checkpoint);
      const std::string& name = entry.place.tensor;
      const bool first = used.insert(name).second;
      entry.stored = checkpoint->Find(name);
      if (entry.stored == nullptr) {
        if (first) missing.push_back(name);
      } else if (entry.stored->shape != entry.place.shape) {
        if (first) {
          wrong.push_back(absl::StrCat(name, " is ", entry.stored->ShapeString(), ", expected ",
                                       ShapeOf(entry.place.shape)));
        }
      } else if (!IsFloat(*entry.stored)) {
        if (first) {
          wrong.push_back(
              absl::StrCat(name, " is ", entry.stored->dtype_name, ", expected F32, BF16 or F16"));
        }
      }
    }
    std::string name = need.name;
    entry.need = std::move(need);
    reader.entries_.emplace(std::move(name), std::move(entry));
  }
  if (checkpoint != nullptr) {
    for (const auto& [name, stored] : checkpoint->tensors()) {
      if (used.contains(name)) continue;
      if (family.skips(model, name)) {
        skipped->push_back(name);
      } else {
        extra.push_back(name);
      }
    }
  }
  std::string text;
  Complain("missing", missing, &text);
  Complain("not expected", extra, &text);
  Complain("with a wrong shape or type", wrong, &text);
  if (!text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the checkpoint's tensors do not fit its config.json: ", text));
  }
  return reader;
}

const WeightReader::Entry& WeightReader::Find(const std::string& name) const {
  const auto it = entries_.find(name);
  WEIR_CHECK(it != entries_.end()) << "tensor " << name << " was not listed as needed";
  return it->second;
}

void WeightReader::Report(const Entry& entry, int64_t rows) {
  bytes_done_ += rows * RowElements(entry.need) * DTypeSize(options_.compute);
  ++tensors_done_;
  if (options_.progress) options_.progress(bytes_done_, bytes_total_, tensors_done_);
}

void WeightReader::AppendPieces(const Entry& entry, int64_t begin, int64_t count,
                                std::vector<TensorView>* pieces) const {
  const Placement& place = entry.place;
  const int64_t width = RowElements(entry.need);
  const int64_t block = place.block_rows < 0 ? entry.need.shape[0] : place.block_rows;
  while (count > 0) {
    const int64_t within = begin % block;
    const int64_t rows = std::min(count, block - within);
    const int64_t stored_row = place.first + begin / block * place.stride + within;
    const DType dtype = *entry.stored->dtype;
    // Views of the mapped file are only read.
    auto* at = const_cast<std::byte*>(entry.stored->data) + stored_row * width * DTypeSize(dtype);
    pieces->push_back(TensorView(at, dtype, {rows, width}));
    begin += rows;
    count -= rows;
  }
}

absl::StatusOr<kernels::PackedMatrix> WeightReader::Matrix(const std::string& prefix,
                                                           const std::vector<RowBlock>& blocks,
                                                           DType compute) {
  std::vector<TensorView> pieces;
  std::vector<std::pair<const Entry*, int64_t>> read;
  int64_t rows = 0, width = 0, zero_rows = 0;
  for (const RowBlock& block : blocks) {
    if (block.name.empty()) {
      rows += block.count;
      zero_rows = std::max(zero_rows, block.count);
      continue;
    }
    const Entry& entry = Find(prefix + block.name);
    const int64_t count = block.count < 0 ? entry.need.shape[0] : block.count;
    width = RowElements(entry.need);
    rows += count;
    read.emplace_back(&entry, count);
  }
  auto packed = [&]() -> absl::StatusOr<kernels::PackedMatrix> {
    if (read.front().first->stored == nullptr) {
      return kernels::PackedMatrix::Random(
          rows, width, compute, HashName(read.front().first->need.name),
          1.0f / std::sqrt(static_cast<float>(width)), options_.stream);
    }
    std::vector<float> zeros(static_cast<size_t>(zero_rows * width), 0.0f);
    size_t next = 0;
    for (const RowBlock& block : blocks) {
      if (block.name.empty()) {
        pieces.push_back(TensorView(zeros.data(), {block.count, width}));
      } else {
        const auto& [entry, count] = read[next++];
        AppendPieces(*entry, block.begin, count, &pieces);
      }
    }
    return kernels::PackedMatrix::PackStacked(pieces.data(), static_cast<int>(pieces.size()),
                                              compute, options_.stream);
  }();
  if (packed.ok()) {
    bytes_kept_ += packed->bytes();
    for (const auto& [entry, count] : read) Report(*entry, count);
  }
  return packed;
}

std::vector<float> WeightReader::RandomValues(const TensorNeed& need) const {
  std::vector<float> values(static_cast<size_t>(need.num_elements()));
  const uint64_t seed = HashName(need.name);
  for (size_t i = 0; i < values.size(); ++i) {
    const float u = 2.0f * ToUniform(Philox(seed, i / 4)[i % 4]) - 1.0f;
    switch (need.role) {
      case Role::kNorm:
      case Role::kSkip:
        values[i] = 1.0f + 0.1f * u;
        break;
      case Role::kDecay:  // exp of it from 1 to about 7
        values[i] = 1.0f + u;
        break;
      case Role::kStep:  // softplus of it about 0.01 to 0.1
        values[i] = -3.5f + u;
        break;
      case Role::kBias:
        values[i] = 0.1f * u;
        break;
      default:
        values[i] = u / std::sqrt(static_cast<float>(need.shape.back()));
    }
  }
  return values;
}

absl::StatusOr<std::vector<float>> WeightReader::Values(const std::string& name) {
  const Entry& entry = Find(name);
  Report(entry, entry.need.shape[0]);
  bytes_kept_ += entry.need.num_elements() * 4;
  if (entry.stored == nullptr) return RandomValues(entry.need);
  std::vector<TensorView> pieces;
  AppendPieces(entry, 0, entry.need.shape[0], &pieces);
  std::vector<float> values;
  values.reserve(static_cast<size_t>(entry.need.num_elements()));
  for (const TensorView& piece : pieces) {
    const auto* data = static_cast<const std::byte*>(piece.raw());
    for (int64_t i = 0; i < piece.num_elements(); ++i) {
      values.push_back(LoadFloat(data, piece.dtype(), i) + entry.place.add);
    }
  }
  return values;
}

absl::StatusOr<FloatVector> WeightReader::Vector(const std::string& name) {
  ASSIGN_OR_RETURN(const std::vector<float> values, Values(name));
  return FloatVector::From(values, options_.stream);
}

absl::StatusOr<WeightReader::Table> WeightReader::EmbeddingTable(const std::string& name) {
  const Entry& entry = Find(name);
  const int64_t rows = entry.need.shape[0], width = RowElements(entry.need);
  const bool random = entry.stored == nullptr;
  // A bf16 checkpoint stays bf16 whatever the products are computed in: nothing would be gained.
  const bool narrow =
      random ? options_.compute == DType::kBF16
             : entry.stored->dtype == DType::kBF16 ||
                   (entry.stored->dtype == DType::kF16 && options_.compute == DType::kBF16);
  Table table;
  const DType dtype = narrow ? DType::kBF16 : DType::kF32;
  if (options_.stream.device == Device::kCuda) {
    ASSIGN_OR_RETURN(table.matrix, Matrix("", {name}, dtype));
    table.view = table.matrix.table();
    return table;
  }
  ASSIGN_OR_RETURN(table.buffer,
                   Buffer::Allocate(static_cast<size_t>(rows * width * DTypeSize(dtype)),
                                    "the embedding table"));
  table.view = TensorView(table.buffer.data(), dtype, {rows, width});
  const uint64_t seed = HashName(name);
  options_.stream.pool->ParallelRanges(rows, 64, [&](int64_t begin, int64_t end) {
    if (!random && entry.stored->dtype == dtype) {
      const int64_t row_bytes = width * DTypeSize(dtype);
      std::memcpy(table.buffer.data() + begin * row_bytes, entry.stored->data + begin * row_bytes,
                  static_cast<size_t>((end - begin) * row_bytes));
      return;
    }
    for (int64_t i = begin * width; i < end * width; ++i) {
      const float value = random ? ToUniform(Philox(seed, static_cast<uint64_t>(i))[0]) - 0.5f
                                 : LoadFloat(entry.stored->data, *entry.stored->dtype, i);
      if (narrow) {
        table.buffer.as<BFloat16>()[i] = ToBFloat16(value);
      } else {
        table.buffer.as<float>()[i] = value;
      }
    }
  });
  Report(entry, rows);
  bytes_kept_ += static_cast<int64_t>(table.buffer.size_bytes());
  return table;
}

}  // namespace weir::model
