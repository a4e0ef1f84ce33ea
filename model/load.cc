#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/cuda/runtime.h"
#include "core/log.h"
#include "core/thread_pool.h"
#include "kernels/matmul.h"
#include "model/decoder.h"
#include "model/executor.h"
#include "model/families/registry.h"
#include "model/gpu_executor.h"
#include "model/loading.h"
#include "model/model.h"
#include "model/step_runner.h"
#include "model/weights.h"

namespace weir::model {
namespace {

bool IsDirectory(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool Exists(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  constexpr int64_t kMaxBytes = 16 << 20;
  if (IsDirectory(path)) return absl::NotFoundError(absl::StrCat(path, " is a folder, not a file"));
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const int64_t size = file.tellg();
  if (size < 0 || size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes; at most ", kMaxBytes, " are read"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return text;
}

// "models/weir-tiny/" -> "weir-tiny"; of a file its folder and name matter not: "x/shape.json" ->
// "shape".
std::string NameOf(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (!IsDirectory(path) && name.ends_with(".json")) name.resize(name.size() - 5);
  return name;
}

absl::Status CheckOptions(const LoadOptions& o) {
  const std::pair<const char*, std::pair<int64_t, std::pair<int64_t, int64_t>>> bounds[] = {
      {"slots", {o.slots, {0, 1 << 24}}},
      {"pages", {o.pages, {0, INT32_MAX}}},
      {"memory_bytes", {o.memory_bytes, {0, INT64_MAX}}},
      {"page_tokens", {o.page_tokens, {1, 4096}}},
      {"max_step_tokens", {o.max_step_tokens, {0, 1 << 20}}},
      {"max_step_sequences", {o.max_step_sequences, {0, 1 << 16}}},
      {"max_position", {o.max_position, {0, kMaxPosition}}},
      {"threads", {o.threads, {0, 1024}}},
      {"max_top_logprobs", {o.max_top_logprobs, {0, 1000}}},
  };
  for (const auto& [name, check] : bounds) {
    const auto& [value, range] = check;
    if (value < range.first || value > range.second) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be from ",
                                                     range.first, " to ", range.second));
    }
  }
  return absl::OkStatus();
}

void AddIds(const std::vector<int64_t>& from, std::vector<int32_t>* to) {
  for (const int64_t id : from) {
    const auto token = static_cast<int32_t>(id);
    if (std::find(to->begin(), to->end(), token) == to->end()) to->push_back(token);
  }
}

// Token ids that generation_config.json adds, where there is one.
absl::Status ReadGenerationConfig(const std::string& folder, ModelDescription* model) {
  const std::string path = folder + "/generation_config.json";
  if (!Exists(path)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(const Fields fields, Fields::Parse(text, "generation_config.json"));
  AddIds(fields.IntList("bos_token_id", 0, model->vocab_size - 1), &model->bos_ids);
  AddIds(fields.IntList("eos_token_id", 0, model->vocab_size - 1), &model->eos_ids);
  return fields.status();
}

// The type that most weight bytes have.
DType MainDType(const ModelFolder& folder) {
  if (!folder.checkpoint) return folder.description.config_dtype.value_or(DType::kF32);
  std::map<DType, int64_t> bytes;
  for (const auto& [name, tensor] : folder.checkpoint->tensors()) {
    if (tensor->dtype && !folder.family->skips(folder.description, name)) {
      bytes[*tensor->dtype] += tensor->bytes;
    }
  }
  const auto most = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? DType::kF32 : most->first;
}

DType ComputeType(ComputeDType wanted, DType checkpoint) {
  if (wanted == ComputeDType::kF32) return DType::kF32;
  if (wanted == ComputeDType::kBF16) return DType::kBF16;
  return checkpoint == DType::kF32 ? DType::kF32 : DType::kBF16;
}

// Memory of the weights as served, from shapes alone.
int64_t EstimateWeightBytes(const std::vector<TensorNeed>& tensors, DType compute) {
  int64_t bytes = 0;
  for (const TensorNeed& need : tensors) {
    const bool matrix =
        need.role == TensorNeed::Role::kMatrix || need.role == TensorNeed::Role::kTable;
    bytes += need.num_elements() * (matrix ? DTypeSize(compute) : 4);
  }
  return bytes;
}

scheduler::ExecutorLimits MakeLimits(const ModelInfo& info, const LoadOptions& options) {
  scheduler::ExecutorLimits limits;
  limits.vocab_size = info.vocab_size;
  limits.max_position = info.max_position;
  limits.max_step_tokens = std::max(options.max_step_tokens, options.max_step_sequences);
  limits.max_step_sequences = options.max_step_sequences;
  static_assert(kMaxInFlight == kGpuStepsInFlight);
  limits.max_in_flight = kMaxInFlight;
  limits.layout = info.layout;
  return limits;
}

void FillInfo(const std::string& path, const LoadOptions& options, ModelFolder* folder) {
  const ModelDescription& model = folder->description;
  ModelInfo& info = folder->info;
  info.name = NameOf(path);
  info.family = model.family;
  info.vocab_size = model.vocab_size;
  info.hidden_size = model.hidden_size;
  info.num_layers = static_cast<int32_t>(model.layers.size());
  info.max_position = options.max_position > 0 ? options.max_position : model.max_position;
  for (const LayerDescription& layer : model.layers) {
    for (const MixerDescription& mixer : layer.mixers) ++info.layers_by_mixer[mixer.type];
  }
  info.checkpoint_dtype = MainDType(*folder);
  info.compute_dtype = ComputeType(options.dtype, info.checkpoint_dtype);
  const std::vector<TensorNeed> tensors = ModelTensors(model);
  for (const TensorNeed& need : tensors) info.num_parameters += need.num_elements();
  info.checkpoint_bytes = folder->checkpoint ? folder->checkpoint->file_bytes() : 0;
  info.weight_bytes = EstimateWeightBytes(tensors, info.compute_dtype);
  info.bos_ids = model.bos_ids;
  info.eos_ids = model.eos_ids;
}

// Bytes that may be taken without pushing other memory out.
int64_t AvailableMemory() {
  int64_t available = int64_t{1} << 30;
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0;
  while (meminfo >> key >> kilobytes) {
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kilobytes * 1024;
  }
  int64_t limit = 0, used = 0;
  std::ifstream max("/sys/fs/cgroup/memory.max"), current("/sys/fs/cgroup/memory.current");
  if (max >> limit && current >> used) available = std::min(available, limit - used);
  return std::max<int64_t>(available, 0);
}

// A cache larger than the memory that is free would be promised now and missing later.
absl::Status CheckFits(const scheduler::ExecutorLimits& limits, int64_t workspace_bytes) {
  const double slots = double(limits.cache.slots) * double(limits.layout.slot_bytes);
  const double pages = double(limits.cache.pages) * double(limits.layout.page_bytes);
  const int64_t free = AvailableMemory();
  if (slots + pages + double(workspace_bytes) <= double(free)) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      limits.cache.slots, " slots of ", limits.layout.slot_bytes, " bytes, ", limits.cache.pages,
      " pages of ", limits.layout.page_bytes, " bytes and a workspace of ", workspace_bytes,
      " bytes do not fit into the ", free, " bytes of memory that are free"));
}

