#include "server/commands/load_workload.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "core/philox.h"
#include "server/commands/generate_flags.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

using Json = nlohmann::json;

constexpr int kHashTokens = 512;  // tokens of a prompt that one hash of a trace stands for

// Calls fn(line, number) for each line that is not blank; the first error ends it, with the place.
template <typename Fn>
absl::Status ForLines(const std::string& path, const Fn& fn) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  if (absl::EndsWith(path, ".xz") || absl::EndsWith(path, ".gz")) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is compressed; unpack it first"));
  }
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const absl::Status status = fn(line, number);
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat(path, ":", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> Count(const Json& json, const char* key) {
  const auto at = json.find(key);
  if (at == json.end() || !at->is_number_integer() || *at < 0 || *at > (1 << 30)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is no count of tokens"));
  }
  return at->get<int32_t>();
}

absl::Status FillPrompt(const std::string& line, v1::GenerateRequest* request) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("is no JSON object");
  if (json.contains("prompt") && json["prompt"].is_string()) {
    request->set_text(json["prompt"].get<std::string>());
  } else if (json.contains("tokens") && json["tokens"].is_array()) {
    for (const Json& id : json["tokens"]) {
      if (!id.is_number_integer())
        return absl::InvalidArgumentError("\"tokens\" has what is no id");
      request->mutable_token_ids()->add_ids(id.get<int32_t>());
    }
  } else if (json.contains("messages")) {
    Json chat = json;
    chat.erase("output_tokens");
    RETURN_IF_ERROR(FillChat(chat.dump(), request->mutable_chat()));
  } else {
    return absl::InvalidArgumentError(
        "has none of \"prompt\" (a string), \"tokens\" (ids) and \"messages\" (a chat)");
  }
  if (json.contains("output_tokens")) {
    ASSIGN_OR_RETURN(const int32_t count, Count(json, "output_tokens"));
    request->mutable_stopping()->set_max_tokens(count);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Workload> Workload::Make(const WorkloadFlags& flags, int32_t vocab_size,
                                        int32_t max_position) {
  if (!flags.prompts_file.empty() && !flags.trace_file.empty()) {
    return absl::InvalidArgumentError("--prompts and --trace are two kinds of load: name one");
  }
  if (flags.prompt_tokens < 1 || flags.output_tokens < 1) {
    return absl::InvalidArgumentError("--prompt-tokens and --output-tokens must be at least 1");
  }
  Workload workload;
  workload.flags_ = flags;
  workload.vocab_size_ = vocab_size;
  workload.max_position_ = max_position;
  if (!flags.prompts_file.empty()) {
    RETURN_IF_ERROR(workload.ReadPrompts());
  } else if (!flags.trace_file.empty()) {
    RETURN_IF_ERROR(workload.ReadTrace());
  } else if (int64_t{flags.prompt_tokens} + flags.output_tokens > max_position) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.prompt_tokens, " prompt tokens and ", flags.output_tokens,
                     " output tokens do not fit the model's longest sequence of ", max_position));
  }
  return workload;
}

absl::Status Workload::ReadPrompts() {
  RETURN_IF_ERROR(ForLines(flags_.prompts_file, [&](const std::string& line, int64_t) {
    v1::GenerateRequest request;
    RETURN_IF_ERROR(FillPrompt(line, &request));
    prompts_.push_back(request.SerializeAsString());
    return absl::OkStatus();
  }));
  if (prompts_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(flags_.prompts_file, " holds no prompt"));
  }
  return absl::OkStatus();
}

absl::Status Workload::ReadTrace() {
  bool json = true;
  RETURN_IF_ERROR(ForLines(flags_.trace_file, [&](const std::string& line, int64_t number) {
    if (number == 1 && line[0] != '{') {
      json = false;
      return absl::StartsWith(line, "TIMESTAMP,ContextTokens,GeneratedTokens")
                 ? absl::OkStatus()
                 : absl::InvalidArgumentError(
                       "is neither JSON nor the header TIMESTAMP,ContextTokens,GeneratedTokens");
    }
    Traced traced;
    RETURN_IF_ERROR(ReadTraceLine(line, json, &traced));
    Cut(&traced);
    trace_.push_back(std::move(traced));
    return absl::OkStatus();
  }));
  if (trace_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(flags_.trace_file, " holds no request"));
  }
  std::stable_sort(trace_.begin(), trace_.end(),
                   [](const Traced& a, const Traced& b) { return a.arrival_s < b.arrival_s; });
  const double first = trace_.front().arrival_s;
  for (Traced& traced : trace_) traced.arrival_s -= first;
  return absl::OkStatus();
}

