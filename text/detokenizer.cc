#include "text/detokenizer.h"

#include <algorithm>
#include <utility>

#include "text/rust_handles.h"
#include "text/tokenizer.h"

namespace weir::text {

struct Detokenizer::Stream {
  explicit Stream(weir_text_stream* p) : pointer(p) {}
  ~Stream() { weir_text_stream_free(pointer); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  weir_text_stream* pointer;  // keeps the tokenizer's Rust side alive
};

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens,
                         std::vector<int32_t> kept)
    : stream_(std::make_unique<Stream>(
          weir_text_stream_new(tokenizer->handle().pointer, skip_special_tokens && kept.empty()))),
      kept_(std::move(kept)) {
  if (skip_special_tokens && !kept_.empty()) skips_ = std::move(tokenizer);
}

Detokenizer::~Detokenizer() = default;
Detokenizer::Detokenizer(Detokenizer&& other) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&& other) noexcept = default;

// A decoder can fail only on a vocabulary of a kind that needs the whole text; Tokenizer::Decode
// says why. A stream has no better answer than no text.
std::string Detokenizer::Push(int32_t id) {
  RustBuffer text;
  if (id < 0) return "";
  if (skips_ != nullptr && skips_->IsSpecial(id) &&
      std::find(kept_.begin(), kept_.end(), id) == kept_.end()) {
    return "";
  }
  if (weir_text_stream_push(stream_->pointer, id, text.get(), nullptr) != WEIR_TEXT_OK) return "";
  return std::string(text.view());
}

std::string Detokenizer::Flush() {
  RustBuffer text;
  if (weir_text_stream_flush(stream_->pointer, text.get(), nullptr) != WEIR_TEXT_OK) return "";
  return std::string(text.view());
}

}  // namespace weir::text
