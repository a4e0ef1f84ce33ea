// `weir inspect`: what a model folder is and what it needs, without loading its weights.
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/bytes.h"
#include "core/status.h"
#include "model/model.h"
#include "nlohmann/json.hpp"
#include "server/capacity.h"
#include "server/commands/commands.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace weir::server {
namespace {

struct Options {
  std::string model_dir;
  std::string memory;
  std::string dtype = "auto";
  std::string device = "auto";
  bool json = false;
};

// How the folder reads and writes text: "yes", or why not.
struct TextSupport {
  std::string tokenizer;
  std::string chat_template;
};

TextSupport InspectText(const std::string& model_dir) {
  TextSupport support;
  auto tokenizer = text::Tokenizer::Load(model_dir);
  if (!tokenizer.ok()) {
    support.tokenizer = absl::IsNotFound(tokenizer.status())
                            ? "none: token ids only"
                            : std::string(tokenizer.status().message());
    support.chat_template = "none";
    return support;
  }
  support.tokenizer = absl::StrCat((*tokenizer)->vocab_size(), " tokens");
  auto chat = text::ChatTemplate::Load(model_dir, **tokenizer);
  support.chat_template = chat.ok()                         ? "yes"
                          : absl::IsNotFound(chat.status()) ? "none"
                                                            : std::string(chat.status().message());
  return support;
}

std::string MixerList(const std::map<std::string, int>& layers_by_mixer) {
  std::vector<std::string> parts;
  for (const auto& [mixer, count] : layers_by_mixer)
    parts.push_back(absl::StrCat(count, " ", mixer));
  return absl::StrJoin(parts, ", ");
}

nlohmann::json ToJson(const model::ModelInfo& info, const TextSupport& text,
                      const std::vector<CapacityRow>& capacity) {
  nlohmann::json json = {{"name", info.name},
                         {"family", info.family},
                         {"parameters", info.num_parameters},
                         {"vocab_size", info.vocab_size},
                         {"hidden_size", info.hidden_size},
                         {"layers", info.num_layers},
                         {"layers_by_mixer", info.layers_by_mixer},
                         {"max_position", info.max_position},
                         {"checkpoint_dtype", std::string(DTypeName(info.checkpoint_dtype))},
                         {"compute_dtype", std::string(DTypeName(info.compute_dtype))},
                         {"checkpoint_bytes", info.checkpoint_bytes},
                         {"weight_bytes", info.weight_bytes},
                         {"workspace_bytes", info.workspace_bytes},
                         {"state_bytes_per_sequence", info.layout.slot_bytes},
                         {"kv_bytes_per_token", info.layout.KvBytesPerToken()},
                         {"page_tokens", info.layout.page_tokens},
                         {"bos_token_ids", info.bos_ids},
                         {"eos_token_ids", info.eos_ids},
                         {"tokenizer", text.tokenizer},
                         {"chat_template", text.chat_template},
                         {"skipped_tensors", info.skipped_tensors}};
  for (const CapacityRow& row : capacity) {
    json["capacity"].push_back({{"tokens", row.tokens}, {"sequences", row.sequences}});
  }
  return json;
}

void PrintRow(const char* name, const std::string& value) {
  std::printf("%-20s %s\n", name, value.c_str());
}

void PrintFacts(const model::ModelInfo& info, const TextSupport& text) {
  PrintRow("model", absl::StrCat(info.name, " (", info.family, ")"));
  PrintRow("parameters",
           absl::StrFormat("%.3g million", static_cast<double>(info.num_parameters) / 1e6));
  PrintRow("layers", absl::StrCat(info.num_layers, ": ", MixerList(info.layers_by_mixer)));
  PrintRow("sizes", absl::StrCat("hidden ", info.hidden_size, ", vocabulary ", info.vocab_size,
                                 ", longest sequence ", info.max_position, " tokens"));
  PrintRow("checkpoint", absl::StrCat(FormatBytes(info.checkpoint_bytes), ", mostly ",
                                      std::string(DTypeName(info.checkpoint_dtype))));
  PrintRow("weights in memory", absl::StrCat(FormatBytes(info.weight_bytes), " as ",
                                             std::string(DTypeName(info.compute_dtype))));
  PrintRow("workspace", FormatBytes(info.workspace_bytes));
  PrintRow("state per sequence", FormatBytes(info.layout.slot_bytes));
  PrintRow("KV per token",
           info.layout.page_bytes == 0 ? "none" : FormatBytes(info.layout.KvBytesPerToken()));
  PrintRow("tokenizer", text.tokenizer);
  PrintRow("chat template", text.chat_template);
  if (!info.skipped_tensors.empty()) {
    const size_t shown = std::min<size_t>(info.skipped_tensors.size(), 3);
    const std::vector<std::string> first(info.skipped_tensors.begin(),
                                         info.skipped_tensors.begin() + shown);
    PrintRow("not served",
             absl::StrCat(info.skipped_tensors.size(), " tensors: ", absl::StrJoin(first, ", "),
                          shown < info.skipped_tensors.size() ? ", ..." : ""));
  }
}

absl::Status RunInspect(const Options& options) {
  model::LoadOptions load;
  ASSIGN_OR_RETURN(load.dtype, ParseComputeDType(options.dtype));
  ASSIGN_OR_RETURN(load.device, ParseDevice(options.device));
  int64_t memory_bytes = 0;
  if (!options.memory.empty()) {
    ASSIGN_OR_RETURN(memory_bytes, ParseBytes(options.memory));
  }
  ASSIGN_OR_RETURN(const model::ModelInfo info, model::DescribeModel(options.model_dir, load));
  const TextSupport text = InspectText(options.model_dir);
  std::vector<CapacityRow> capacity;
  const int64_t left = memory_bytes - info.weight_bytes - info.workspace_bytes;
  if (memory_bytes > 0 && left > 0) capacity = CapacityOf(info.layout, left, info.max_position);
  if (options.json) {
    std::printf("%s\n", ToJson(info, text, capacity).dump().c_str());
    return absl::OkStatus();
  }
  PrintFacts(info, text);
  if (memory_bytes > 0 && left <= 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "weights and workspace need ", FormatBytes(info.weight_bytes + info.workspace_bytes), "; ",
        FormatBytes(memory_bytes), " of memory leaves no room for a sequence"));
  }
  if (memory_bytes > 0) {
    PrintRow("fits at once",
             absl::StrCat(FormatCapacity(capacity), " in ", FormatBytes(memory_bytes)));
  }
  return absl::OkStatus();
}

}  // namespace

void AddInspectCommand(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* inspect = app.add_subcommand(
      "inspect", "What a model is and what it needs, without loading its weights");
  inspect->add_option("model", options->model_dir, "Model folder")->required();
  inspect->add_option("--memory", options->memory,
                      "Say how many sequences fit in this much memory, e.g. 24GiB");
  inspect->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  inspect->add_option("--dtype", options->dtype, "auto, f32 or bf16")->capture_default_str();
  inspect->add_flag("--json", options->json, "Print one JSON object");
  inspect->callback([options, exit_code] {
    const absl::Status status = RunInspect(*options);
    if (!status.ok()) {
      std::fprintf(stderr, "weir inspect: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
