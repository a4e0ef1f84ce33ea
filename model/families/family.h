// A family: how one published config.json and its tensor names map to a description and our names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/status.h"
#include "model/config.h"
#include "model/description.h"
#include "model/safetensors.h"

namespace weir::model {

// Where one of our tensors lies in the checkpoint: rows (of dimension 0) in equal blocks.
struct Placement {
  std::string tensor;          // its name there
  std::vector<int64_t> shape;  // the whole tensor's shape there
  int64_t first = 0;           // row of the first block
  int64_t block_rows = -1;     // -1: all rows are one block
  int64_t stride = 0;          // rows from one block's begin to the next
  float add = 0.0f;            // added to every element: 1 for norms stored as w, applied as 1 + w
};

struct Family {
  const char* model_type;
  // Every field checked; INVALID_ARGUMENT names all misfits, UNIMPLEMENTED what is not served.
  absl::StatusOr<ModelDescription> (*parse)(const Fields& config);
  // `checkpoint` settles what only the file can tell (prefixes, old packings); null for random
  // weights.
  Placement (*place)(const ModelDescription& model, const TensorNeed& need,
                     const Checkpoint* checkpoint);
  // Whether a checkpoint tensor that nothing needs is left out on purpose.
  bool (*skips)(const ModelDescription& model, absl::string_view tensor);
};

// The tensor whole, as we shape it.
inline Placement Whole(std::string tensor, const TensorNeed& need) {
  Placement place;
  place.tensor = std::move(tensor);
  place.shape = need.shape;
  return place;
}

// Rows [first, first + need.shape[0]) of a tensor with `rows` rows.
inline Placement RowRange(std::string tensor, const TensorNeed& need, int64_t first, int64_t rows) {
  Placement place = Whole(std::move(tensor), need);
  place.shape[0] = rows;
  place.first = first;
  place.block_rows = need.shape[0];
  place.stride = need.shape[0];
  return place;
}

// Limits beyond which a config value is a mistake.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxLayers = 2048;
constexpr int64_t kMaxPosition = int64_t{1} << 30;
constexpr int64_t kMaxConvSize = 64;

// What every family reads the same way: vocab_size, hidden_size, tie_word_embeddings and the next
// two.
void ReadCommon(const Fields& config, ModelDescription* model);
// bos_token_id and eos_token_id, added to those that are there.
void ReadTokenIds(const Fields& config, ModelDescription* model);
// torch_dtype or dtype.
void ReadDType(const Fields& config, ModelDescription* model);

}  // namespace weir::model
