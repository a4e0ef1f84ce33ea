// `weir bench step`: decode and prefill speed of a model, beside what the machine could do at best.
//
// Contexts are real: one sequence is prefilled (that is the prefill measurement), its state is
// copied to the other sequences of the batch, and decode steps go on from there, each fed by the
// one before it while that one still runs, as a server would do it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "core/cpu_features.h"
#include "core/cuda/runtime.h"
#include "core/philox.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/machine_rates.h"
#include "model/cost.h"
#include "model/model.h"
#include "nlohmann/json.hpp"
#include "server/commands/bench.h"
#include "server/commands/commands.h"

namespace weir::server {
namespace {

using scheduler::SequenceInput;
using scheduler::StepPlan;
using scheduler::StepResult;

struct Options {
  std::string model_dir;
  std::string shape;
  std::vector<int> batches = {1, 16};
  std::vector<int> contexts = {512};
  std::string dtype = "auto";
  std::string device = "auto";
  bool full_attention = false;
  bool no_graphs = false;
  bool fill = false;
  int threads = 0;
  int chunk_tokens = 0;
  double seconds = 3.0;
};

// Tokens that a decode measurement may add after its context.
constexpr int kDecodeRoom = 256;
constexpr int kWarmSteps = 2;
constexpr int kMinSteps = 8;
// --fill: no larger batch than this, however much memory there is.
constexpr int kMostFilling = 768;

struct Rates {
  double read_bytes_per_second = 0;
  double matrix_flops = 0;
};

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double Percent(double value, double of) { return of > 0 ? 100.0 * value / of : 0.0; }

void PrintLine(const nlohmann::json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

// One sequence of the benchmark: where its state lives and how far it is.
struct Lane {
  int32_t slot = 0;
  std::vector<int32_t> pages;
  int32_t position = 0;
  int32_t next_token = 0;
};

class StepBench {
 public:
  StepBench(const Options& options, const Rates& rates, const model::StepCost& cost,
            scheduler::Executor* executor)
      : options_(options), rates_(rates), cost_(cost), executor_(executor) {
    sampling_.temperature = 0;
  }

  absl::Status Run() {
    for (int context : options_.contexts) {
      std::vector<int> batches = options_.batches;
      if (options_.fill) {
        ASSIGN_OR_RETURN(const int most, Fitting(context));
        batches = {most};
      }
      MakeLanes(context, *std::max_element(batches.begin(), batches.end()));
      Prefill(context);
      for (int batch : batches) Decode(context, batch);
    }
    return absl::OkStatus();
  }

 private:
  int32_t RandomToken(uint64_t i) const {
    return static_cast<int32_t>(Philox(7, i)[0] % executor_->limits().vocab_size);
  }

  // Sequences of this context that the memory holds, beside the one that is kept.
  absl::StatusOr<int> Fitting(int context) const {
    const scheduler::ExecutorLimits& limits = executor_->limits();
    const int32_t pages = limits.layout.PagesFor(context + kDecodeRoom);
    int most = limits.cache.slots - 1;
    if (pages > 0) most = std::min(most, limits.cache.pages / pages - 1);
    most = std::min(most, limits.max_step_sequences);
    if (most < 1) {
      return absl::ResourceExhaustedError(
          absl::StrCat("two sequences of ", context, " tokens do not fit"));
    }
    return most;
  }

  // Lane 0 keeps the prefilled state; the others decode.
  void MakeLanes(int context, int batch) {
    lanes_.clear();
    const int32_t pages = executor_->limits().layout.PagesFor(context + kDecodeRoom);
    for (int i = 0; i <= batch; ++i) {
      Lane lane;
      lane.slot = i;
      for (int32_t p = 0; p < pages; ++p) lane.pages.push_back(i * pages + p);
      lanes_.push_back(std::move(lane));
    }
  }

  // Runs a prompt of `context` tokens through the first lane and reports the best of a few times.
  void Prefill(int context) {
    std::vector<int32_t> tokens(context);
    for (int i = 0; i < context; ++i) tokens[i] = RandomToken(i);
    const int attempts = context <= 4096 ? 3 : 1;
    double best = 0;
    for (int attempt = 0; attempt < attempts; ++attempt) {
      const double seconds = PrefillOnce(tokens);
      if (attempt == 0 || seconds < best) best = seconds;
    }
    const double flops = cost_.PrefillFlops(context);
    PrintLine({{"phase", "prefill"},
               {"tokens", context},
               {"chunk_tokens", chunk_tokens()},
               {"seconds", best},
               {"tokens_per_second", context / best},
               {"gflops_per_second", flops / best / 1e9},
               {"percent_of_matrix_rate", Percent(flops / best, rates_.matrix_flops)}});
  }

  int chunk_tokens() const {
    return options_.chunk_tokens > 0 ? options_.chunk_tokens : executor_->limits().max_step_tokens;
  }

  double PrefillOnce(const std::vector<int32_t>& tokens) {
    Lane& lane = lanes_[0];
    const auto context = static_cast<int32_t>(tokens.size());
    const auto start = std::chrono::steady_clock::now();
    for (lane.position = 0; lane.position < context;) {
      const int32_t count = std::min(chunk_tokens(), context - lane.position);
      StepPlan plan;
      plan.sequences.push_back(
          Input(lane, absl::MakeConstSpan(tokens).subspan(lane.position, count)));
      plan.sequences[0].sample = lane.position + count == context;
      executor_->Submit(plan);
      const StepResult result = executor_->Wait();
      lane.position += count;
      lane.next_token = std::max(0, result.outputs[0].chosen.token);
    }
    return SecondsSince(start);
  }

  void CopyLanes(int batch) {
    const Lane& kept = lanes_[0];
    const auto used = executor_->limits().layout.PagesFor(kept.position);
    for (int i = 1; i <= batch; ++i) {
      Lane& lane = lanes_[i];
      std::vector<std::pair<int32_t, int32_t>> pages;
      for (int32_t p = 0; p < used; ++p) pages.emplace_back(kept.pages[p], lane.pages[p]);
      const std::pair<int32_t, int32_t> slot(kept.slot, lane.slot);
      executor_->Copy(absl::MakeConstSpan(&slot, 1), pages);
      lane.position = kept.position;
      lane.next_token = i == 1 ? kept.next_token : RandomToken(1000 + i);
    }
  }

  void Decode(int context, int batch) {
    CopyLanes(batch);
    std::vector<double> seconds;
    double total = 0;
    Submit(batch, false);
    auto last = std::chrono::steady_clock::now();
    for (int step = 1; step < kDecodeRoom; ++step) {
      Submit(batch, true);
      executor_->Wait();
      const auto now = std::chrono::steady_clock::now();
      const double elapsed = std::chrono::duration<double>(now - last).count();
      last = now;
      if (step <= kWarmSteps) continue;
      seconds.push_back(elapsed);
      total += elapsed;
      if (static_cast<int>(seconds.size()) >= kMinSteps && total >= options_.seconds) break;
    }
    executor_->Wait();
    const double median = Median(seconds);
    const double bytes = cost_.DecodeBytes(batch, context);
    const double flops = cost_.DecodeFlops(batch, context);
    PrintLine({{"phase", "decode"},
               {"batch", batch},
               {"context_tokens", context},
               {"steps", seconds.size()},
               {"step_ms", median * 1e3},
               {"tokens_per_second", batch / median},
               {"gigabytes_per_second", bytes / median / 1e9},
               {"percent_of_read_bandwidth", Percent(bytes / median, rates_.read_bytes_per_second)},
               {"gflops_per_second", flops / median / 1e9},
               {"percent_of_matrix_rate", Percent(flops / median, rates_.matrix_flops)},
               {"bytes_per_sequence", executor_->limits().layout.BytesFor(context)}});
  }

  void Submit(int batch, bool fed) {
    StepPlan plan;
    for (int i = 1; i <= batch; ++i) {
      Lane& lane = lanes_[i];
      plan.sequences.push_back(Input(lane, absl::MakeConstSpan(&lane.next_token, 1)));
      plan.sequences.back().sample = true;
      plan.sequences.back().feed_previous = fed;
      ++lane.position;
    }
    executor_->Submit(plan);
  }

  SequenceInput Input(const Lane& lane, absl::Span<const int32_t> tokens) const {
    SequenceInput input;
    input.sequence = static_cast<scheduler::SequenceId>(lane.slot) + 1;
    input.slot = lane.slot;
    input.pages = lane.pages;
    input.position = lane.position;
    input.tokens = tokens;
    input.sampling = &sampling_;
    return input;
  }

  const Options& options_;
  const Rates rates_;
  const model::StepCost cost_;
  scheduler::Executor* executor_;
  scheduler::SamplingParams sampling_;
  std::vector<Lane> lanes_;
};

absl::Status CheckOptions(const Options& options) {
  if (options.model_dir.empty() == options.shape.empty()) {
    return absl::InvalidArgumentError(
        "give either a model folder, or a config.json with --shape (random weights)");
  }
  for (const auto& [name, values] :
       {std::pair{"--batch", &options.batches}, std::pair{"--context", &options.contexts}}) {
    if (values->empty()) return absl::InvalidArgumentError(absl::StrCat(name, " is empty"));
    for (int value : *values) {
      if (value < 1)
        return absl::InvalidArgumentError(
            absl::StrCat(name, " has ", value, "; it must be at least 1"));
    }
  }
  if (options.chunk_tokens < 0) return absl::InvalidArgumentError("--chunk must not be negative");
  return absl::OkStatus();
}

absl::StatusOr<model::LoadOptions> MakeLoadOptions(const Options& options) {
  model::LoadOptions load;
  ASSIGN_OR_RETURN(load.dtype, ParseComputeDType(options.dtype));
  ASSIGN_OR_RETURN(load.device, ParseDevice(options.device));
  load.threads = options.threads;
  load.random_weights = !options.shape.empty();
  load.full_attention = options.full_attention;
  load.graphs = !options.no_graphs;
  load.max_step_tokens = options.chunk_tokens;
  if (options.fill) {
    load.max_step_sequences = kMostFilling;
    return load;
  }
  load.max_step_sequences = *std::max_element(options.batches.begin(), options.batches.end());
  load.slots = load.max_step_sequences + 1;
  const int longest = *std::max_element(options.contexts.begin(), options.contexts.end());
  const int tokens = longest + kDecodeRoom;
  load.pages = load.slots * ((tokens + load.page_tokens - 1) / load.page_tokens);
  return load;
}

Rates MeasureRates(int threads, const model::ModelInfo& info) {
  ThreadPool pool(threads > 0 ? threads : UsableCores());
  const DType compute = info.compute_dtype;
  cuda::OwnedStream owned;
  Stream stream{.device = Device::kCpu, .pool = &pool, .native = nullptr};
  if (info.on_gpu) {
    owned = cuda::OwnedStream::Make();
    stream = owned.get();
  }
  Rates rates{kernels::MeasureReadBandwidth(stream), kernels::MeasureMatrixRate(compute, stream)};
  PrintLine({{"phase", "machine"},
             {"device", info.device},
             {"threads", pool.num_threads()},
             {"simd", SimdLevelName(CurrentSimdLevel())},
             {"dtype", std::string(DTypeName(compute))},
             {"read_gigabytes_per_second", rates.read_bytes_per_second / 1e9},
             {"matrix_gflops_per_second", rates.matrix_flops / 1e9}});
  return rates;
}

absl::Status RunBenchStep(const Options& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(model::LoadOptions load, MakeLoadOptions(options));
  const std::string path = options.shape.empty() ? options.model_dir : options.shape;
  ASSIGN_OR_RETURN(const model::ModelInfo described, model::DescribeModel(path, load));
  const int longest = *std::max_element(options.contexts.begin(), options.contexts.end());
  if (longest + kDecodeRoom > described.max_position) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--context ", longest, " plus ", kDecodeRoom,
        " decoded tokens is past the model's longest sequence of ", described.max_position));
  }
  ASSIGN_OR_RETURN(const model::StepCost cost, model::EstimateCost(path, load));
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(std::unique_ptr<model::LoadedModel> loaded, model::LoadModel(path, load));
  const model::ModelInfo& info = loaded->info();
  PrintLine({{"phase", "load"},
             {"model", info.name},
             {"dtype", std::string(DTypeName(info.compute_dtype))},
             {"parameters", info.num_parameters},
             {"weight_bytes", info.weight_bytes},
             {"state_bytes_per_sequence", info.layout.slot_bytes},
             {"kv_bytes_per_token", info.layout.KvBytesPerToken()},
             {"workspace_bytes", info.workspace_bytes},
             {"graph_bytes", info.graph_bytes},
             {"seconds", SecondsSince(start)}});
  const Rates rates = MeasureRates(options.threads, described);
  return StepBench(options, rates, cost, loaded->executor()).Run();
}

}  // namespace

