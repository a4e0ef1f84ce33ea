#include "server/commands/generate_flags.h"

#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {

void AddGenerateFlags(CLI::App* command, GenerateFlags* flags) {
  const auto add = [&](const char* name, auto* target, const char* help) {
    return command->add_option(name, *target, help);
  };
  add("--temperature", &flags->temperature, "0: always the likeliest token");
  add("--top-k", &flags->top_k, "Only the k likeliest tokens; 0: off");
  add("--top-p", &flags->top_p, "The smallest set of tokens of that probability; 1: off");
  add("--min-p", &flags->min_p, "Not below this share of the likeliest token; 0: off");
  add("--repetition-penalty", &flags->repetition_penalty,
      "Against tokens of prompt and answer; 1: off");
  add("--presence-penalty", &flags->presence_penalty, "Against tokens of the answer; 0: off");
  add("--frequency-penalty", &flags->frequency_penalty, "The same by their count; 0: off");
  add("--seed", &flags->seed, "The same seed gives the same answer");
  add("--max-tokens", &flags->max_tokens, "Longest answer, in tokens");
  add("--min-tokens", &flags->min_tokens, "Shortest answer, in tokens");
  add("--stop", &flags->stop_strings, "Text that ends the answer; may be repeated")
      ->expected(1)
      ->take_all();
  add("--stop-token", &flags->stop_token_ids, "Token ids that end the answer: 1,2,3")
      ->delimiter(',');
  add("--logit-bias", &flags->logit_bias, "ID=VALUE, added to a token's logit; may be repeated")
      ->expected(1)
      ->take_all();
  add("--logprobs", &flags->logprobs, "Log probabilities of the tokens and of this many best ones");
  add("--prompt-logprobs", &flags->prompt_logprobs, "The same for the prompt");
  add("--json-schema", &flags->json_schema, "The answer is JSON that fits this schema, or @FILE");
  command->add_flag("--json-object", flags->json_object, "The answer is a JSON object");
  add("--regex", &flags->regex, "The answer matches this regular expression, or that in @FILE");
  add("--choice", &flags->choices, "The answer is one of these texts; repeated")
      ->expected(1)
      ->take_all();
  add("--lark", &flags->lark, "The answer follows this Lark grammar, or that in @FILE");
  add("-n,--choices", &flags->n, "Answers to the same prompt");
  add("--priority", &flags->priority, "Higher goes first");
  command->add_flag("--include-stop", flags->include_stop, "Keep the stop string in the text");
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on past the model's end tokens");
  command->add_flag("--show-special-tokens", flags->show_special_tokens,
                    "Keep special tokens in the text");
}

namespace {

absl::StatusOr<std::string> TextOrFile(const std::string& text) {
  if (text.empty() || text[0] != '@') return text;
  std::ifstream file(text.substr(1), std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(text.substr(1), " cannot be read"));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

absl::Status FillConstraint(const GenerateFlags& flags, v1::GenerateRequest* request) {
  const int given = (flags.json_schema ? 1 : 0) + (flags.regex ? 1 : 0) + (flags.lark ? 1 : 0) +
                    (flags.json_object ? 1 : 0) + (flags.choices.empty() ? 0 : 1);
  if (given == 0) return absl::OkStatus();
  if (given > 1) {
    return absl::InvalidArgumentError(
        "give one of --json-schema, --json-object, --regex, --choice and --lark");
  }
  v1::Constraint* constraint = request->mutable_constraint();
  if (flags.json_object) constraint->set_json_object(true);
  for (const std::string& value : flags.choices) constraint->mutable_choice()->add_values(value);
  if (flags.json_schema) {
    ASSIGN_OR_RETURN(*constraint->mutable_json_schema(), TextOrFile(*flags.json_schema));
  }
  if (flags.regex) {
    ASSIGN_OR_RETURN(*constraint->mutable_regex(), TextOrFile(*flags.regex));
  }
  if (flags.lark) {
    ASSIGN_OR_RETURN(*constraint->mutable_lark(), TextOrFile(*flags.lark));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FillRequest(const GenerateFlags& flags, v1::GenerateRequest* request) {
  v1::SamplingOptions* sampling = request->mutable_sampling();
  v1::StoppingOptions* stopping = request->mutable_stopping();
  v1::OutputOptions* output = request->mutable_output();
  if (flags.temperature) sampling->set_temperature(*flags.temperature);
  if (flags.top_k) sampling->set_top_k(*flags.top_k);
  if (flags.top_p) sampling->set_top_p(*flags.top_p);
  if (flags.min_p) sampling->set_min_p(*flags.min_p);
  if (flags.repetition_penalty) sampling->set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) sampling->set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling->set_frequency_penalty(*flags.frequency_penalty);
  if (flags.seed) sampling->set_seed(*flags.seed);
  for (const std::string& entry : flags.logit_bias) {
    const std::vector<std::string> parts = absl::StrSplit(entry, '=');
    int32_t id = 0;
    float bias = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) ||
        !absl::SimpleAtof(parts[1], &bias)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--logit-bias: \"", entry, "\" is not ID=VALUE, such as 17=-2.5"));
    }
    (*sampling->mutable_logit_bias())[id] = bias;
  }
  if (flags.max_tokens) stopping->set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens) stopping->set_min_tokens(*flags.min_tokens);
  for (const std::string& stop : flags.stop_strings) stopping->add_stop_strings(stop);
  for (int32_t id : flags.stop_token_ids) stopping->add_stop_token_ids(id);
  if (flags.include_stop) stopping->set_include_stop(true);
  if (flags.ignore_eos) stopping->set_ignore_eos(true);
  if (flags.logprobs) output->set_logprobs(*flags.logprobs);
  if (flags.prompt_logprobs) output->set_prompt_logprobs(*flags.prompt_logprobs);
  if (flags.show_special_tokens) output->set_skip_special_tokens(false);
  RETURN_IF_ERROR(FillConstraint(flags, request));
  if (flags.n) request->set_n(*flags.n);
  if (flags.priority) request->set_priority(*flags.priority);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text) {
  std::vector<int32_t> ids;
  for (absl::string_view part : absl::StrSplit(text, absl::ByAnyChar(", \n"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tokens: \"", part, "\" is no token id; write them as 1,2,3"));
    }
    ids.push_back(id);
  }
  return ids;
}

}  // namespace weir::server
