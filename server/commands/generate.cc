// `weir generate`: one prompt, its answers on stdout.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/commands/commands.h"
#include "server/commands/connection.h"
#include "server/commands/generate_flags.h"
#include "server/options.h"
#include "weir/v1/generate.pb.h"

namespace weir::server {
namespace {

using Json = nlohmann::ordered_json;

struct Arguments {
  ConnectionFlags connection;
  GenerateFlags flags;
  std::string prompt, tokens, chat, timeout;
  bool plain_text = false;  // no special tokens around the prompt
  bool json = false;
  bool has_prompt = false, has_tokens = false, has_chat = false;
};

absl::Status FillInput(const Arguments& arguments, v1::GenerateRequest* request) {
  if (arguments.has_prompt + arguments.has_tokens + arguments.has_chat != 1) {
    return absl::InvalidArgumentError("give one of --prompt TEXT, --tokens 1,2,3 and --chat JSON");
  }
  if (arguments.has_prompt) {
    request->set_text(arguments.prompt);
    if (arguments.plain_text) request->set_add_special_tokens(false);
  } else if (arguments.has_tokens) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(arguments.tokens));
    request->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  } else {
    RETURN_IF_ERROR(FillChat(arguments.chat, request->mutable_chat()));
  }
  return FillRequest(arguments.flags, request);
}

const char* ReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_DEADLINE:
      return "deadline";
    case v1::FINISH_REASON_DRAINED:
      return "drained";
    default:
      return "error";
  }
}

// Appends the entries of `from` to the JSON array: {"token", "logprob", "top": [[id, logprob],
// ...]}.
void AppendLogprobs(const v1::Logprobs& from, Json* to) {
  for (int i = 0; i < from.token_ids_size(); ++i) {
    Json entry = {{"token", from.token_ids(i)}, {"logprob", from.logprobs(i)}};
    for (int k = i * from.top_n(); k < (i + 1) * from.top_n(); ++k) {
      entry["top"].push_back({from.top_token_ids(k), from.top_logprobs(k)});
    }
    to->push_back(std::move(entry));
  }
}

// Gathers a whole answer for --json.
class Collector {
 public:
  void Take(const v1::GenerateEvent& event) {
    if (event.has_accepted()) {
      seed_ = event.accepted().seed();
    } else if (event.has_prompt_logprobs()) {
      AppendLogprobs(event.prompt_logprobs(), &prompt_logprobs_);
    } else if (event.has_delta()) {
      const v1::Delta& delta = event.delta();
      Json& choice = At(delta.choice());
      for (int32_t id : delta.token_ids()) choice["tokens"].push_back(id);
      choice["text"].get_ref<std::string&>() += delta.text();
      if (delta.has_logprobs()) AppendLogprobs(delta.logprobs(), &choice["logprobs"]);
    } else if (event.has_choice_finished()) {
      const v1::ChoiceFinished& finished = event.choice_finished();
      Json& choice = At(finished.choice());
      choice["finish_reason"] = ReasonName(finished.reason());
      if (finished.has_stop_string()) choice["stop_string"] = finished.stop_string();
      if (finished.has_stop_token_id()) choice["stop_token_id"] = finished.stop_token_id();
    } else if (event.has_finished()) {
      finished_ = event.finished();
    }
  }

  // One answer stands in the object itself, several in "choices".
  Json Result() {
    Json result = choices_.size() == 1 ? std::move(choices_[0]) : Json{{"choices", choices_}};
    if (!prompt_logprobs_.empty()) result["prompt_logprobs"] = prompt_logprobs_;
    result["seed"] = seed_;
    result["usage"] = {{"prompt_tokens", finished_.usage().prompt_tokens()},
                       {"completion_tokens", finished_.usage().completion_tokens()}};
    const v1::Timings& t = finished_.timings();
    result["timings"] = {{"queue_us", t.queue_us()},
                         {"prefill_us", t.prefill_us()},
                         {"decode_us", t.decode_us()},
                         {"total_us", t.total_us()}};
    return result;
  }

 private:
  Json& At(int32_t choice) {
    while (choices_.size() <= static_cast<size_t>(choice)) {
      choices_.push_back({{"tokens", Json::array()}, {"text", ""}, {"finish_reason", nullptr}});
    }
    return choices_[static_cast<size_t>(choice)];
  }