void AddBenchStep(CLI::App* bench, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* step = bench->add_subcommand(
      "step", "Decode and prefill speed of a model, beside the machine's own rates");
  step->add_option("model", options->model_dir, "Model folder");
  step->add_option("--shape", options->shape, "A config.json to run with random weights");
  step->add_option("--batch", options->batches, "Sequences per decode step, e.g. 1,16")
      ->delimiter(',');
  step->add_option("--context", options->contexts, "Tokens before decoding starts, e.g. 512,16384")
      ->delimiter(',');
  step->add_option("--chunk", options->chunk_tokens,
                   "Tokens per prefill step; 0: what suits the device")
      ->capture_default_str();
  step->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  step->add_flag("--full-attention", options->full_attention,
                 "With --shape: the same shape with full attention in every layer");
  step->add_flag("--no-graphs", options->no_graphs,
                 "GPU: enqueue decode steps kernel by kernel, for profilers");
  step->add_flag("--fill", options->fill, "As many sequences as the memory holds, not --batch");
  step->add_option("--dtype", options->dtype, "auto, f32 or bf16")->capture_default_str();
  step->add_option("--threads", options->threads, "Threads; 0: all usable cores")
      ->capture_default_str();
  step->add_option("--seconds", options->seconds, "Time to spend on each decode measurement")
      ->capture_default_str();
  step->callback([options, exit_code] {
    const absl::Status status = RunBenchStep(*options);
    if (!status.ok())
      std::fprintf(stderr, "weir bench step: %s\n", std::string(status.message()).c_str());
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