// UNAVAILABLE when a GPU is asked for and not to be had.
absl::StatusOr<bool> UseGpu(DeviceChoice choice) {
  if (choice == DeviceChoice::kCpu) return false;
  const absl::StatusOr<cuda::DeviceInfo> device = cuda::Open();
  if (!device.ok() && choice == DeviceChoice::kCuda) return device.status();
  return device.ok();
}

// What the device suits where the caller leaves it open. A step with prompts holds up whatever
// decodes beside it, so few large ones disturb less often than many small ones: 256 clients of the
// 9B model saw a 99th percentile between tokens of 104 ms with 8192 tokens and of 18 ms with 16384
// (docs/performance.md). They need a larger workspace, which a small GPU rather gives to sequences.
void ChooseStep(bool gpu, LoadOptions* options) {
  constexpr int64_t kLargeGpuBytes = int64_t{60} << 30;
  if (options->max_step_sequences == 0) options->max_step_sequences = gpu ? 256 : 64;
  if (options->max_step_tokens == 0) {
    const int tokens = !gpu ? 512 : cuda::Device().total_bytes >= kLargeGpuBytes ? 16384 : 8192;
    options->max_step_tokens = std::max(options->max_step_sequences, tokens);
  }
}

class CpuModel final : public LoadedModel {
 public:
  CpuModel(ModelInfo info, std::unique_ptr<ThreadPool> pool, std::unique_ptr<Decoder> decoder,
           StepRunner runner, Stream stream)
      : info_(std::move(info)),
        pool_(std::move(pool)),
        decoder_(std::move(decoder)),
        executor_(MakeExecutor(std::move(runner), stream)) {}
  const ModelInfo& info() const override { return info_; }
  scheduler::Executor* executor() override { return executor_.get(); }

