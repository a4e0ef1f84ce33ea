// weir.v1.GenerateRequest -> what the scheduler and the stream need, or every reason why not.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"
#include "scheduler/request.h"
#include "server/answer_stream.h"
#include "server/constraint.h"
#include "server/tool_use.h"
#include "text/chat_template.h"

namespace weir::v1 {
class Chat;
class GenerateRequest;
class TokenizeRequest;
}  // namespace weir::v1

namespace weir::server {

struct ServedModel;

// Limits of one request, as the server was started.
struct RequestLimits {
  int32_t max_choices = 16;
  int32_t default_max_tokens = 1024;
  int32_t max_logprobs = 20;
  int32_t max_stop_strings = 16;
  int32_t max_logit_bias = 1024;
  int64_t max_constraint_bytes = 256 << 10;
};

// The prompt before text work. At most one of `text` and `chat` is set; neither: ids are given.
struct PromptSource {
  std::optional<std::string> text;
  std::optional<text::ChatRequest> chat;
  bool add_special_tokens = true;  // for `text`
  size_t continued_bytes = 0;      // of the chat's last message, which the answer goes on with
};

// What the stream carries.
struct StreamConfig {
  int32_t num_choices = 1;
  bool text = false;
  bool token_ids = true;
  bool skip_special_tokens = true;
  bool include_stop = false;
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_ids;  // all that end an answer, sorted
  int32_t min_tokens = 0;
  int32_t logprobs = -1;
  std::optional<AnswerConfig> answer;                   // the text is to be taken apart
  bool pieces = false;                                  // token ids come with their bytes
  bool prompt_token_ids = false;                        // in Accepted
  std::shared_ptr<const GrammarConstraint> constraint;  // to ask why it could not be followed
  int64_t received_us = 0;  // when the call came, on the scheduler's clock; 0: not known
};

struct ValidRequest {
  PromptSource source;
  ToolUse tool_use;
  StreamConfig stream;
  std::optional<ConstraintSpec> constraint;  // compiled by the call, into request.constraint
  // Complete but for id, deadline, sink, constraint, the prompt when it comes from text, and
  // max_tokens when absent (0), which SetPrompt fills in.
  scheduler::Request request;
};

// INVALID_ARGUMENT with every field that is wrong; FAILED_PRECONDITION when the model lacks a
// tokenizer or a template that the request needs. `random_seed` is used where the request gives
// none.
absl::StatusOr<ValidRequest> ValidateGenerate(const v1::GenerateRequest& request,
                                              const ServedModel& model, const RequestLimits& limits,
                                              uint64_t random_seed);

// The same for Tokenize.
absl::StatusOr<PromptSource> ValidateTokenize(const v1::TokenizeRequest& request,
                                              const ServedModel& model);

// Renders and tokenizes; for text threads. `rendered` (may be null) gets the text of a chat.
absl::StatusOr<std::vector<int32_t>> EncodePrompt(const PromptSource& source,
                                                  const ServedModel& model, std::string* rendered);

// How the answer to the rendered chat begins. kNone for what is no chat.
text::ReasoningStart StartOfAnswer(const PromptSource& source, const ServedModel& model,
                                   std::string_view rendered);

// Completes the request with its prompt. INVALID_ARGUMENT: empty, an id out of range, or prompt and
// answer longer than the model's longest sequence, with the numbers.
absl::Status SetPrompt(std::vector<int32_t> prompt, const ServedModel& model,
                       const RequestLimits& limits, ValidRequest* request);

// INVALID_ARGUMENT that names `field` and the first id outside [0, vocab_size).
absl::Status CheckIds(const std::string& field, const int32_t* ids, size_t num_ids,
                      int32_t vocab_size);

}  // namespace weir::server
