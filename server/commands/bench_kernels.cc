// `weir bench kernels`: single ops with the shapes that serving gives them, beside what the machine
// could do at best. On a GPU a graph of many launches is replayed, on data that the cache does not
// hold.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/cpu_features.h"
#include "core/cuda/runtime.h"
#include "core/thread_pool.h"
#include "kernels/machine_rates.h"
#include "server/commands/bench.h"
#include "server/commands/kernel_cases.h"

namespace weir::server {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string device = "auto";
  std::vector<std::string> ops;
  std::string filter;
  int threads = 0;
  double seconds = 0.1;
  bool list = false;
};

// Data sets of one case together are at least this many times the last-level cache.
constexpr double kCacheTimes = 2.5;
constexpr double kCpuCacheBytes = 64e6;
constexpr int kMostCopies = 64;
constexpr int kLaunches = 20;  // at least, in one graph
constexpr int kReplays = 5;    // at least

struct Rates {
  double copy_bytes_per_second = 0;  // read and written; on the CPU read
  double bf16_flops = 0, f32_flops = 0;
};

// One machine: its stream and how its time is taken.
struct Machine {
  std::unique_ptr<ThreadPool> pool;
  cuda::OwnedStream owned;
  Stream stream;
  double cache_bytes = kCpuCacheBytes;
  Rates rates;

  bool gpu() const { return stream.device == Device::kCuda; }
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Four digits: what a measurement is worth.
double Brief(double x) {
  if (x == 0) return 0;
  const double unit = std::pow(10.0, std::floor(std::log10(std::fabs(x))) - 3);
  return unit < 1 ? std::round(x / unit) / std::round(1 / unit) : std::round(x / unit) * unit;
}

void PrintLine(const Json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

// Seconds that the GPU takes for what was enqueued by `enqueue`.
double GpuSeconds(Stream stream, const std::function<void()>& enqueue) {
  const cuda::Event begin = cuda::Event::Make(true), end = cuda::Event::Make(true);
  begin.Record(stream);
  enqueue();
  end.Record(stream);
  end.Synchronize();
  return static_cast<double>(cuda::Event::Milliseconds(begin, end)) * 1e-3;
}

// Median seconds of one run, over replays that together take about `seconds`.
double TimeOnGpu(const KernelCase& what, Stream stream, double seconds) {
  // Eagerly first: whatever is made on the first call is made outside the graph.
  what.run(0);
  const double once = GpuSeconds(stream, [&] { what.run(0); });
  // Long ops need neither many launches to hide what a replay costs, nor many replays.
  if (once > 5 * seconds) return once;
  int launches = std::max(what.copies, kLaunches);
  if (once * launches > seconds) launches = std::max(1, static_cast<int>(seconds / once));
  const cuda::Graph graph = cuda::Graph::Capture(stream, [&] {
    for (int i = 0; i < launches; ++i) what.run(i % what.copies);
  });
  graph.Launch(stream);
  std::vector<double> each;
  double total = 0;
  while (static_cast<int>(each.size()) < kReplays || total < seconds) {
    const double replay = GpuSeconds(stream, [&] { graph.Launch(stream); });
    each.push_back(replay / launches);
    total += replay;
  }
  return Median(std::move(each));
}

double TimeOnCpu(const KernelCase& what, double seconds) {
  for (int i = 0; i < what.copies; ++i) what.run(i);
  std::vector<double> each;
  double total = 0;
  for (int i = 0; i < kReplays || total < seconds; ++i) {
    const double start = Now();
    what.run(i % what.copies);
    each.push_back(Now() - start);
    total += each.back();
  }
  return Median(std::move(each));
}

// Bytes per second, read and written, of the best device-to-device copy of half a gigabyte.
double MeasureCopy(Stream stream) {
  constexpr size_t kBytes = 512 << 20;
  absl::StatusOr<Buffer> from = cuda::AllocateDevice(kBytes, "copying");
  absl::StatusOr<Buffer> to = cuda::AllocateDevice(kBytes, "copying");
  if (!from.ok() || !to.ok()) return 0;
  cuda::Zero(from->data(), kBytes, stream);
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    const double seconds =
        GpuSeconds(stream, [&] { cuda::Copy(to->data(), from->data(), kBytes, stream); });
    best = std::max(best, 2.0 * static_cast<double>(kBytes) / seconds);
  }
  return best;
}

absl::StatusOr<Machine> OpenMachine(const Options& options) {
  Machine machine;
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda") {
    return absl::InvalidArgumentError("--device is auto, cpu or cuda");
  }
  const absl::StatusOr<cuda::DeviceInfo> gpu =
      options.device == "cpu" ? absl::UnavailableError("not asked for") : cuda::Open();
  if (options.device == "cuda") RETURN_IF_ERROR(gpu.status());
  if (gpu.ok()) {
    machine.owned = cuda::OwnedStream::Make();
    machine.stream = machine.owned.get();
    machine.cache_bytes = static_cast<double>(gpu->l2_bytes);
    machine.rates.copy_bytes_per_second = MeasureCopy(machine.stream);
  } else {
    machine.pool =
        std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : UsableCores());
    machine.stream = {Device::kCpu, machine.pool.get(), nullptr};
    machine.rates.copy_bytes_per_second = kernels::MeasureReadBandwidth(machine.stream);
  }
  machine.rates.bf16_flops = kernels::MeasureMatrixRate(DType::kBF16, machine.stream);
  machine.rates.f32_flops = kernels::MeasureMatrixRate(DType::kF32, machine.stream);
  Json line = {{"phase", "machine"}, {"device", machine.gpu() ? gpu->name : "cpu"}};
  if (machine.gpu()) {
    line["copy_gigabytes_per_second"] = Brief(machine.rates.copy_bytes_per_second / 1e9);
  } else {
    line["threads"] = machine.pool->num_threads();
    line["simd"] = SimdLevelName(CurrentSimdLevel());
    line["read_gigabytes_per_second"] = Brief(machine.rates.copy_bytes_per_second / 1e9);
  }
  line["bf16_teraflops_per_second"] = Brief(machine.rates.bf16_flops / 1e12);
  line["f32_teraflops_per_second"] = Brief(machine.rates.f32_flops / 1e12);
  PrintLine(line);
  return machine;
}

