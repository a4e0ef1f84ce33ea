// Token ids to text as they come, one object per sequence.
//
// What Push gives is always whole characters of valid UTF-8; a character that lies over several
// tokens appears with the last of them. Push("a"), Push("b"), ..., Flush() joined together is
// Tokenizer::Decode of the same ids. A call costs the same however long the text is.
//
// Not thread-safe; keeps the tokenizer alive.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace weir::text {

class Tokenizer;

class Detokenizer {
 public:
  // `kept`: special tokens that are not skipped even so.
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens,
              std::vector<int32_t> kept = {});
  ~Detokenizer();
  Detokenizer(Detokenizer&& other) noexcept;
  Detokenizer& operator=(Detokenizer&& other) noexcept;

  // The text that this id finishes, often empty. An id without a token, also one outside the
  // vocabulary (models have padding rows), gives nothing.
  std::string Push(int32_t id);

  // The end of the text: what was held back, with U+FFFD for bytes that are no character. After
  // it the object is as new.
  std::string Flush();

 private:
  struct Stream;
  std::unique_ptr<Stream> stream_;
  // Set where special tokens are skipped here, since some are kept.
  std::shared_ptr<const Tokenizer> skips_;
  std::vector<int32_t> kept_;
};

}  // namespace weir::text