 private:
  const ModelInfo info_;
  // The executor's thread uses the other two: it goes first.
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<scheduler::Executor> executor_;
};

class GpuModel final : public LoadedModel {
 public:
  GpuModel(ModelInfo info, std::unique_ptr<ThreadPool> pool, cuda::OwnedStream stream,
           std::unique_ptr<Decoder> decoder, std::unique_ptr<scheduler::Executor> executor)
      : info_(std::move(info)),
        pool_(std::move(pool)),
        stream_(std::move(stream)),
        decoder_(std::move(decoder)),
        executor_(std::move(executor)) {}
  ~GpuModel() override { cuda::SealAllocations(false); }
  const ModelInfo& info() const override { return info_; }
  scheduler::Executor* executor() override { return executor_.get(); }

 private:
  const ModelInfo info_;
  std::unique_ptr<ThreadPool> pool_;
  cuda::OwnedStream stream_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<scheduler::Executor> executor_;
};

// The checkpoint is let go of: everything is copied.
absl::StatusOr<std::unique_ptr<Decoder>> LoadDecoder(ModelFolder* folder, Stream stream) {
  WeightReader::Options reading;
  reading.compute = folder->info.compute_dtype;
  reading.stream = stream;
  reading.progress = folder->options.progress;
  std::vector<std::string> skipped;
  ASSIGN_OR_RETURN(WeightReader reader,
                   WeightReader::Create(folder->description, *folder->family,
                                        folder->checkpoint ? &*folder->checkpoint : nullptr,
                                        std::move(reading), &skipped));
  ASSIGN_OR_RETURN(Decoder loaded, Decoder::Load(folder->description, folder->plan, reader));
  auto decoder = std::make_unique<Decoder>(std::move(loaded));
  if (stream.device == Device::kCuda) cuda::Synchronize(stream);
  kernels::FinishPacking(stream);
  folder->checkpoint.reset();
  folder->info.weight_bytes = decoder->weight_bytes();
  return decoder;
}

