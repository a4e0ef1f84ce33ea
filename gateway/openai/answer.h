// Events of weir.v1 -> answers of OpenAI's HTTP API.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/api_error.h"
#include "gateway/openai/call.h"

namespace grpc {
class Status;
}

namespace weir::gateway {

// The answer to one Call, streamed or whole. One thread at a time. The hot path, OnEvent of a
// delta, appends to a string and builds no JSON tree.
class Answer {
 public:
  // `id`: "chatcmpl-..." or "cmpl-..."; `created_s`: Unix time. `call` and `facts` must outlive it.
  Answer(const Call& call, const ModelFacts& facts, std::string id, int64_t created_s);
  ~Answer();
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  // An event of the Generate call of `prompt`. Streaming: appends whole "data: ...\n\n" events to
  // `sse`, or nothing. Otherwise `sse` is not used.
  void OnEvent(size_t prompt, const v1::GenerateEvent& event, std::string* sse);

  // The Generate call of `prompt` ended. An error is returned: the answer as a whole has failed,
  // the caller cancels what still runs and tells the client, by status and ErrorBody when nothing
  // was sent yet; `sse` gets it as an event for when something was. Later calls append nothing.
  // When the last prompt ended well, `sse` gets the chunk with the usage, if asked for, and [DONE].
  std::optional<ApiError> OnEnd(size_t prompt, const grpc::Status& status, std::string* sse);

  // All prompts have ended well.
  bool complete() const { return ended_ == call_.prompts.size() && !failed_; }

  // Not streaming: the whole JSON. REQUIRES: complete().
  std::string Body() const;

  // Tokens so far, all prompts together (for the access log).
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t completion_tokens() const { return completion_tokens_; }

 private:
  struct Choice;
  struct Prompt;

  void OnAccepted(size_t prompt, const v1::Accepted& accepted);
  void OnPromptLogprobs(size_t prompt, const v1::Logprobs& logprobs);
  void OnDelta(size_t prompt, const v1::Delta& delta, std::string* sse);
  void OnChoiceFinished(size_t prompt, const v1::ChoiceFinished& finished, std::string* sse);
  int ToldTokens(const v1::GenerateRequest& request, const v1::Logprobs& logprobs) const;

  // Streaming.
  void Begin(size_t index, std::string* sse);
  void StreamChat(size_t index, const v1::Delta& delta, int told, std::string* sse) const;
  void StreamText(size_t index, std::string_view text, std::string* sse) const;
  void BeginChunk(size_t index, std::string* sse) const;
  void EndChunk(const char* finish_reason, std::string* sse) const;

  // Not streaming.
  void Collect(size_t index, const v1::Delta& delta, int told);
  void BeginColumns(size_t index);
  void AppendChoice(size_t index, std::string* out) const;
  void AppendMessage(const Choice& choice, std::string* out) const;
  void AppendPromptExtension(const Prompt& prompt, std::string* out) const;
  void AppendUsage(std::string* out) const;

  const Call& call_;
  const ModelFacts& facts_;
  std::string head_;  // of every object: id, object, created, model, fingerprint
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;  // by index in the answer
  size_t ended_ = 0;
  bool failed_ = false;
  int64_t prompt_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t reasoning_tokens_ = 0;
};

// {"object": "list", "data": [model]} and the one model of GET /v1/models and /v1/models/{id}.
std::string ModelListBody(const ModelFacts& facts);
std::string ModelBody(const ModelFacts& facts);

std::string TokenizeBody(const TokenizeCall& call, const v1::TokenizeResponse& response,
                         const ModelFacts& facts);
std::string DetokenizeBody(const v1::DetokenizeResponse& response);

}  // namespace weir::gateway
