// The C ABI of the Rust crate in C++ clothes. Private to this folder.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "text/rust/include/weir_text.h"
#include "text/tokenizer.h"

namespace weir::text {

struct Tokenizer::Handle {
  explicit Handle(weir_text_tokenizer* p) : pointer(p) {}
  ~Handle() { weir_text_tokenizer_free(pointer); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  weir_text_tokenizer* pointer;
};

// An owned buffer of the crate.
class RustBuffer {
 public:
  RustBuffer() = default;
  ~RustBuffer() { weir_text_buffer_free(&buffer_); }
  RustBuffer(const RustBuffer&) = delete;
  RustBuffer& operator=(const RustBuffer&) = delete;

  weir_text_buffer* get() { return &buffer_; }
  std::string_view view() const { return {buffer_.data, buffer_.len}; }

 private:
  weir_text_buffer buffer_ = {nullptr, 0, 0};
};

inline weir_text_string Borrow(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view View(weir_text_string text) { return {text.data, text.len}; }

// The status of a call. `where`, if any, stands before the sentence.
inline absl::Status ToStatus(int32_t code, const RustBuffer& error, std::string_view where = {}) {
  if (code == WEIR_TEXT_OK) return absl::OkStatus();
  std::string message(error.view());
  if (!where.empty()) message = std::string(where) + ": " + message;
  switch (code) {
    case WEIR_TEXT_INVALID_ARGUMENT:
      return absl::InvalidArgumentError(message);
    case WEIR_TEXT_NOT_FOUND:
      return absl::NotFoundError(message);
    case WEIR_TEXT_EXHAUSTED:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace weir::text