// Left to the driver, to other processes and to fragmentation.
constexpr int64_t kGpuReserveBytes = int64_t{2} << 30;

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadOnGpu(ModelFolder folder,
                                                       std::unique_ptr<ThreadPool> pool) {
  const LoadOptions& options = folder.options;
  ModelInfo& info = folder.info;
  cuda::OwnedStream owned = cuda::OwnedStream::Make();
  Stream stream = owned.get();
  stream.pool = pool.get();
  ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder, LoadDecoder(&folder, stream));

  GpuExecutorOptions executor;
  executor.hidden = info.hidden_size;
  executor.limits = MakeLimits(info, options);
  executor.types = folder.plan.types;
  executor.activations = info.compute_dtype;
  executor.scratch_floats_per_token = folder.plan.scratch_floats_per_token;
  executor.graphs = options.graphs;
  executor.max_top_logprobs = options.max_top_logprobs;
  const GpuMemory needed = PlanGpuMemory(*decoder, executor, stream);
  ASSIGN_OR_RETURN(const cuda::DeviceInfo device, cuda::Open());
  const int64_t free = device.free_bytes - needed.workspace() - kGpuReserveBytes;
  const int64_t budget =
      options.memory_bytes > 0 ? options.memory_bytes : std::max<int64_t>(0, free);
  ASSIGN_OR_RETURN(executor.limits.cache,
                   ChooseCacheSize(info.layout, options, info.max_position, budget));
  GpuMemory memory;
  ASSIGN_OR_RETURN(std::unique_ptr<scheduler::Executor> made,
                   MakeGpuExecutor(decoder.get(), executor, stream, &memory));
  info.workspace_bytes = memory.workspace();
  if (const absl::Status library = kernels::MatMulLibrary(stream); !library.ok()) {
    LogWarning(library.message());
    info.choices.push_back("large matrix products without cuBLASLt: slow");
  }
  const std::vector<int> sizes = GraphSizes(executor.limits.max_step_sequences);
  info.choices.push_back(
      options.graphs && !decoder->has_routed_layers()
          ? absl::StrCat("decode steps are graphs of ", absl::StrJoin(sizes, ", "), " sequences")
          : "decode steps are enqueued kernel by kernel");
  info.choices.push_back(absl::StrCat("a step takes up to ", executor.limits.max_step_tokens,
                                      " tokens; matrix products measured at ",
                                      absl::StrJoin(TunedRows(executor), ", "), " rows"));
  info.graph_bytes = memory.graphs;
  cuda::SealAllocations(true);
  return std::make_unique<GpuModel>(std::move(info), std::move(pool), std::move(owned),
                                    std::move(decoder), std::move(made));
}

absl::Status MakeFullAttention(const LoadOptions& options, ModelDescription* model) {
  const MixerDescription* attention = nullptr;
  for (const LayerDescription& layer : model->layers) {
    for (const MixerDescription& mixer : layer.mixers) {
      const auto* params = std::get_if<AttnParams>(&mixer.params);
      if (attention == nullptr && params != nullptr && params->window == 0) attention = &mixer;
    }
  }
  if (attention == nullptr || !options.random_weights) {
    return absl::InvalidArgumentError(
        "full attention everywhere needs random weights and a model with a full attention layer");
  }
  const MixerDescription everywhere = *attention;
  for (LayerDescription& layer : model->layers) {
    for (MixerDescription& mixer : layer.mixers) mixer = everywhere;
  }
  return absl::OkStatus();
}

StateTypes TypesOf(const ModelInfo& info) {
  return {info.compute_dtype, info.on_gpu ? info.compute_dtype : DType::kF32};
}

}  // namespace

absl::StatusOr<ModelFolder> OpenModelFolder(const std::string& path, const LoadOptions& given) {
  RETURN_IF_ERROR(CheckOptions(given));
  ModelFolder folder;
  LoadOptions& options = folder.options;
  options = given;
  ASSIGN_OR_RETURN(folder.info.on_gpu, UseGpu(given.device));
  folder.info.device = folder.info.on_gpu ? cuda::Device().name : "cpu";
  folder.info.device_bytes = folder.info.on_gpu ? cuda::Device().total_bytes : 0;
  ChooseStep(folder.info.on_gpu, &options);
  const bool folder_given = IsDirectory(path);
  if (!folder_given && !(options.random_weights && Exists(path))) {
    return absl::NotFoundError(absl::StrCat(path, " is not a model folder"));
  }
  const std::string config = folder_given ? path + "/config.json" : path;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(config));
  ASSIGN_OR_RETURN(const Fields fields, Fields::Parse(text, "config.json"));
  const std::string model_type = fields.String("model_type");
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(folder.family, FindFamily(model_type));
  ASSIGN_OR_RETURN(folder.description, folder.family->parse(fields));
  folder.description.family = model_type;
  if (folder_given) RETURN_IF_ERROR(ReadGenerationConfig(path, &folder.description));
  if (options.full_attention) RETURN_IF_ERROR(MakeFullAttention(options, &folder.description));
  if (!options.random_weights) {
    ASSIGN_OR_RETURN(folder.checkpoint, Checkpoint::Open(path));
    RETURN_IF_ERROR(WeightReader::Create(folder.description, *folder.family, &*folder.checkpoint,
                                         {}, &folder.info.skipped_tensors)
                        .status());
  }
  FillInfo(path, options, &folder);
  ASSIGN_OR_RETURN(folder.plan,
                   PlanMemory(folder.description, TypesOf(folder.info), options.page_tokens));
  folder.info.layout = folder.plan.layout;
  folder.info.workspace_bytes =
      StepRunner::WorkspaceBytes(folder.info.hidden_size, MakeLimits(folder.info, options),
                                 folder.plan.scratch_floats_per_token);
  return folder;
}

