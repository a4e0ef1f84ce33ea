// The model folder's public face: describe a model folder, load it, run it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cache/layout.h"
#include "core/dtype.h"
#include "core/status.h"
#include "scheduler/executor.h"

namespace weir::model {

// What config.json says, for people and for limits. Needs no weights.
struct ModelInfo {
  std::string name;    // folder name
  std::string family;  // model_type of config.json
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t num_layers = 0;
  int32_t max_position = 0;
  std::map<std::string, int>
      layers_by_mixer;                   // "gated_deltanet": 18; parts of joined layers count too
  DType checkpoint_dtype = DType::kF32;  // of most weight bytes
  DType compute_dtype = DType::kF32;     // weights and products as served
  int64_t num_parameters = 0;
  int64_t checkpoint_bytes = 0;
  int64_t weight_bytes = 0;     // in memory as served
  int64_t workspace_bytes = 0;  // activations of the largest step
  bool on_gpu = false;
  std::string device;        // "cpu", or the GPU's name
  int64_t device_bytes = 0;  // GPU: its memory
  // GPU: what was chosen at load, a sentence each, for people.
  std::vector<std::string> choices;
  int64_t graph_bytes = 0;  // GPU: captured graphs and loaded kernels
  cache::StateLayout layout;
  std::vector<int32_t> bos_ids, eos_ids;     // of config.json and generation_config.json
  std::vector<std::string> skipped_tensors;  // in the checkpoint and deliberately not served
};

enum class ComputeDType : unsigned char {
  kAuto,
  kF32,
  kBF16
};  // auto: as the checkpoint; f16 -> bf16

enum class DeviceChoice : unsigned char { kAuto, kCpu, kCuda };  // auto: a GPU where one is usable

struct LoadOptions {
  ComputeDType dtype = ComputeDType::kAuto;
  DeviceChoice device = DeviceChoice::kAuto;
  int32_t slots = 0;         // 0: from the memory budget
  int32_t pages = 0;         // 0: from the memory budget
  int64_t memory_bytes = 0;  // budget for slots and pages together; 0: a default from free memory
  int32_t page_tokens = 16;
  int32_t max_step_tokens = 0;     // 0: what suits the device (512 on a CPU, 8192 on a GPU)
  int32_t max_step_sequences = 0;  // 0: what suits the device (64 on a CPU, 256 on a GPU)
  int32_t max_top_logprobs = 20;   // GPU: most log probabilities of a token that will be asked for
  bool graphs = true;              // GPU: decode steps as captured graphs
  int32_t max_position = 0;        // 0: the model's
  int32_t threads = 0;             // 0: all usable cores
  bool random_weights = false;     // a config.json alone is enough; deterministic values
  // With random weights: every mixer becomes the model's (first) full attention. INVALID_ARGUMENT
  // when it has none. For comparisons.
  bool full_attention = false;
  // Called from time to time while loading (any thread).
  std::function<void(int64_t bytes_done, int64_t bytes_total, int tensors_done)> progress;
};

// `path`: a model folder, or with `random_weights` also a config.json file itself.
// NOT_FOUND, INVALID_ARGUMENT (config: field by field; tensors: all missing, extra and misshapen at
// once), UNIMPLEMENTED (family or mixer unknown, by name), RESOURCE_EXHAUSTED.
absl::StatusOr<ModelInfo> DescribeModel(const std::string& path, const LoadOptions& options);

class LoadedModel {
 public:
  virtual ~LoadedModel() = default;
  virtual const ModelInfo& info() const = 0;
  virtual scheduler::Executor* executor() = 0;
};

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const std::string& path,
                                                       const LoadOptions& options);

}  // namespace weir::model
