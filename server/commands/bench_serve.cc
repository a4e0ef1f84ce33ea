// `weir bench serve`: load over gRPC on a running server, and what its clients see.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/commands/bench.h"
#include "server/commands/connection.h"
#include "server/commands/load_generator.h"
#include "server/commands/load_workload.h"
#include "weir/v1/info.grpc.pb.h"

namespace weir::server {
namespace {

using Json = nlohmann::ordered_json;

struct Arguments {
  LoadFlags load;
  WorkloadFlags workload;
};

constexpr std::pair<const char*, double> kPercentiles[] = {
    {"p50", 0.50}, {"p90", 0.90}, {"p95", 0.95}, {"p99", 0.99}};

// Nearest rank: the smallest sample that at least `share` of all do not exceed.
double Percentile(const std::vector<float>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double Mean(const std::vector<float>& samples) {
  double sum = 0;
  for (float sample : samples) sum += sample;
  return sum / static_cast<double>(samples.size());
}

double Rounded(double x) { return std::round(x * 1000) / 1000; }

// {"p50": ..., "mean": ..., "max": ..., "count": ...}; null when there is no sample.
Json Summary(std::vector<float>* samples) {
  if (samples->empty()) return nullptr;
  std::sort(samples->begin(), samples->end());
  Json summary;
  for (const auto& [name, share] : kPercentiles) {
    summary[name] = Rounded(Percentile(*samples, share));
  }
  summary["mean"] = Rounded(Mean(*samples));
  summary["max"] = Rounded(samples->back());
  summary["count"] = samples->size();
  return summary;
}

struct Row {
  const char* key;
  const char* title;
  std::vector<float> LoadSamples::*samples;
};
constexpr Row kRows[] = {
    {"first_token_ms", "first token", &LoadSamples::first_token_ms},
    {"inter_token_ms", "inter-token", &LoadSamples::inter_token_ms},
    {"mean_inter_token_ms", "inter-token, mean of an answer", &LoadSamples::mean_inter_token_ms},
    {"message_gap_ms", "between messages", &LoadSamples::message_gap_ms},
    {"whole_ms", "whole answer", &LoadSamples::whole_ms},
};

Json Describe(const Arguments& arguments, const v1::ModelInfo& model) {
  const LoadFlags& load = arguments.load;
  const WorkloadFlags& workload = arguments.workload;
  Json line = {{"phase", "serve"}, {"model", model.name()}, {"dtype", model.compute_dtype()}};
  line["loop"] = load.clients > 0 ? "closed" : "open";
  if (load.clients > 0) {
    line["clients"] = load.clients;
  } else if (load.replay) {
    line["trace_speed"] = load.trace_speed;
  } else {
    line["rate_per_second"] = load.rate;
  }
  if (!workload.prompts_file.empty()) {
    line["prompts"] = workload.prompts_file;
  } else if (!workload.trace_file.empty()) {
    line["trace"] = workload.trace_file;
  } else {
    line["prompt_tokens"] = workload.prompt_tokens;
    line["output_tokens"] = workload.output_tokens;
  }
  line["seed"] = workload.seed;
  return line;
}

Json Measured(LoadResult* result) {
  LoadSamples& samples = result->samples;
  const double seconds = std::max(result->seconds, 1e-9);
  Json line = {
      {"seconds", Rounded(result->seconds)},
      {"sent", result->sent},
      {"completed", samples.ok},
      {"cut", samples.cut},
      {"unsent", result->unsent},
      {"tokens_out", samples.output_tokens},
      {"tokens_in", samples.prompt_tokens},
      {"requests_per_second", Rounded(static_cast<double>(samples.ok) / seconds)},
      {"output_tokens_per_second", Rounded(static_cast<double>(samples.output_tokens) / seconds)},
      {"prompt_tokens_per_second", Rounded(static_cast<double>(samples.prompt_tokens) / seconds)},
      {"tokens_per_message", samples.messages == 0
                                 ? 0.0
                                 : Rounded(static_cast<double>(samples.output_tokens) /
                                           static_cast<double>(samples.messages))}};
  for (const Row& row : kRows) line[row.key] = Summary(&(samples.*row.samples));
  line["errors"] = Json::object();
  for (const auto& [code, count] : samples.errors) line["errors"][code] = count;
  line["late_ms_max"] = Rounded(result->late_ms_max);
  line["client_cpu_seconds"] = Rounded(result->client_cpu_s);
  return line;
}

// For people, on stderr: stdout stays one JSON line.
void PrintTable(const Json& line, const LoadSamples& samples) {
  std::fprintf(stderr, "%.1f output tokens/s, %.1f prompt tokens/s, %.2f requests/s for %.1f s\n",
               line["output_tokens_per_second"].get<double>(),
               line["prompt_tokens_per_second"].get<double>(),
               line["requests_per_second"].get<double>(), line["seconds"].get<double>());
  std::fprintf(stderr, "%-32s %10s %10s %10s %10s %10s\n", "ms", "p50", "p90", "p95", "p99", "max");
  for (const Row& row : kRows) {
    const Json& summary = line[row.key];
    if (summary.is_null()) continue;
    std::fprintf(stderr, "%-32s", row.title);
    for (const char* column : {"p50", "p90", "p95", "p99", "max"}) {
      std::fprintf(stderr, " %10.2f", summary[column].get<double>());
    }
    std::fprintf(stderr, "\n");
  }
  for (const auto& [code, count] : samples.errors) {
    std::fprintf(stderr, "%lld calls ended with %s: %s\n", static_cast<long long>(count),
                 code.c_str(), samples.error_message.at(code).c_str());
  }
}

absl::Status CheckFlags(Arguments* arguments) {
  LoadFlags& load = arguments->load;
  load.seed = arguments->workload.seed;
  load.replay = load.clients == 0 && load.rate == 0 && !arguments->workload.trace_file.empty();
  if (load.clients > 0 && load.rate > 0) {
    return absl::InvalidArgumentError("--clients is a closed loop, --rate an open one: name one");
  }
  if (load.clients == 0 && load.rate == 0 && !load.replay) {
    return absl::InvalidArgumentError(
        "name the load: --clients N (closed loop), --rate R (open loop) or --trace FILE alone "
        "(arrivals as recorded)");
  }
  if (load.clients < 0 || load.clients > 100000 || load.rate < 0 || load.requests < 0 ||
      load.seconds < 0 || load.warmup_s < 0 || load.timeout_s < 0 || load.trace_speed <= 0) {
    return absl::InvalidArgumentError(
        "numbers of a load are not negative, --trace-speed is above 0");
  }
  if (load.threads < 1 || load.connections < 1 || load.max_in_flight < 1) {
    return absl::InvalidArgumentError(
        "--threads, --connections and --max-in-flight must be at least 1");
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::GetModelResponse> AskModel(const LoadFlags& load) {
  ConnectionFlags flags;
  flags.server = load.address;
  flags.client = load.client;
  ASSIGN_OR_RETURN(const Connection connection, Connect(flags));
  const auto stub = v1::ModelService::NewStub(connection.channel);
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::GetModelResponse response;
  const grpc::Status status = stub->GetModel(&rpc, {}, &response);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  return response;
}

absl::Status RunBenchServe(Arguments* arguments) {
  RETURN_IF_ERROR(CheckFlags(arguments));
  LoadFlags& load = arguments->load;
  ASSIGN_OR_RETURN(const v1::GetModelResponse model, AskModel(load));
  ASSIGN_OR_RETURN(const Workload workload,
                   Workload::Make(arguments->workload, model.model().vocab_size(),
                                  model.limits().max_position()));
  // Without another end: a file once, or ten requests for each client.
  if (load.requests == 0 && load.seconds == 0) {
    load.requests = workload.size() > 0 ? workload.size() : 10 * std::max(1, load.clients);
  }
  ASSIGN_OR_RETURN(LoadResult result, RunLoad(load, workload));
  Json line = Describe(*arguments, model.model());
  line.update(Measured(&result));
  PrintTable(line, result.samples);
  std::printf("%s\n", line.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  if (result.samples.ok == 0 && !result.samples.errors.empty()) {
    return absl::UnavailableError("no call succeeded; the lines above say why");
  }
  return absl::OkStatus();
}

void AddWorkloadFlags(CLI::App* serve, WorkloadFlags* flags) {
  serve->add_option("--prompt-tokens", flags->prompt_tokens, "Random ids per prompt")
      ->capture_default_str();
  serve->add_option("--output-tokens", flags->output_tokens, "Tokens per answer")
      ->capture_default_str();
  serve->add_option("--prompts", flags->prompts_file,
                    "JSON lines with \"prompt\", \"tokens\" or \"messages\", and optionally "
                    "\"output_tokens\", instead of random ids");
  serve->add_option("--trace", flags->trace_file,
                    "Lengths and arrivals of recorded traffic: CSV (TIMESTAMP, ContextTokens, "
                    "GeneratedTokens) or JSON lines (timestamp, input_length, output_length, "
                    "hash_ids)");
  serve->add_option("--seed", flags->seed, "Of prompts, arrivals and sampling")
      ->capture_default_str();
  serve->add_option("--json-schema", flags->json_schema,
                    "Every answer is JSON that fits this schema, and ends where it does");
  serve->add_option("--temperature", flags->temperature, "0: the likeliest token")
      ->capture_default_str();
  serve->add_flag("--text", flags->text, "Ask for text beside the ids");
  serve->add_flag("--stop-at-end", flags->stop_at_end,
                  "Let end tokens end an answer; else each has its full length");
}

}  // namespace

void AddBenchServe(CLI::App* bench, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  LoadFlags& load = arguments->load;
  CLI::App* serve = bench->add_subcommand(
      "serve", "Load on a running server: time to first token, between tokens, tokens per second");
  serve->add_option("--address,--server", load.address, "The server, HOST:PORT")->required();
  AddClientFlags(serve, &load.client);
  serve->add_option("--clients", load.clients, "Closed loop: requests in flight at any time");
  serve->add_option("--rate", load.rate, "Open loop: requests per second, Poisson arrivals");
  serve->add_option("--trace-speed", load.trace_speed, "Divides the gaps of a trace")
      ->capture_default_str();
  serve->add_option("--requests", load.requests, "End after this many");
  serve->add_option("--seconds", load.seconds, "End after this long; what still runs is cancelled");
  serve->add_option("--warmup", load.warmup_s, "Seconds before --seconds begin, not measured")
      ->capture_default_str();
  serve->add_option("--timeout", load.timeout_s, "Deadline of each call in seconds; 0: none");
  serve->add_option("--connections", load.connections, "HTTP/2 connections that the streams share")
      ->capture_default_str();
  serve->add_option("--threads", load.threads, "Threads that carry the streams")
      ->capture_default_str();
  serve
      ->add_option("--max-in-flight", load.max_in_flight,
                   "Open loop: arrivals past this many are counted and not sent")
      ->capture_default_str();
  AddWorkloadFlags(serve, &arguments->workload);
  serve->callback([arguments, exit_code] {
    const absl::Status status = RunBenchServe(arguments.get());
    if (!status.ok()) {
      std::fprintf(stderr, "weir bench serve: %s\n", std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
