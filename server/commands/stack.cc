#include "server/commands/stack.h"

#include <sys/stat.h>

#include <algorithm>
#include <future>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/cuda/runtime.h"
#include "core/log.h"
#include "server/commands/commands.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace weir::server {
namespace {

struct TextParts {
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;
};

absl::StatusOr<TextParts> LoadText(const std::string& model_dir) {
  TextParts parts;
  if (model_dir.empty()) return parts;
  auto tokenizer = text::Tokenizer::Load(model_dir);
  if (absl::IsNotFound(tokenizer.status())) return parts;  // token ids only
  RETURN_IF_ERROR(tokenizer.status());
  parts.tokenizer = *std::move(tokenizer);
  auto chat_template = text::ChatTemplate::Load(model_dir, *parts.tokenizer);
  if (absl::IsNotFound(chat_template.status())) return parts;
  RETURN_IF_ERROR(chat_template.status());
  parts.chat_template = std::make_shared<const text::ChatTemplate>(*std::move(chat_template));
  return parts;
}

ServedModel ToServedModel(const model::ModelInfo& info, const scheduler::ExecutorLimits& limits,
                          const SamplingDefaults& sampling, TextParts text) {
  ServedModel served;
  served.name = info.name;
  served.family = info.family;
  served.compute_dtype = std::string(DTypeName(info.compute_dtype));
  served.hidden_size = info.hidden_size;
  served.num_layers = info.num_layers;
  served.layers_by_mixer = info.layers_by_mixer;
  served.num_parameters = info.num_parameters;
  served.weight_bytes = info.weight_bytes;
  served.workspace_bytes = info.workspace_bytes;
  served.device = info.device;
  served.graph_bytes = info.graph_bytes;
  served.device_bytes = info.device_bytes;
  served.bos_ids = info.bos_ids;
  served.eos_ids = info.eos_ids;
  served.skipped_tensors = info.skipped_tensors;
  served.limits = limits;
  served.sampling = sampling;
  served.tokenizer = std::move(text.tokenizer);
  served.chat_template = std::move(text.chat_template);
  if (served.chat_template == nullptr) return served;
  // With two templates the one for tools shows their calls.
  std::string source(served.chat_template->source());
  source += served.chat_template->source("tool_use");
  served.answer_style = text::DetectAnswerStyle(source, served.tokenizer.get());
  return served;
}

absl::Status SetAnswerStyle(const ServerOptions& options, text::AnswerStyle* style) {
  if (options.tool_parser != "auto") {
    ASSIGN_OR_RETURN(style->tools, text::ToolStyleFromName(options.tool_parser));
  }
  if (options.reasoning_parser != "auto") {
    ASSIGN_OR_RETURN(style->reasoning, text::ReasoningStyleFromName(options.reasoning_parser));
  }
  return absl::OkStatus();
}

// Masks are made while the model runs: on a CPU on the same cores, of which they should not take
// many.
int32_t MaskThreads(int64_t wanted) {
  if (wanted > 0) return static_cast<int32_t>(wanted);
  return static_cast<int32_t>(std::clamp(std::thread::hardware_concurrency() / 2, 1u, 8u));
}

scheduler::SchedulerOptions ToSchedulerOptions(const ServerOptions& options) {
  scheduler::SchedulerOptions out;
  out.max_queued_requests = static_cast<int32_t>(options.max_queued_requests);
  out.max_queued_tokens = options.max_queued_tokens;
  out.max_choices = static_cast<int32_t>(options.max_choices);
  out.step_tokens = static_cast<int32_t>(options.step_tokens);
  out.prefill_chunk_tokens = static_cast<int32_t>(options.prefill_chunk_tokens);
  out.mask_threads = MaskThreads(options.mask_threads);
  out.target_inter_token_us = options.target_inter_token_us;
  return out;
}

}  // namespace

absl::StatusOr<model::ComputeDType> ParseComputeDType(const std::string& name) {
  if (name == "auto") return model::ComputeDType::kAuto;
  if (name == "f32") return model::ComputeDType::kF32;
  if (name == "bf16") return model::ComputeDType::kBF16;
  return absl::InvalidArgumentError(
      absl::StrCat("dtype \"", name, "\" is unknown; use auto, f32 or bf16"));
}