absl::Status Workload::ReadTraceLine(const std::string& line, bool json, Traced* traced) {
  if (!json) {
    const std::vector<std::string> cells = absl::StrSplit(line, ',');
    absl::Time time;
    std::string error;
    if (cells.size() != 3 || !absl::ParseTime("%Y-%m-%d %H:%M:%E*S", cells[0], &time, &error) ||
        !absl::SimpleAtoi(cells[1], &traced->prompt_tokens) ||
        !absl::SimpleAtoi(cells[2], &traced->output_tokens)) {
      return absl::InvalidArgumentError("is not: time,prompt tokens,output tokens");
    }
    traced->arrival_s = absl::ToDoubleSeconds(time - absl::UnixEpoch());
    return absl::OkStatus();
  }
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("timestamp") || !object["timestamp"].is_number()) {
    return absl::InvalidArgumentError("is no JSON object with a numeric \"timestamp\"");
  }
  traced->arrival_s = object["timestamp"].get<double>() / 1e3;
  ASSIGN_OR_RETURN(traced->prompt_tokens, Count(object, "input_length"));
  ASSIGN_OR_RETURN(traced->output_tokens, Count(object, "output_length"));
  if (object.contains("hash_ids") && object["hash_ids"].is_array()) {
    for (const Json& hash : object["hash_ids"]) {
      if (!hash.is_number_integer())
        return absl::InvalidArgumentError("\"hash_ids\" has no number");
      traced->hashes.push_back(hash.get<int64_t>());
    }
  }
  return absl::OkStatus();
}

// Answers keep their length where they can, prompts what is left.
void Workload::Cut(Traced* traced) const {
  traced->output_tokens = std::clamp(traced->output_tokens, 1, std::max(1, max_position_ / 2));
  traced->prompt_tokens =
      std::clamp(traced->prompt_tokens, 1, std::max(1, max_position_ - traced->output_tokens));
}

int32_t Workload::RandomId(uint64_t stream, uint64_t position) const {
  return static_cast<int32_t>(Philox(flags_.seed, position, stream)[0] %
                              static_cast<uint32_t>(vocab_size_));
}

void Workload::Fill(int64_t index, v1::GenerateRequest* request) const {
  request->Clear();
  int32_t output_tokens = flags_.output_tokens;
  if (!prompts_.empty()) {
    request->ParseFromString(prompts_[static_cast<size_t>(index) % prompts_.size()]);
    if (request->has_stopping()) output_tokens = request->stopping().max_tokens();
  } else {
    const Traced* traced =
        trace_.empty() ? nullptr : &trace_[static_cast<size_t>(index) % trace_.size()];
    const int32_t count = traced == nullptr ? flags_.prompt_tokens : traced->prompt_tokens;
    if (traced != nullptr) output_tokens = traced->output_tokens;
    auto* ids = request->mutable_token_ids()->mutable_ids();
    ids->Reserve(count);
    for (int32_t i = 0; i < count; ++i) {
      const size_t block = static_cast<size_t>(i / kHashTokens);
      const bool hashed = traced != nullptr && block < traced->hashes.size();
      // Streams of hashes and of requests do not meet: one has the highest bit.
      const uint64_t stream = hashed ? static_cast<uint64_t>(traced->hashes[block]) | 1ull << 63
                                     : static_cast<uint64_t>(index);
      ids->AddAlreadyReserved(RandomId(stream, static_cast<uint64_t>(i)));
    }
  }
  request->mutable_stopping()->set_max_tokens(output_tokens);
  request->mutable_stopping()->set_ignore_eos(!flags_.stop_at_end && flags_.json_schema.empty());
  if (!flags_.json_schema.empty()) {
    request->mutable_constraint()->set_json_schema(flags_.json_schema);
  }
  request->mutable_sampling()->set_temperature(flags_.temperature);
  request->mutable_sampling()->set_seed(flags_.seed + static_cast<uint64_t>(index));
  request->mutable_output()->set_text(flags_.text);
}

double Workload::Arrival(int64_t index) const {
  const auto count = static_cast<int64_t>(trace_.size());
  // Past its end the trace begins again, after its mean gap.
  const double length = trace_.back().arrival_s * (1.0 + 1.0 / static_cast<double>(count));
  return static_cast<double>(index / count) * length +
         trace_[static_cast<size_t>(index % count)].arrival_s;
}

int64_t Workload::size() const {
  return static_cast<int64_t>(std::max(trace_.size(), prompts_.size()));
}

}  // namespace weir::server
