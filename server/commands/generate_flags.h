// The flags that say what to generate and how: one for every field of weir.v1.GenerateRequest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "core/status.h"

namespace weir::v1 {
class Chat;
class GenerateRequest;
}  // namespace weir::v1

namespace weir::server {

struct GenerateFlags {
  std::optional<float> temperature, top_p, min_p;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int32_t> top_k, max_tokens, min_tokens, logprobs, prompt_logprobs, n, priority;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_token_ids;
  std::optional<std::string> json_schema, regex, lark;  // text, or "@FILE"
  std::vector<std::string> choices;
  bool json_object = false;
  std::vector<std::string> logit_bias;  // "ID=VALUE"
  bool include_stop = false;
  bool ignore_eos = false;
  bool show_special_tokens = false;
};

void AddGenerateFlags(CLI::App* command, GenerateFlags* flags);

// Sets what was given; the rest stays absent, so that the server's defaults hold.
absl::Status FillRequest(const GenerateFlags& flags, v1::GenerateRequest* request);

// JSON as OpenAI's API has it -> weir.v1.Chat: an array of messages, or an object with "messages"
// and optionally "tools", "template_kwargs" (object), "add_generation_prompt",
// "continue_final_message", "template_name". Unknown keys are refused. "@PATH" reads a file, "-"
// reads stdin.
absl::Status FillChat(const std::string& json_or_path, v1::Chat* chat);

// "1,2,3" -> ids.
absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text);

}  // namespace weir::server
