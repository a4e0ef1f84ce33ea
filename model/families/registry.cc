#include "model/families/registry.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace weir::model {

extern const Family kHybridFamily;
extern const Family kGlaFamily;
extern const Family kQwen35Family;
extern const Family kQwen35TextFamily;

namespace {
const Family* const kFamilies[] = {
    &kHybridFamily,
    &kGlaFamily,
    &kQwen35Family,
    &kQwen35TextFamily,
};
}  // namespace

absl::StatusOr<const Family*> FindFamily(absl::string_view model_type) {
  std::vector<std::string> served;
  for (const Family* family : kFamilies) {
    if (model_type == family->model_type) return family;
    served.push_back(family->model_type);
  }
  return absl::UnimplementedError(
      absl::StrCat("model_type \"", model_type.substr(0, 60),
                   "\" is not served; served are: ", absl::StrJoin(served, ", ")));
}

void ReadTokenIds(const Fields& config, ModelDescription* model) {
  // Where vocab_size itself is wrong, every id would be.
  const int64_t last = config.ok() ? model->vocab_size - 1 : kMaxVocab;
  for (const int64_t id : config.IntList("bos_token_id", 0, last)) {
    model->bos_ids.push_back(static_cast<int32_t>(id));
  }
  for (const int64_t id : config.IntList("eos_token_id", 0, last)) {
    model->eos_ids.push_back(static_cast<int32_t>(id));
  }
}

void ReadCommon(const Fields& config, ModelDescription* model) {
  model->vocab_size = static_cast<int>(config.Int("vocab_size", 1, kMaxVocab));
  model->hidden_size = static_cast<int>(config.Int("hidden_size", 1, kMaxWidth));
  model->tied_head = config.Bool("tie_word_embeddings", false);
  ReadTokenIds(config, model);
  ReadDType(config, model);
}

void ReadDType(const Fields& config, ModelDescription* model) {
  for (const char* key : {"torch_dtype", "dtype"}) {
    const std::string dtype = config.String(key, "");
    if (dtype == "float32") model->config_dtype = DType::kF32;
    if (dtype == "bfloat16") model->config_dtype = DType::kBF16;
    if (dtype == "float16") model->config_dtype = DType::kF16;
  }
}

}  // namespace weir::model
