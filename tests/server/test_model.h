// A model for tests of the server: no weights, a tokenizer of single bytes, a chat template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "server/served_model.h"
#include "text/tokenizer.h"

namespace weir::testing {

// Ids 0 to 255 are the bytes; the special tokens follow.
inline constexpr int32_t kEndId = 256;   // "<|end|>", the model's end token
inline constexpr int32_t kUserId = 257;  // "<|user|>"
inline constexpr int32_t kBotId = 258;   // "<|bot|>"
inline constexpr int32_t kVocabSize =
    264;  // rows of the embedding: five more than the tokenizer has

// Byte-level, without merges: every byte is a token.
std::string ByteTokenizerJson();
std::shared_ptr<const text::Tokenizer> ByteTokenizer();

// 16 slots, pages for 4096 tokens, sequences up to 256 tokens.
server::ServedModel TestModel();
// The same without tokenizer and template.
server::ServedModel IdsOnlyModel();

}  // namespace weir::testing