Json Name(const KernelCaseSpec& spec) {
  Json line = {{"op", spec.op}};
  if (!spec.variant.empty()) line["variant"] = spec.variant;
  for (const auto& [name, size] : spec.dims) line[name] = size;
  return line;
}

bool Wanted(const Options& options, const KernelCaseSpec& spec) {
  const bool op = options.ops.empty() ||
                  std::find(options.ops.begin(), options.ops.end(), spec.op) != options.ops.end();
  return op && absl::StrContains(Name(spec).dump(), options.filter);
}

absl::Status RunCase(const Options& options, const Machine& machine, const KernelCaseSpec& spec) {
  const auto copies = [&](double bytes) {
    const double enough = kCacheTimes * machine.cache_bytes / std::max(bytes, 1.0);
    return std::clamp(static_cast<int>(enough) + 1, 1, kMostCopies);
  };
  ASSIGN_OR_RETURN(const KernelCase what, spec.make(machine.stream, copies));
  const double seconds = machine.gpu() ? TimeOnGpu(what, machine.stream, options.seconds)
                                       : TimeOnCpu(what, options.seconds);
  const double flops =
      what.compute == DType::kBF16 ? machine.rates.bf16_flops : machine.rates.f32_flops;
  const auto percent = [](double value, double of) {
    return of > 0 ? Brief(100 * value / of) : 0.0;
  };
  Json line = Name(spec);
  line["device"] = machine.gpu() ? "cuda" : "cpu";
  line["us"] = Brief(seconds * 1e6);
  line["gigabytes_per_second"] = Brief(what.bytes / seconds / 1e9);
  line[machine.gpu() ? "percent_of_copy_rate" : "percent_of_read_rate"] =
      percent(what.bytes / seconds, machine.rates.copy_bytes_per_second);
  line["teraflops_per_second"] = Brief(what.flops / seconds / 1e12);
  line["percent_of_matrix_rate"] = percent(what.flops / seconds, flops);
  line["data_sets"] = what.copies;
  PrintLine(line);
  return absl::OkStatus();
}

absl::Status RunBenchKernels(const Options& options) {
  std::vector<KernelCaseSpec> cases;
  if (options.list) {
    AddSequenceCases(options.device != "cpu", &cases);
    AddDenseCases(options.device != "cpu", &cases);
    for (const KernelCaseSpec& spec : cases) {
      if (Wanted(options, spec)) PrintLine(Name(spec));
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const Machine machine, OpenMachine(options));
  AddSequenceCases(machine.gpu(), &cases);
  AddDenseCases(machine.gpu(), &cases);
  int ran = 0;
  for (const KernelCaseSpec& spec : cases) {
    if (!Wanted(options, spec)) continue;
    ++ran;
    const absl::Status status = RunCase(options, machine, spec);
    if (status.ok()) continue;
    // One case that does not fit or is not supported here says so; the others are measured.
    Json line = Name(spec);
    line["skipped"] = std::string(status.message());
    PrintLine(line);
  }
  if (ran == 0) {
    return absl::NotFoundError("no case matches --op and --filter; --list shows all");
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchKernels(CLI::App* bench, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* kernels = bench->add_subcommand(
      "kernels", "Single ops: time, bandwidth and arithmetic beside the machine's own rates");
  kernels->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  kernels->add_option("--op", options->ops, "Only these ops, e.g. matmul,recurrence_step")
      ->delimiter(',');
  kernels->add_option("--filter", options->filter, "Only cases whose name holds this text");
  kernels->add_flag("--list", options->list, "Print the cases and measure nothing");
  kernels->add_option("--seconds", options->seconds, "Time to spend on each case")
      ->capture_default_str();
  kernels->add_option("--threads", options->threads, "Threads on the CPU; 0: all usable cores")
      ->capture_default_str();
  kernels->callback([options, exit_code] {
    const absl::Status status = RunBenchKernels(*options);
    if (!status.ok()) {
      std::fprintf(stderr, "weir bench kernels: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
