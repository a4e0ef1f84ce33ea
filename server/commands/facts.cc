#include "server/commands/facts.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/bytes.h"
#include "server/capacity.h"
#include "text/tokenizer.h"

namespace weir::server {
namespace {

void Row(const char* name, const std::string& value) {
  std::printf("  %-20s %s\n", name, value.c_str());
}

std::string Mixers(const model::ModelInfo& info) {
  std::vector<std::string> parts;
  for (const auto& [mixer, count] : info.layers_by_mixer) {
    parts.push_back(absl::StrCat(count, " ", mixer));
  }
  return absl::StrJoin(parts, ", ");
}

std::string TextFacts(const ServedModel& served) {
  if (served.tokenizer == nullptr) return "no tokenizer in the folder: token ids only";
  return absl::StrCat("tokenizer of ", served.tokenizer->vocab_size(), " tokens, ",
                      served.chat_template == nullptr ? "no chat template" : "chat template");
}

std::string OrNone(int64_t us) { return us == 0 ? "none" : FormatDurationUs(us); }

void PrintMemory(const model::ModelInfo& info, const ServedModel& served) {
  const auto& limits = served.limits;
  Row("weights", absl::StrCat(FormatBytes(info.weight_bytes), " as ", served.compute_dtype));
  Row("workspace", FormatBytes(info.workspace_bytes));
  if (info.on_gpu) {
    Row("device", absl::StrCat(info.device, ", ", FormatBytes(info.device_bytes), "; graphs ",
                               FormatBytes(info.graph_bytes)));
    for (const std::string& choice : info.choices) Row("", choice);
  }
  Row("state",
      absl::StrCat(FormatBytes(limits.layout.slot_bytes), " per sequence, ", limits.cache.slots,
                   " slots = ", FormatBytes(limits.layout.slot_bytes * limits.cache.slots)));
  if (limits.layout.page_bytes == 0) {
    Row("KV", "none: the model has no full attention");
  } else {
    Row("KV",
        absl::StrCat(FormatBytes(limits.layout.KvBytesPerToken()), " per token, ",
                     limits.cache.pages, " pages of ", limits.layout.page_tokens,
                     " tokens = ", FormatBytes(limits.layout.page_bytes * limits.cache.pages)));
  }
  Row("fits at once", FormatCapacity(CapacityOf(limits.layout, limits.cache, limits.max_position)));
}

void PrintLimits(const ServerOptions& options, const ServedModel& served) {
  const auto& limits = served.limits;
  Row("sequence", absl::StrCat("at most ", limits.max_position, " tokens, prompt and answer"));
  Row("answer", absl::StrCat(options.default_max_tokens, " tokens unless asked otherwise, n up to ",
                             std::min<int64_t>(options.max_choices, limits.cache.slots)));
  Row("step", absl::StrCat("at most ", limits.max_step_tokens, " tokens of ",
                           limits.max_step_sequences, " sequences"));
  Row("queue", absl::StrCat("at most ", options.max_queued_requests, " requests, ",
                            options.max_queued_tokens, " prompt tokens"));
  Row("text", absl::StrCat(options.text_threads, " threads, at most ", options.max_waiting_texts,
                           " prompts, ", FormatBytes(options.max_waiting_text_bytes), ", waiting"));
  Row("request", absl::StrCat("at most ", FormatBytes(options.max_request_bytes), ", ",
                              options.max_stop_strings, " stop strings, ", options.max_logit_bias,
                              " logit biases, ", options.max_logprobs, " logprobs"));
  Row("stream", absl::StrCat(options.stream_buffer_tokens, " tokens wait for a slow reader, ended ",
                             "after ", FormatDurationUs(options.slow_reader_us)));
  Row("deadline", absl::StrCat("longest call: ", OrNone(options.max_deadline_us),
                               "; drain: ", FormatDurationUs(options.drain_us)));
}

}  // namespace

void PrintServerFacts(const ServerOptions& options, const model::ModelInfo& info,
                      const ServedModel& served) {
  std::printf("\n");
  Row("model", absl::StrCat(info.name, " (", info.family, "), ",
                            absl::StrFormat("%.3g", static_cast<double>(info.num_parameters) / 1e6),
                            " million parameters"));
  Row("layers", absl::StrCat(info.num_layers, ": ", Mixers(info)));
  Row("text", TextFacts(served));
  if (!info.skipped_tensors.empty()) {
    Row("not served", absl::StrCat(info.skipped_tensors.size(), " tensors, the first is ",
                                   info.skipped_tensors.front()));
  }
  PrintMemory(info, served);
  PrintLimits(options, served);
  std::printf("\n");
}

void PrintListening(const std::string& program, const ServedModel& served,
                    const std::string& grpc_address, const std::string& http_url,
                    const std::string& metrics_address) {
  std::string example = absl::StrCat(program, " generate --server ", grpc_address);
  if (served.tokenizer == nullptr) {
    absl::StrAppend(&example, " --tokens 1,2,3");
  } else if (served.chat_template == nullptr) {
    absl::StrAppend(&example, " --prompt 'Once upon a time'");
  } else {
    example = absl::StrCat(program, " chat --server ", grpc_address);
  }
  std::printf("Serving gRPC on %s%s\n", grpc_address.c_str(),
              metrics_address.empty()
                  ? ""
                  : absl::StrCat(", metrics on http://", metrics_address, "/metrics").c_str());
  if (!http_url.empty()) std::printf("OpenAI API and web page on %s\n", http_url.c_str());
  std::printf("Try, in another terminal:  %s\n", example.c_str());
  std::fflush(stdout);
}

}  // namespace weir::server
