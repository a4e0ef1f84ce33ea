// What the server knows of the model it serves: facts, limits, and how it reads and writes text.
// Filled by the composition root; constant while the server runs.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "scheduler/executor.h"
#include "text/answer_style.h"

namespace weir::text {
class ChatTemplate;
class Tokenizer;
}  // namespace weir::text

namespace weir::server {

// What absent sampling fields become.
struct SamplingDefaults {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
};

// From the folder's generation_config.json: temperature, top_k, top_p, min_p, repetition_penalty;
// do_sample = false makes greedy the default. No file, or fields it does not have: the defaults
// above. INVALID_ARGUMENT: no JSON, or a value out of range.
absl::StatusOr<SamplingDefaults> LoadSamplingDefaults(const std::string& model_dir);

struct ServedModel {
  std::string name;
  std::string family;
  std::string compute_dtype;
  int32_t hidden_size = 0;
  int32_t num_layers = 0;
  std::map<std::string, int> layers_by_mixer;
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;
  std::string device = "cpu";
  int64_t graph_bytes = 0;   // GPU
  int64_t device_bytes = 0;  // GPU: all its memory
  std::vector<int32_t> bos_ids, eos_ids;
  std::vector<std::string> skipped_tensors;

  scheduler::ExecutorLimits limits;
  SamplingDefaults sampling;
  std::shared_ptr<const text::Tokenizer> tokenizer;         // null: token ids only
  std::shared_ptr<const text::ChatTemplate> chat_template;  // null: cannot chat
  text::AnswerStyle answer_style;                           // how it writes calls and reasoning
};

}  // namespace weir::server
