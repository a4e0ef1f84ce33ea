// `weir bench step`: decode and prefill speed of a model, beside what the machine could do at best.
//
// Contexts are real: one sequence is prefilled (that is the prefill measurement), its state is
// copied to the other sequences of the batch, and decode steps go on from there.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "core/buffer.h"
#include "core/cpu_features.h"
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
  int threads = 0;
  int chunk_tokens = 512;
  double seconds = 3.0;
};

// Tokens that a decode measurement may add after its context.
constexpr int kDecodeRoom = 256;
constexpr int kWarmSteps = 2;
constexpr int kMinSteps = 8;

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
    MakeLanes();
    for (int context : options_.contexts) {
      Prefill(context);
      RETURN_IF_ERROR(KeepState());
      for (int batch : options_.batches) Decode(context, batch);
    }
    return absl::OkStatus();
  }

 private:
  int32_t RandomToken(uint64_t i) const {
    return static_cast<int32_t>(Philox(7, i)[0] % executor_->limits().vocab_size);
  }

  void MakeLanes() {
    const int longest = *std::max_element(options_.contexts.begin(), options_.contexts.end());
    const int batch = *std::max_element(options_.batches.begin(), options_.batches.end());
    const int32_t pages = executor_->limits().layout.PagesFor(longest + kDecodeRoom);
    for (int i = 0; i < batch; ++i) {
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
               {"chunk_tokens", options_.chunk_tokens},
               {"seconds", best},
               {"tokens_per_second", context / best},
               {"gflops_per_second", flops / best / 1e9},
               {"percent_of_matrix_rate", Percent(flops / best, rates_.matrix_flops)}});
  }

  double PrefillOnce(const std::vector<int32_t>& tokens) {
    Lane& lane = lanes_[0];
    const auto context = static_cast<int32_t>(tokens.size());
    const auto start = std::chrono::steady_clock::now();
    for (lane.position = 0; lane.position < context;) {
      const int32_t count = std::min(options_.chunk_tokens, context - lane.position);
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

  // Keeps the first lane's state on the host, so that every decode measurement starts from it.
  absl::Status KeepState() {
    const auto& layout = executor_->limits().layout;
    const Lane& lane = lanes_[0];
    kept_pages_ = layout.PagesFor(lane.position);
    kept_position_ = lane.position;
    kept_token_ = lane.next_token;
    ASSIGN_OR_RETURN(kept_, Buffer::Allocate(layout.BytesFor(lane.position), "a kept state"));
    executor_->CopyOut(lane.slot, absl::MakeConstSpan(lane.pages).first(kept_pages_), kept_.data());
    return absl::OkStatus();
  }

  void Decode(int context, int batch) {
    for (int i = 0; i < batch; ++i) {
      Lane& lane = lanes_[i];
      executor_->CopyIn(lane.slot, absl::MakeConstSpan(lane.pages).first(kept_pages_),
                        kept_.data());
      lane.position = kept_position_;
      lane.next_token = i == 0 ? kept_token_ : RandomToken(1000 + i);
    }
    std::vector<double> seconds;
    double total = 0;
    for (int step = 0; step < kDecodeRoom; ++step) {
      const double elapsed = DecodeOnce(batch);
      if (step < kWarmSteps) continue;
      seconds.push_back(elapsed);
      total += elapsed;
      if (static_cast<int>(seconds.size()) >= kMinSteps && total >= options_.seconds) break;
    }
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
               {"percent_of_matrix_rate", Percent(flops / median, rates_.matrix_flops)}});
  }

  double DecodeOnce(int batch) {
    StepPlan plan;
    for (int i = 0; i < batch; ++i) {
      plan.sequences.push_back(Input(lanes_[i], absl::MakeConstSpan(&lanes_[i].next_token, 1)));
      plan.sequences.back().sample = true;
    }
    const auto start = std::chrono::steady_clock::now();
    executor_->Submit(plan);
    const StepResult result = executor_->Wait();
    const double elapsed = SecondsSince(start);
    for (int i = 0; i < batch; ++i) {
      ++lanes_[i].position;
      lanes_[i].next_token = std::max(0, result.outputs[i].chosen.token);
    }
    return elapsed;
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
  Buffer kept_;
  int32_t kept_pages_ = 0, kept_position_ = 0, kept_token_ = 0;
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
  if (options.chunk_tokens < 1) return absl::InvalidArgumentError("--chunk must be at least 1");
  return absl::OkStatus();
}

absl::StatusOr<model::LoadOptions> MakeLoadOptions(const Options& options) {
  model::LoadOptions load;
  ASSIGN_OR_RETURN(load.dtype, ParseComputeDType(options.dtype));
  load.threads = options.threads;
  load.random_weights = !options.shape.empty();
  load.max_step_tokens = std::max(
      options.chunk_tokens, *std::max_element(options.batches.begin(), options.batches.end()));
  load.max_step_sequences = *std::max_element(options.batches.begin(), options.batches.end());
  load.slots = load.max_step_sequences;
  const int longest = *std::max_element(options.contexts.begin(), options.contexts.end());
  const int tokens = longest + kDecodeRoom;
  load.pages = load.slots * ((tokens + load.page_tokens - 1) / load.page_tokens);
  return load;
}

Rates MeasureRates(int threads, DType compute) {
  ThreadPool pool(threads > 0 ? threads : UsableCores());
  const Stream stream{.device = Device::kCpu, .pool = &pool, .native = nullptr};
  Rates rates{kernels::MeasureReadBandwidth(stream), kernels::MeasureMatrixRate(compute, stream)};
  PrintLine({{"phase", "machine"},
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
  const Rates rates = MeasureRates(options.threads, described.compute_dtype);
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
             {"seconds", SecondsSince(start)}});
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
  step->add_option("--chunk", options->chunk_tokens, "Tokens per prefill step")
      ->capture_default_str();
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