absl::StatusOr<model::DeviceChoice> ParseDevice(const std::string& name) {
  if (name == "auto") return model::DeviceChoice::kAuto;
  if (name == "cpu") return model::DeviceChoice::kCpu;
  if (name == "cuda") return model::DeviceChoice::kCuda;
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", name, "\" is unknown; use auto, cpu or cuda"));
}

absl::StatusOr<model::LoadOptions> ToLoadOptions(const ServerOptions& options) {
  model::LoadOptions load;
  ASSIGN_OR_RETURN(load.device, ParseDevice(options.device));
  load.random_weights = options.random_weights;
  load.graphs = options.cuda_graphs;
  load.max_top_logprobs = static_cast<int32_t>(options.max_logprobs);
  ASSIGN_OR_RETURN(load.dtype, ParseComputeDType(options.dtype));
  load.slots = static_cast<int32_t>(options.slots);
  load.pages = static_cast<int32_t>(options.kv_pages);
  load.memory_bytes = options.memory_bytes;
  load.page_tokens = static_cast<int32_t>(options.page_tokens);
  load.max_step_tokens = static_cast<int32_t>(options.step_tokens);
  load.max_step_sequences = static_cast<int32_t>(options.step_sequences);
  load.max_position = static_cast<int32_t>(options.max_position);
  load.threads = static_cast<int32_t>(options.threads);
  return load;
}

absl::StatusOr<std::unique_ptr<Stack>> Stack::Start(
    const ServerOptions& options,
    std::function<void(int64_t bytes_done, int64_t bytes_total, int tensors_done)> progress) {
  struct stat folder {};
  const bool found = stat(options.model.c_str(), &folder) == 0;
  const bool is_folder = found && S_ISDIR(folder.st_mode);
  if (!is_folder && !(found && options.random_weights)) {
    return absl::NotFoundError(absl::StrCat("there is no model folder ", options.model));
  }
  std::unique_ptr<Stack> stack(new Stack());
  const int64_t begin_us = stack->clock_.NowUs();
  // The tokenizer takes as long as the weights of a small model: both at once.
  std::future<absl::StatusOr<TextParts>> text =
      std::async(std::launch::async, LoadText, is_folder ? options.model : std::string());
  ASSIGN_OR_RETURN(model::LoadOptions load, ToLoadOptions(options));
  load.progress = std::move(progress);
  SamplingDefaults sampling;
  if (is_folder) {
    ASSIGN_OR_RETURN(sampling, LoadSamplingDefaults(options.model));
  }
  ASSIGN_OR_RETURN(stack->model_, model::LoadModel(options.model, load));
  ASSIGN_OR_RETURN(TextParts parts, text.get());

  scheduler::Executor* executor = stack->model_->executor();
  stack->served_ =
      ToServedModel(stack->model_->info(), executor->limits(), sampling, std::move(parts));
  RETURN_IF_ERROR(SetAnswerStyle(options, &stack->served_.answer_style));
  if (stack->served_.tokenizer != nullptr &&
      stack->served_.tokenizer->vocab_size() > executor->limits().vocab_size) {
    LogWarning("the tokenizer knows ", stack->served_.tokenizer->vocab_size(),
               " tokens, the model ", executor->limits().vocab_size,
               ": prompts with the others are refused");
  }
  stack->scheduler_ = std::make_unique<scheduler::Scheduler>(ToSchedulerOptions(options), executor,
                                                             &stack->clock_, &stack->registry_);
  stack->scheduler_->Start();
  stack->load_seconds_ = static_cast<double>(stack->clock_.NowUs() - begin_us) * 1e-6;
  // The process ends after this: whoever asks meanwhile is to hear that it does not serve.
  cuda::SetFatalHook([server = &stack->server_](const std::string&) {
    if (*server != nullptr) (*server)->ReportBroken();
  });
  ASSIGN_OR_RETURN(stack->server_, Server::Start(options, &stack->served_, stack->scheduler_.get(),
                                                 &stack->clock_, &stack->registry_));
  return stack;
}

Stack::~Stack() {
  cuda::SetFatalHook(nullptr);
  server_.reset();
  scheduler_.reset();
  model_.reset();
}

}  // namespace weir::server