absl::StatusOr<cache::CacheSize> ChooseCacheSize(const cache::StateLayout& layout,
                                                 const LoadOptions& options, int max_position,
                                                 int64_t budget_bytes) {
  // Without a word from the user: room for this many tokens beside each slot, and no more slots
  // than four full steps can use.
  constexpr int64_t kTypicalTokens = 4096;
  const int64_t most_slots = int64_t{4} * std::max(options.max_step_sequences, 1);
  const int64_t least = layout.BytesFor(1);
  const bool fixed = options.slots > 0 && (options.pages > 0 || layout.page_bytes == 0);
  if (!fixed && budget_bytes < least) {
    return absl::ResourceExhaustedError(
        absl::StrCat("one sequence needs at least ", least, " bytes of state, the budget is ",
                     budget_bytes, " bytes; raise the memory budget"));
  }
  cache::CacheSize size;
  const int64_t typical = layout.BytesFor(std::min<int64_t>(max_position, kTypicalTokens));
  const int64_t slots = std::clamp<int64_t>(budget_bytes / typical, 1, most_slots);
  size.slots = options.slots > 0 ? options.slots : static_cast<int32_t>(slots);
  if (layout.page_bytes == 0) return size;
  const int64_t left = std::max<int64_t>(0, budget_bytes - size.slots * layout.slot_bytes);
  const int64_t useful = int64_t{size.slots} * layout.PagesFor(max_position);
  const int64_t pages = std::min({left / layout.page_bytes, useful, int64_t{INT32_MAX}});
  size.pages = options.pages > 0 ? options.pages : static_cast<int32_t>(pages);
  if (size.pages == 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        size.slots, " slots of ", layout.slot_bytes, " bytes leave no room for a page of ",
        layout.page_bytes, " bytes in a budget of ", budget_bytes,
        " bytes; ask for fewer slots or raise the memory budget"));
  }
  return size;
}

absl::StatusOr<ModelInfo> DescribeModel(const std::string& path, const LoadOptions& options) {
  ASSIGN_OR_RETURN(ModelFolder folder, OpenModelFolder(path, options));
  return std::move(folder.info);
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const std::string& path,
                                                       const LoadOptions& given) {
  ASSIGN_OR_RETURN(ModelFolder folder, OpenModelFolder(path, given));
  const LoadOptions& options = folder.options;
  auto pool = std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : UsableCores());
  if (folder.info.on_gpu) return LoadOnGpu(std::move(folder), std::move(pool));
  Stream stream;
  stream.pool = pool.get();
  ASSIGN_OR_RETURN(std::unique_ptr<Decoder> decoder, LoadDecoder(&folder, stream));
  ModelInfo& info = folder.info;
  scheduler::ExecutorLimits limits = MakeLimits(info, options);
  const int64_t budget = options.memory_bytes > 0
                             ? options.memory_bytes
                             : std::max<int64_t>(0, AvailableMemory() - info.workspace_bytes) / 2;
  ASSIGN_OR_RETURN(limits.cache, ChooseCacheSize(info.layout, options, info.max_position, budget));
  info.workspace_bytes =
      StepRunner::WorkspaceBytes(info.hidden_size, limits, folder.plan.scratch_floats_per_token);
  RETURN_IF_ERROR(CheckFits(limits, info.workspace_bytes));
  ASSIGN_OR_RETURN(StepRunner runner,
                   StepRunner::Make(decoder.get(), info.hidden_size, limits, folder.plan.types,
                                    folder.plan.scratch_floats_per_token, stream));
  return std::make_unique<CpuModel>(std::move(info), std::move(pool), std::move(decoder),
                                    std::move(runner), stream);
}

}  // namespace weir::model
