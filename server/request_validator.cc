#include "server/request_validator.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/chat_request.h"
#include "server/error_mapping.h"
#include "server/served_model.h"
#include "server/violations.h"
#include "text/tokenizer.h"
#include "weir/v1/generate.pb.h"
#include "weir/v1/tokenize.pb.h"

namespace weir::server {
namespace {

constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxStopIds = 64;
constexpr int32_t kMaxPriority = 1000;

// One numeric field that has to lie in [least, most], or (least, most] when `open`.
template <typename T>
void CheckRange(const char* field, T value, T least, T most, bool open, Violations* violations) {
  const bool in = value <= most && (open ? value > least : value >= least);
  if (in) return;
  violations->Add(
      field, absl::StrCat("is ", value, "; allowed: ", open ? "above " : "", least, " to ", most));
}

std::string IdProblem(int32_t id, int32_t vocab_size) {
  return absl::StrCat("token id ", id, " is out of range; the model's ids are 0 to ",
                      vocab_size - 1);
}

bool InVocabulary(int32_t id, int32_t vocab_size) { return id >= 0 && id < vocab_size; }

absl::Status NeedTokenizer(const ServedModel& model, const char* what) {
  return MissingPrecondition("TOKENIZER", model.name,
                             absl::StrCat("the model ", model.name,
                                          " was loaded without a tokenizer (its folder has no "
                                          "tokenizer.json), so ",
                                          what, "; use token ids"));
}

absl::Status NeedTemplate(const ServedModel& model) {
  return MissingPrecondition("CHAT_TEMPLATE", model.name,
                             absl::StrCat("the model ", model.name,
                                          " has no chat template; send the prompt as text or as "
                                          "token ids"));
}

// Sampling fields over the model's defaults.
scheduler::SamplingParams Sampling(const v1::SamplingOptions& in, const ServedModel& model,
                                   const RequestLimits& limits, uint64_t random_seed,
                                   Violations* v) {
  const SamplingDefaults& d = model.sampling;
  scheduler::SamplingParams out;
  out.temperature = in.has_temperature() ? in.temperature() : d.temperature;
  out.top_k = in.has_top_k() ? in.top_k() : d.top_k;
  out.top_p = in.has_top_p() ? in.top_p() : d.top_p;
  out.min_p = in.has_min_p() ? in.min_p() : d.min_p;
  out.repetition_penalty =
      in.has_repetition_penalty() ? in.repetition_penalty() : d.repetition_penalty;
  out.presence_penalty = in.presence_penalty();
  out.frequency_penalty = in.frequency_penalty();
  out.seed = in.has_seed() ? in.seed() : random_seed;
  CheckRange("sampling.temperature", out.temperature, 0.0f, 100.0f, false, v);
  if (out.top_k < 0) {
    v->Add("sampling.top_k", absl::StrCat("is ", out.top_k, "; allowed: 0 (off) and above"));
  }
  CheckRange("sampling.top_p", out.top_p, 0.0f, 1.0f, true, v);
  CheckRange("sampling.min_p", out.min_p, 0.0f, 1.0f, false, v);
  CheckRange("sampling.repetition_penalty", out.repetition_penalty, 0.0f, 100.0f, true, v);
  CheckRange("sampling.presence_penalty", out.presence_penalty, -100.0f, 100.0f, false, v);
  CheckRange("sampling.frequency_penalty", out.frequency_penalty, -100.0f, 100.0f, false, v);

  if (in.logit_bias_size() > limits.max_logit_bias) {
    v->Add("sampling.logit_bias", absl::StrCat("has ", in.logit_bias_size(), " entries; at most ",
                                               limits.max_logit_bias, " are allowed"));
    return out;
  }
  out.logit_bias.assign(in.logit_bias().begin(), in.logit_bias().end());
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  for (auto& [id, bias] : out.logit_bias) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    if (!InVocabulary(id, model.limits.vocab_size)) {
      v->Add(field, IdProblem(id, model.limits.vocab_size));
    }
    if (!(bias >= -100.0f && bias <= 100.0f)) {
      v->Add(field, absl::StrCat("is ", bias, "; allowed: -100 to 100"));
    }
    if (bias == -100.0f) bias = -INFINITY;  // as documented: forbidden
  }
  return out;
}

void Stopping(const v1::StoppingOptions& in, const ServedModel& model, const RequestLimits& limits,
              ValidRequest* out, Violations* v) {
  scheduler::Request& request = out->request;
  if (in.has_max_tokens()) {
    request.max_tokens = in.max_tokens();
    if (in.max_tokens() < 1) {
      v->Add("stopping.max_tokens", absl::StrCat("is ", in.max_tokens(), "; at least 1 is needed"));
    }
  }
  request.min_tokens = in.min_tokens();
  if (in.min_tokens() < 0) {
    v->Add("stopping.min_tokens", absl::StrCat("is ", in.min_tokens(), "; allowed: 0 and above"));
  } else if (in.has_max_tokens() && in.max_tokens() >= 1 && in.min_tokens() > in.max_tokens()) {
    v->Add("stopping.min_tokens",
           absl::StrCat("is ", in.min_tokens(), ", more than max_tokens, ", in.max_tokens()));
  }
  out->stream.min_tokens = std::max(0, request.min_tokens);

  if (in.stop_strings_size() > limits.max_stop_strings) {
    v->Add("stopping.stop_strings",
           absl::StrCat("has ", in.stop_strings_size(), " entries; at most ",
                        limits.max_stop_strings, " are allowed"));
  }
  for (int i = 0; i < in.stop_strings_size(); ++i) {
    const std::string field = absl::StrCat("stopping.stop_strings[", i, "]");
    const size_t bytes = in.stop_strings(i).size();
    if (bytes == 0) v->Add(field, "is empty; it would end every answer at once");
    if (bytes > kMaxStopBytes) {
      v->Add(field, absl::StrCat("has ", bytes, " bytes; at most ", kMaxStopBytes, " are allowed"));
    }
    out->stream.stop_strings.push_back(in.stop_strings(i));
  }
  out->stream.include_stop = in.include_stop();

  if (in.stop_token_ids_size() > kMaxStopIds) {
    v->Add("stopping.stop_token_ids",
           absl::StrCat("has ", in.stop_token_ids_size(), " entries; at most ", kMaxStopIds,
                        " are allowed"));
  }
  std::vector<int32_t> ids;
  for (int i = 0; i < std::min(in.stop_token_ids_size(), kMaxStopIds); ++i) {
    const int32_t id = in.stop_token_ids(i);
    if (!InVocabulary(id, model.limits.vocab_size)) {
      v->Add(absl::StrCat("stopping.stop_token_ids[", i, "]"),
             IdProblem(id, model.limits.vocab_size));
    }
    ids.push_back(id);
  }
  if (!in.ignore_eos()) ids.insert(ids.end(), model.eos_ids.begin(), model.eos_ids.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  out->stream.stop_ids = ids;
  request.stop_ids = std::move(ids);
}

void Output(const v1::OutputOptions& in, const ServedModel& model, const RequestLimits& limits,
            ValidRequest* out, Violations* v) {
  out->stream.text = in.has_text() ? in.text() : model.tokenizer != nullptr;
  out->stream.token_ids = in.has_token_ids() ? in.token_ids() : true;
  out->stream.skip_special_tokens = in.has_skip_special_tokens() ? in.skip_special_tokens() : true;
  if (!out->stream.text && !out->stream.token_ids) {
    v->Add("output", "text and token_ids are both off: the stream would carry no answer");
  }
  out->stream.pieces = in.pieces();
  out->stream.prompt_token_ids = in.prompt_token_ids();
  const int32_t most = std::min(limits.max_logprobs, model.limits.vocab_size);
  if (in.has_logprobs()) {
    CheckRange("output.logprobs", in.logprobs(), 0, most, false, v);
    out->request.sampling.logprobs = out->stream.logprobs = in.logprobs();
  }
  if (in.has_prompt_logprobs()) {
    CheckRange("output.prompt_logprobs", in.prompt_logprobs(), 0, most, false, v);
    out->request.prompt_logprobs = in.prompt_logprobs();
  }
}

void Input(const v1::GenerateRequest& in, const ServedModel& model, ValidRequest* out,
           Violations* v) {
  if (in.has_add_special_tokens() && !in.has_text()) {
    v->Add("add_special_tokens",
           "only goes with text: chat templates and token ids say it themselves");
  }
  out->source.add_special_tokens = in.has_add_special_tokens() ? in.add_special_tokens() : true;
  switch (in.input_case()) {
    case v1::GenerateRequest::kText:
      if (in.text().empty()) v->Add("text", "the prompt is empty");
      out->source.text = in.text();
      break;
    case v1::GenerateRequest::kTokenIds: {
      const auto& ids = in.token_ids().ids();
      const absl::Status in_range = CheckIds(
          "token_ids.ids", ids.data(), static_cast<size_t>(ids.size()), model.limits.vocab_size);
      if (ids.empty()) v->Add("token_ids.ids", "the prompt is empty");
      for (const auto& [field, description] : GetErrorDetails(in_range).field_violations) {
        v->Add(field, description);
      }
      out->request.prompt.assign(ids.begin(), ids.end());
      break;
    }
    case v1::GenerateRequest::kChat:
      out->source.chat = ToChatRequest(in.chat(), ShowsTools(in), *model.chat_template, v);
      if (in.chat().continue_final_message() && in.chat().messages_size() > 0) {
        const v1::ChatMessage& last = in.chat().messages(in.chat().messages_size() - 1);
        out->source.continued_bytes = 1 + last.content().size() + last.reasoning().size();
      }
      break;
    case v1::GenerateRequest::INPUT_NOT_SET:
      v->Add("input", "is required: one of text, token_ids and chat");
      break;
  }
}

void ParseAnswer(const v1::GenerateRequest& in, const ServedModel& model, ValidRequest* out,
                 Violations* v) {
  if (!in.has_chat()) v->Add("output.parse_answer", "only goes with chat");
  if (!out->stream.text) v->Add("output.parse_answer", "needs output.text, which is off");
  AnswerConfig& answer = out->stream.answer.emplace();
  answer.style = model.answer_style;
  answer.tools = std::make_shared<const std::vector<text::Tool>>(out->tool_use.tools);
}

void Constrain(const v1::GenerateRequest& in, const RequestLimits& limits, ValidRequest* out,
               Violations* v) {
  const std::vector<text::Tool>& forced = out->tool_use.forced;
  if (in.has_constraint() && !forced.empty()) {
    v->Add("constraint",
           "excludes tool_use with mode REQUIRED or NAMED: the answer is calls of tools");
  } else if (in.has_constraint()) {
    out->constraint = ToConstraintSpec(in.constraint(), limits.max_constraint_bytes, v);
  } else if (!forced.empty()) {
    out->constraint.emplace();
    out->constraint->field = "chat.tools";
    out->constraint->calls = forced;
    out->constraint->parallel = out->tool_use.parallel;
  } else {
    return;
  }
  if (in.stopping().ignore_eos()) {
    v->Add("stopping.ignore_eos",
           "contradicts constraint and forced calls of tools: they say where an answer ends");
  }
}

// What the request needs of the model and the model has not.
absl::Status CheckPreconditions(const v1::GenerateRequest& in, const ServedModel& model) {
  if (model.tokenizer == nullptr) {
    if (in.has_text()) return NeedTokenizer(model, "it takes no text");
    if (in.has_chat()) return NeedTokenizer(model, "it takes no chat");
    if (in.output().text()) return NeedTokenizer(model, "it gives no text");
    if (in.output().pieces()) return NeedTokenizer(model, "it knows no bytes of tokens");
    if (in.stopping().stop_strings_size() > 0) {
      return NeedTokenizer(model, "it knows no stop strings");
    }
  }
  const v1::ToolUse::Mode mode = in.tool_use().mode();
  if (in.has_constraint() || mode == v1::ToolUse::MODE_REQUIRED ||
      mode == v1::ToolUse::MODE_NAMED) {
    if (model.tokenizer == nullptr) return NeedTokenizer(model, "it cannot constrain answers");
    if (model.eos_ids.empty()) {
      return MissingPrecondition("END_TOKEN", model.name,
                                 absl::StrCat("the model ", model.name,
                                              " has no end token, so an answer could not end where "
                                              "its constraint is complete"));
    }
  }
  if (in.has_chat() && model.chat_template == nullptr) return NeedTemplate(model);
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckIds(const std::string& field, const int32_t* ids, size_t num_ids,
                      int32_t vocab_size) {
  for (size_t i = 0; i < num_ids; ++i) {
    if (!InVocabulary(ids[i], vocab_size)) {
      return InvalidField(absl::StrCat(field, "[", i, "]"), IdProblem(ids[i], vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ValidRequest> ValidateGenerate(const v1::GenerateRequest& request,
                                              const ServedModel& model, const RequestLimits& limits,
                                              uint64_t random_seed) {
  RETURN_IF_ERROR(CheckPreconditions(request, model));
  ValidRequest out;
  Violations violations;
  Input(request, model, &out, &violations);
  out.request.sampling = Sampling(request.sampling(), model, limits, random_seed, &violations);
  Stopping(request.stopping(), model, limits, &out, &violations);
  Output(request.output(), model, limits, &out, &violations);

  out.request.num_choices = out.stream.num_choices = request.has_n() ? request.n() : 1;
  CheckRange("n", out.request.num_choices, 1, limits.max_choices, false, &violations);
  if (out.request.num_choices > 1 && out.request.sampling.temperature == 0.0f) {
    violations.Add("n",
                   absl::StrCat("is ", out.request.num_choices,
                                " at temperature 0, where all "
                                "answers are the same; ask for one, or raise the temperature"));
  }
  out.request.priority = request.priority();
  CheckRange("priority", request.priority(), -kMaxPriority, kMaxPriority, false, &violations);
  out.tool_use = ToToolUse(request, model, &violations);
  if (request.output().parse_answer()) ParseAnswer(request, model, &out, &violations);
  Constrain(request, limits, &out, &violations);
  if (!violations.empty()) return violations.ToStatus();
  return out;
}

absl::StatusOr<PromptSource> ValidateTokenize(const v1::TokenizeRequest& request,
                                              const ServedModel& model) {
  if (model.tokenizer == nullptr) return NeedTokenizer(model, "it cannot tokenize");
  PromptSource source;
  Violations violations;
  source.add_special_tokens =
      request.has_add_special_tokens() ? request.add_special_tokens() : true;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      source.text = request.text();
      break;
    case v1::TokenizeRequest::kChat:
      if (model.chat_template == nullptr) return NeedTemplate(model);
      if (request.has_add_special_tokens()) {
        violations.Add("add_special_tokens",
                       "only goes with text: chat templates say it themselves");
      }
      source.chat =
          ToChatRequest(request.chat(), /*with_tools=*/true, *model.chat_template, &violations);
      break;
    case v1::TokenizeRequest::INPUT_NOT_SET:
      violations.Add("input", "is required: one of text and chat");
      break;
  }
  if (!violations.empty()) return violations.ToStatus();
  return source;
}

absl::StatusOr<std::vector<int32_t>> EncodePrompt(const PromptSource& source,
                                                  const ServedModel& model, std::string* rendered) {
  if (source.chat) {
    absl::StatusOr<std::string> text = model.chat_template->Render(*source.chat);
    if (!text.ok()) {
      if (text.status().code() != absl::StatusCode::kInvalidArgument) return text.status();
      return InvalidField("chat", std::string(text.status().message()));
    }
    absl::StatusOr<std::vector<int32_t>> ids =
        model.tokenizer->Encode(*text, /*add_special_tokens=*/false);
    if (rendered != nullptr) *rendered = *std::move(text);
    return ids;
  }
  absl::StatusOr<std::vector<int32_t>> ids =
      model.tokenizer->Encode(*source.text, source.add_special_tokens);
  if (!ids.ok() && ids.status().code() == absl::StatusCode::kInvalidArgument) {
    return InvalidField("text", std::string(ids.status().message()));
  }
  return ids;
}

text::ReasoningStart StartOfAnswer(const PromptSource& source, const ServedModel& model,
                                   std::string_view rendered) {
  if (!source.chat) return text::ReasoningStart::kNone;
  return text::ReasoningStartOf(model.answer_style.reasoning, rendered, source.continued_bytes);
}

absl::Status SetPrompt(std::vector<int32_t> prompt, const ServedModel& model,
                       const RequestLimits& limits, ValidRequest* request) {
  const char* field = request->source.chat ? "chat" : request->source.text ? "text" : "token_ids";
  if (prompt.empty()) return InvalidField(field, "the prompt is empty: it gives no token");
  RETURN_IF_ERROR(CheckIds(field, prompt.data(), prompt.size(), model.limits.vocab_size));
  const int64_t longest = model.limits.max_position;
  const int64_t length = static_cast<int64_t>(prompt.size());
  if (length >= longest) {
    return InvalidField(field, absl::StrCat("the prompt has ", length,
                                            " tokens; with at least one token "
                                            "of answer it must fit ",
                                            longest, ", the longest sequence served"));
  }
  scheduler::Request& out = request->request;
  if (out.max_tokens == 0) {
    out.max_tokens = static_cast<int32_t>(
        std::min<int64_t>(longest - length, std::max(limits.default_max_tokens, out.min_tokens)));
  }
  if (length + out.max_tokens > longest) {
    return InvalidField(
        "stopping.max_tokens",
        absl::StrCat("is ", out.max_tokens, "; with the prompt's ", length, " tokens that is ",
                     length + out.max_tokens, ", more than the longest sequence served, ", longest,
                     "; at most ", longest - length, " fit"));
  }
  if (out.min_tokens > out.max_tokens) {
    return InvalidField("stopping.min_tokens",
                        absl::StrCat("is ", out.min_tokens, "; only ", out.max_tokens,
                                     " tokens fit after the prompt"));
  }
  out.prompt = std::move(prompt);
  return absl::OkStatus();
}

}  // namespace weir::server
