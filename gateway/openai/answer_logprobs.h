// Log probabilities in the three shapes that clients know. Each appends entries, with commas
// between them, to what is there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "weir/v1/generate.pb.h"

namespace weir::gateway {

// Entries of chat's logprobs.content: {token, logprob, bytes, top_logprobs}, for the first
// `num_tokens`.
void AppendChatLogprobs(const v1::Logprobs& logprobs, int num_tokens, std::string* items);

// The extension prompt_logprobs: for each token {"id": {logprob, decoded_token}, ...}.
void AppendPromptLogprobs(const v1::Logprobs& logprobs, std::string* items);

// The columns of completions.
class LogprobColumns {
 public:
  // `from`: characters of text before the first token.
  explicit LogprobColumns(int64_t from = 0) : offset_(from) {}
  void Append(const v1::Logprobs& logprobs, int num_tokens);
  // A token that nothing is known of: a prompt's first.
  void AppendUnknown(std::string_view piece);
  // {"tokens": [...], "token_logprobs": [...], "top_logprobs": [...], "text_offset": [...]}
  void AppendTo(std::string* out) const;
  int64_t offset() const { return offset_; }

 private:
  void AppendToken(std::string_view piece);

  std::string tokens_;
  std::string token_logprobs_;
  std::string top_logprobs_;
  std::string text_offset_;
  int64_t offset_;
};

// Characters (code points) in `text`.
int64_t CountCharacters(std::string_view text);

}  // namespace weir::gateway