  std::vector<Json> choices_;
  Json prompt_logprobs_ = Json::array();
  uint64_t seed_ = 0;
  v1::Finished finished_;
};

// Prints as it comes. Several answers are kept apart: each is printed when it is complete.
class Printer {
 public:
  Printer(bool ids_only, int32_t choices) : ids_only_(ids_only), texts_(choices) {}

  void Take(const v1::GenerateEvent& event) {
    if (event.has_delta()) {
      std::string text = event.delta().text();
      if (ids_only_) {
        for (int32_t id : event.delta().token_ids()) absl::StrAppend(&text, id, " ");
      }
      if (texts_.size() > 1) {
        texts_[static_cast<size_t>(event.delta().choice())] += text;
        return;
      }
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    } else if (event.has_choice_finished() && texts_.size() > 1) {
      const int32_t choice = event.choice_finished().choice();
      std::printf("[%d] %s\n", choice, texts_[static_cast<size_t>(choice)].c_str());
      std::fflush(stdout);
    } else if (event.has_finished() && texts_.size() == 1) {
      std::printf("\n");
    }
  }

 private:
  const bool ids_only_;
  std::vector<std::string> texts_;
};

absl::Status Run(Arguments* arguments) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(FillInput(*arguments, &request));
  int64_t timeout_us = 0;
  if (!arguments->timeout.empty()) {
    ASSIGN_OR_RETURN(timeout_us, ParseDurationUs(arguments->timeout));
  }
  arguments->connection.slots = std::max(1, arguments->flags.n.value_or(1));
  ASSIGN_OR_RETURN(const Connection connection, Connect(arguments->connection));
  grpc::ClientContext rpc;
  if (timeout_us > 0) {
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::microseconds(timeout_us));
  }
  Collector collector;
  Printer printer(arguments->has_tokens, std::max(1, arguments->flags.n.value_or(1)));
  const absl::Status status =
      StreamGenerate(connection, request, &rpc, [&](const v1::GenerateEvent& event) {
        if (arguments->json) {
          collector.Take(event);
        } else {
          printer.Take(event);
        }
      });
  RETURN_IF_ERROR(status);
  if (arguments->json) {
    std::printf("%s\n",
                collector.Result().dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerateCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* generate = app.add_subcommand(
      "generate", "Generate from one prompt, with a server or with a model folder");
  generate->add_option("MODEL_DIR", arguments->connection.model_dir, "Model folder");
  generate->add_option("--server", arguments->connection.server, "A running server, HOST:PORT");
  AddClientFlags(generate, &arguments->connection.client);
  CLI::Option* prompt = generate->add_option("--prompt", arguments->prompt, "The prompt as text");
  CLI::Option* tokens =
      generate->add_option("--tokens", arguments->tokens, "The prompt as token ids: 1,2,3");
  CLI::Option* chat = generate->add_option(
      "--chat", arguments->chat,
      "The prompt as JSON: an array of messages, or an object with messages, tools, "
      "template_kwargs; @FILE and - (stdin) are read");
  generate->add_flag("--plain", arguments->plain_text,
                     "Put no special tokens (begin of text) around --prompt");
  generate->add_flag("--json", arguments->json, "Print one JSON object instead of streaming");
  generate->add_option("--timeout", arguments->timeout, "Deadline of the call, such as 30s");
  generate->add_option("--dtype", arguments->connection.dtype, "With a folder: auto, f32 or bf16");
  generate->add_option("--threads", arguments->connection.threads,
                       "With a folder: threads; 0: all");
  AddGenerateFlags(generate, &arguments->flags);
  generate->callback([arguments, prompt, tokens, chat, exit_code] {
    arguments->has_prompt = prompt->count() > 0;
    arguments->has_tokens = tokens->count() > 0;
    arguments->has_chat = chat->count() > 0;
    const absl::Status status = Run(arguments.get());
    if (!status.ok()) {
      std::fprintf(stderr, "weir generate: %s: %s\n",
                   absl::StatusCodeToString(status.code()).c_str(),
                   std::string(status.message()).c_str());
    }
    *exit_code = status.ok() ? 0 : 1;
  });
}

}  // namespace weir::server
