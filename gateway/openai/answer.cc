#include "gateway/openai/answer.h"

#include <grpcpp/support/status.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/openai/answer_logprobs.h"
#include "gateway/openai/json_text.h"

namespace weir::gateway {
namespace {

// Changes when what is served does: the same seed then may give other tokens.
std::string Fingerprint(const v1::ModelInfo& model) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  const auto add = [&hash](std::string_view bytes) {
    for (const char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  };
  add(model.name());
  add(model.family());
  add(model.compute_dtype());
  add(model.chat_template());
  add(absl::StrCat(model.num_parameters(), ",", model.weight_bytes(), ",", model.vocab_size()));
  return absl::StrCat("fp_", absl::Hex(hash >> 24, absl::kZeroPad10));
}

const char* FinishReasonText(const v1::ChoiceFinished& finished) {
  if (finished.reason() == v1::FINISH_REASON_LENGTH) return "length";
  return finished.tool_calls() > 0 ? "tool_calls" : "stop";
}

void AppendIds(const google::protobuf::RepeatedField<int32_t>& ids, std::string* out) {
  for (const int32_t id : ids) {
    if (!out->empty()) out->push_back(',');
    AppendJsonInt(id, out);
  }
}

// {"index": ..., "id": ..., ...}: the first delta of a call has its id and name.
void AppendToolCallDelta(const v1::ToolCallDelta& call, std::string* out) {
  out->append("{\"index\":");
  AppendJsonInt(call.index(), out);
  if (!call.id().empty()) {
    out->append(",\"id\":");
    AppendJsonString(call.id(), out);
    out->append(",\"type\":\"function\"");
  }
  out->append(",\"function\":{");
  if (!call.name().empty()) {
    out->append("\"name\":");
    AppendJsonString(call.name(), out);
    out->push_back(',');
  }
  out->append("\"arguments\":");
  AppendJsonString(call.arguments(), out);
  out->append("}}");
}

// A field of a JSON object under construction.
void AppendName(const char* name, std::string* out) {
  if (out->back() != '{') out->push_back(',');
  out->push_back('"');
  out->append(name);
  out->append("\":");
}

}  // namespace

struct Answer::Prompt {
  bool ended = false;
  std::string text;        // for echo
  std::string token_ids;   // for return_token_ids
  std::string logprobs;    // entries of the extension prompt_logprobs
  LogprobColumns columns;  // for echo
};

struct Answer::Choice {
  bool begun = false;  // the first chunk is out
  std::string content;
  std::string reasoning;
  struct ToolCall {
    std::string id;
    std::string name;
    std::string arguments;
  };
  std::vector<ToolCall> tool_calls;
  std::string token_ids;
  std::string logprobs;    // entries, of chat
  LogprobColumns columns;  // of completions
  const char* finish_reason = nullptr;
};

Answer::Answer(const Call& call, const ModelFacts& facts, std::string id, int64_t created_s)
    : call_(call),
      facts_(facts),
      prompts_(call.prompts.size()),
      choices_(call.prompts.size() * static_cast<size_t>(call.n)) {
  head_ = "{\"id\":";
  AppendJsonString(id, &head_);
  head_.append(!call.chat    ? ",\"object\":\"text_completion\""
               : call.stream ? ",\"object\":\"chat.completion.chunk\""
                             : ",\"object\":\"chat.completion\"");
  head_.append(",\"created\":");
  AppendJsonInt(created_s, &head_);
  head_.append(",\"model\":");
  AppendJsonString(facts.id, &head_);
  if (!call.service_tier.empty()) {
    head_.append(",\"service_tier\":");
    AppendJsonString(call.service_tier, &head_);
  }
  head_.append(",\"system_fingerprint\":");
  AppendJsonString(Fingerprint(facts.model), &head_);
  head_.append(",\"choices\":[");
}

Answer::~Answer() = default;

void Answer::OnEvent(size_t prompt, const v1::GenerateEvent& event, std::string* sse) {
  if (failed_ || prompts_[prompt].ended) return;
  switch (event.event_case()) {
    case v1::GenerateEvent::kAccepted:
      OnAccepted(prompt, event.accepted());
      break;
    case v1::GenerateEvent::kPromptLogprobs:
      OnPromptLogprobs(prompt, event.prompt_logprobs());
      break;
    case v1::GenerateEvent::kDelta:
      OnDelta(prompt, event.delta(), sse);
      break;
    case v1::GenerateEvent::kChoiceFinished:
      OnChoiceFinished(prompt, event.choice_finished(), sse);
      break;
    case v1::GenerateEvent::kFinished:
      completion_tokens_ += event.finished().usage().completion_tokens();
      cached_tokens_ += event.finished().usage().cached_tokens();
      break;
    case v1::GenerateEvent::EVENT_NOT_SET:
      break;
  }
}

void Answer::OnAccepted(size_t prompt, const v1::Accepted& accepted) {
  Prompt& state = prompts_[prompt];
  prompt_tokens_ += accepted.prompt_tokens();
  if (call_.return_token_ids) AppendIds(accepted.prompt_token_ids(), &state.token_ids);
  if (!call_.echo) return;
  const v1::GenerateRequest& request = call_.prompts[prompt];
  if (request.has_text()) {
    state.text = request.text();
  } else {
    for (const std::string& piece : accepted.prompt_pieces()) state.text.append(piece);
  }
  if (call_.logprobs >= 0 && accepted.prompt_pieces_size() > 0) {
    state.columns.AppendUnknown(accepted.prompt_pieces(0));
  }
}

void Answer::OnPromptLogprobs(size_t prompt, const v1::Logprobs& logprobs) {
  Prompt& state = prompts_[prompt];
  if (call_.prompt_logprobs) AppendPromptLogprobs(logprobs, &state.logprobs);
  if (call_.echo && call_.logprobs >= 0) {
    state.columns.Append(logprobs, logprobs.token_ids_size());
  }
}

// How many of a delta's tokens are told of: all but the token that ends the answer, which is none
// of the answer's text.
int Answer::ToldTokens(const v1::GenerateRequest& request, const v1::Logprobs& logprobs) const {
  const int count = logprobs.token_ids_size();
  if (count == 0 || request.stopping().include_stop()) return count;
  const auto has = [last = logprobs.token_ids(count - 1)](const auto& ids) {
    return std::find(ids.begin(), ids.end(), last) != ids.end();
  };
  const bool stops = has(request.stopping().stop_token_ids()) ||
                     (!request.stopping().ignore_eos() && has(facts_.model.eos_token_ids()));
  return stops ? count - 1 : count;
}

void Answer::OnDelta(size_t prompt, const v1::Delta& delta, std::string* sse) {
  if (delta.choice() < 0 || delta.choice() >= call_.n) return;
  const size_t index = prompt * static_cast<size_t>(call_.n) + static_cast<size_t>(delta.choice());
  const int told = ToldTokens(call_.prompts[prompt], delta.logprobs());
  if (!call_.stream) return Collect(index, delta, told);
  Begin(index, sse);
  const bool says = !delta.text().empty() || !delta.reasoning().empty() ||
                    delta.tool_calls_size() > 0 || told > 0 || delta.token_ids_size() > 0;
  if (!says) return;
  if (call_.chat) {
    StreamChat(index, delta, told, sse);
  } else {
    StreamText(index, delta.text(), sse);
    if (call_.logprobs >= 0) {
      LogprobColumns columns(choices_[index].columns.offset());
      columns.Append(delta.logprobs(), told);
      columns.AppendTo(sse);
      choices_[index].columns = LogprobColumns(columns.offset());
    } else {
      sse->append("null");
    }
  }
  if (call_.return_token_ids) {
    std::string ids;
    AppendIds(delta.token_ids(), &ids);
    absl::StrAppend(sse, ",\"token_ids\":[", ids, "]");
  }
  EndChunk(nullptr, sse);
}

// The chunk that opens a choice: the role, or the echo of the prompt.
void Answer::Begin(size_t index, std::string* sse) {
  Choice& choice = choices_[index];
  if (choice.begun) return;
  choice.begun = true;
  const Prompt& prompt = prompts_[index / static_cast<size_t>(call_.n)];
  if (call_.chat) {
    BeginChunk(index, sse);
    sse->append("\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
  } else if (call_.echo || call_.return_token_ids) {
    StreamText(index, prompt.text, sse);
    if (call_.echo && call_.logprobs >= 0) {
      prompt.columns.AppendTo(sse);
    } else {
      sse->append("null");
    }
    choice.columns = LogprobColumns(CountCharacters(prompt.text));
  } else {
    return;
  }
  if (call_.return_token_ids) {
    absl::StrAppend(sse, ",\"prompt_token_ids\":[", prompt.token_ids, "],\"token_ids\":[]");
  }
  EndChunk(nullptr, sse);
}

void Answer::StreamChat(size_t index, const v1::Delta& delta, int told, std::string* sse) const {
  BeginChunk(index, sse);
  sse->append("\"delta\":{");
  if (!delta.reasoning().empty()) {
    AppendName("reasoning_content", sse);
    AppendJsonString(delta.reasoning(), sse);
  }
  if (!delta.text().empty()) {
    AppendName("content", sse);
    AppendJsonString(delta.text(), sse);
  }
  if (delta.tool_calls_size() > 0) {
    AppendName("tool_calls", sse);
    sse->push_back('[');
    for (int i = 0; i < delta.tool_calls_size(); ++i) {
      if (i > 0) sse->push_back(',');
      AppendToolCallDelta(delta.tool_calls(i), sse);
    }
    sse->push_back(']');
  }
  sse->append("},\"logprobs\":");
  if (told == 0) {
    sse->append("null");
    return;
  }
  std::string items;
  AppendChatLogprobs(delta.logprobs(), told, &items);
  absl::StrAppend(sse, "{\"content\":[", items, "],\"refusal\":null}");
}

// Up to the value of logprobs.
void Answer::StreamText(size_t index, std::string_view text, std::string* sse) const {
  BeginChunk(index, sse);
  sse->append("\"text\":");
  AppendJsonString(text, sse);
  sse->append(",\"logprobs\":");
}

void Answer::BeginChunk(size_t index, std::string* sse) const {
  sse->append("data: ");
  sse->append(head_);
  sse->append("{\"index\":");
  AppendJsonInt(static_cast<int64_t>(index), sse);
  sse->push_back(',');
}

void Answer::EndChunk(const char* finish_reason, std::string* sse) const {
  sse->append(",\"finish_reason\":");
  if (finish_reason == nullptr) {
    sse->append("null");
  } else {
    sse->push_back('"');
    sse->append(finish_reason);
    sse->push_back('"');
  }
  sse->append(call_.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
}

void Answer::Collect(size_t index, const v1::Delta& delta, int told) {
  Choice& choice = choices_[index];
  choice.content.append(delta.text());
  choice.reasoning.append(delta.reasoning());
  for (const v1::ToolCallDelta& call : delta.tool_calls()) {
    if (call.index() < 0) continue;
    const auto at = static_cast<size_t>(call.index());
    // One more at a time: the index is the backend's word, not a size to trust.
    if (at >= choice.tool_calls.size()) choice.tool_calls.emplace_back();
    Choice::ToolCall& whole = choice.tool_calls[std::min(at, choice.tool_calls.size() - 1)];
    whole.id.append(call.id());
    whole.name.append(call.name());
    whole.arguments.append(call.arguments());
  }
  if (call_.return_token_ids) AppendIds(delta.token_ids(), &choice.token_ids);
  if (told == 0) return;
  if (call_.chat) {
    AppendChatLogprobs(delta.logprobs(), told, &choice.logprobs);
  } else {
    if (!choice.begun) BeginColumns(index);
    choice.columns.Append(delta.logprobs(), told);
  }
}

// The columns of an answer go on from the prompt's, which are part of them.
void Answer::BeginColumns(size_t index) {
  Choice& choice = choices_[index];
  choice.begun = true;
  if (call_.echo) choice.columns = prompts_[index / static_cast<size_t>(call_.n)].columns;
}

void Answer::OnChoiceFinished(size_t prompt, const v1::ChoiceFinished& finished, std::string* sse) {
  if (finished.choice() < 0 || finished.choice() >= call_.n) return;
  const size_t index =
      prompt * static_cast<size_t>(call_.n) + static_cast<size_t>(finished.choice());
  reasoning_tokens_ += finished.reasoning_tokens();
  // With any other reason an error follows, which says more.
  if (finished.reason() != v1::FINISH_REASON_STOP &&
      finished.reason() != v1::FINISH_REASON_LENGTH) {
    return;
  }
  choices_[index].finish_reason = FinishReasonText(finished);
  if (!call_.stream) return;
  Begin(index, sse);
  if (call_.chat) {
    BeginChunk(index, sse);
    sse->append("\"delta\":{},\"logprobs\":null");
  } else {
    StreamText(index, "", sse);
    sse->append("null");
  }
  EndChunk(choices_[index].finish_reason, sse);
}

std::optional<ApiError> Answer::OnEnd(size_t prompt, const grpc::Status& status, std::string* sse) {
  if (failed_ || prompts_[prompt].ended) return std::nullopt;
  if (!status.ok()) {
    failed_ = true;
    ParamNames names = call_.names;
    if (prompts_.size() > 1) names.prompt = absl::StrCat("prompt[", prompt, "]");
    ApiError error = FromStatus(status, names);
    if (call_.stream) absl::StrAppend(sse, "data: ", ErrorBody(error), "\n\n");
    return error;
  }
  prompts_[prompt].ended = true;
  if (++ended_ < prompts_.size() || !call_.stream) return std::nullopt;
  if (call_.include_usage) {
    absl::StrAppend(sse, "data: ", head_, "]");
    AppendUsage(sse);
    sse->append("}\n\n");
  }
  sse->append("data: [DONE]\n\n");
  return std::nullopt;
}

void Answer::AppendUsage(std::string* out) const {
  absl::StrAppend(out, ",\"usage\":{\"prompt_tokens\":", prompt_tokens_,
                  ",\"completion_tokens\":", completion_tokens_,
                  ",\"total_tokens\":", prompt_tokens_ + completion_tokens_,
                  ",\"prompt_tokens_details\":{\"cached_tokens\":", cached_tokens_,
                  "},\"completion_tokens_details\":{\"reasoning_tokens\":", reasoning_tokens_,
                  "}}");
}

// {"role": "assistant", "content": ..., ...}
void Answer::AppendMessage(const Choice& choice, std::string* out) const {
  out->append("{\"role\":\"assistant\",\"content\":");
  if (choice.content.empty() && !choice.tool_calls.empty()) {
    out->append("null");
  } else {
    AppendJsonString(choice.content, out);
  }
  out->append(",\"refusal\":null");
  if (!choice.reasoning.empty()) {
    out->append(",\"reasoning_content\":");
    AppendJsonString(choice.reasoning, out);
  }
  if (!choice.tool_calls.empty()) {
    out->append(",\"tool_calls\":[");
    for (const Choice::ToolCall& call : choice.tool_calls) {
      if (out->back() != '[') out->push_back(',');
      out->append("{\"id\":");
      AppendJsonString(call.id, out);
      out->append(",\"type\":\"function\",\"function\":{\"name\":");
      AppendJsonString(call.name, out);
      out->append(",\"arguments\":");
      AppendJsonString(call.arguments, out);
      out->append("}}");
    }
    out->push_back(']');
  }
  out->push_back('}');
}

void Answer::AppendChoice(size_t index, std::string* out) const {
  const Choice& choice = choices_[index];
  const Prompt& prompt = prompts_[index / static_cast<size_t>(call_.n)];
  out->append("{\"index\":");
  AppendJsonInt(static_cast<int64_t>(index), out);
  if (call_.chat) {
    out->append(",\"message\":");
    AppendMessage(choice, out);
    out->append(",\"logprobs\":");
    if (call_.logprobs >= 0) {
      absl::StrAppend(out, "{\"content\":[", choice.logprobs, "],\"refusal\":null}");
    } else {
      out->append("null");
    }
  } else {
    out->append(",\"text\":");
    AppendJsonString(call_.echo ? absl::StrCat(prompt.text, choice.content) : choice.content, out);
    out->append(",\"logprobs\":");
    if (call_.logprobs >= 0) {
      (choice.begun || !call_.echo ? choice.columns : prompt.columns).AppendTo(out);
    } else {
      out->append("null");
    }
    if (call_.prompt_logprobs) AppendPromptExtension(prompt, out);
    if (call_.return_token_ids) {
      absl::StrAppend(out, ",\"prompt_token_ids\":[", prompt.token_ids, "]");
    }
  }
  if (call_.return_token_ids) absl::StrAppend(out, ",\"token_ids\":[", choice.token_ids, "]");
  absl::StrAppend(out, ",\"finish_reason\":\"",
                  choice.finish_reason == nullptr ? "stop" : choice.finish_reason, "\"}");
}

void Answer::AppendPromptExtension(const Prompt& prompt, std::string* out) const {
  // Nothing is known of a prompt's first token.
  absl::StrAppend(out, ",\"prompt_logprobs\":[null", prompt.logprobs.empty() ? "" : ",",
                  prompt.logprobs, "]");
}

std::string Answer::Body() const {
  std::string out = head_;
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendChoice(i, &out);
  }
  out.push_back(']');
  AppendUsage(&out);
  if (call_.chat && call_.prompt_logprobs) AppendPromptExtension(prompts_.front(), &out);
  if (call_.chat && call_.return_token_ids) {
    absl::StrAppend(&out, ",\"prompt_token_ids\":[", prompts_.front().token_ids, "]");
  }
  out.push_back('}');
  return out;
}

}  // namespace weir::gateway
