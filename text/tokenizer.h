// Text to tokens and back, as a published tokenizer.json says.
//
// A tokenizer is read once, never changes, and may be used from any number of threads at once.
// All text is UTF-8. Token ids are int32 and count from 0.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace weir::text {

// A token that stands beside the learned vocabulary. Special ones steer the model (<|im_end|>);
// the others are only never split (<think> in some models).
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
};

// What the model's files call a token: "bos_token", "eos_token", "pad_token", ... or a name of the
// model's own ("image_token"). Chat templates see them as variables.
struct NamedToken {
  std::string name;
  std::string content;
};

class Tokenizer {
 public:
  // Reads tokenizer.json and, where present, tokenizer_config.json and special_tokens_map.json of
  // a model folder. Truncation and padding that the file asks for are left out: how long a text
  // may be is the caller's business.
  // NotFound: the folder has no tokenizer.json (it can still serve token ids). InvalidArgument: a
  // file cannot be read or used; the message names it.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(const std::string& model_dir);

  // The same from the files' contents; the last two may be empty.
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> FromJson(
      std::string_view tokenizer_json, std::string_view tokenizer_config_json = {},
      std::string_view special_tokens_map_json = {});

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The ids of a text.
  // add_special_tokens: also what the tokenizer puts around a text (a bos token, say); not wanted
  // for a rendered chat, whose template writes them itself.
  // parse_special: special tokens written out in the text become their ids. With false they are
  // plain text, so that text from a stranger cannot steer. (Added tokens that are not special are
  // recognised either way; and a SentencePiece Unigram vocabulary that has "</s>" among its pieces
  // finds it in plain text too, as it does in the reference.)
  // InvalidArgument: the text is not UTF-8; the message names the byte.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens,
                                              bool parse_special = true) const;

  // The text of ids: exactly what a Detokenizer gives for the same ids in one piece. Bytes that are
  // no UTF-8 come as U+FFFD; ids without a token (holes in the vocabulary) give nothing.
  // InvalidArgument: an id is negative or not below vocab_size(); the message names it.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  // The bytes that a token adds in the middle of a text; they need not be whole characters. Empty
  // for an id without a token.
  std::string TokenBytes(int32_t id) const;

  // A token as the vocabulary writes it ("Ġthe"), and back.
  std::optional<std::string> IdToToken(int32_t id) const;
  std::optional<int32_t> TokenId(std::string_view token) const;

  // One more than the largest id. The model's embedding may have more rows than that.
  int32_t vocab_size() const { return vocab_size_; }

  bool IsSpecial(int32_t id) const;

  // By increasing id.
  const std::vector<AddedToken>& added_tokens() const { return added_tokens_; }
  const std::vector<NamedToken>& named_tokens() const { return named_tokens_; }

  // By its name in the model's files: NamedTokenText("bos_token"). Absent where the files do not
  // say, or (for the id) where the vocabulary has no such token.
  std::optional<std::string> NamedTokenText(std::string_view name) const;
  std::optional<int32_t> NamedTokenId(std::string_view name) const;
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }

  // For the other classes of this folder.
  struct Handle;
  const Handle& handle() const { return *handle_; }

 private:
  explicit Tokenizer(std::unique_ptr<Handle> handle);

  std::unique_ptr<Handle> handle_;
  int32_t vocab_size_ = 0;
  std::vector<AddedToken> added_tokens_;
  std::vector<NamedToken> named_tokens_;
  std::vector<bool> special_;  // [vocab_size]
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
};

}  // namespace weir::text
