#include "text/tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/files.h"
#include "core/status.h"
#include "text/rust_handles.h"

namespace weir::text {
namespace {

constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;
constexpr size_t kMaxConfigBytes = size_t{64} << 20;

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {
  const weir_text_tokenizer* rust = handle_->pointer;
  vocab_size_ = static_cast<int32_t>(weir_text_vocab_size(rust));
  special_.assign(vocab_size_, false);
  uint32_t id = 0;
  int32_t special = 0;
  weir_text_string content = {nullptr, 0};
  for (size_t i = 0; weir_text_added_token(rust, i, &id, &content, &special) != 0; ++i) {
    added_tokens_.push_back({static_cast<int32_t>(id), std::string(View(content)), special != 0});
    if (special != 0) special_[id] = true;
  }
  weir_text_string name = {nullptr, 0};
  for (size_t i = 0; weir_text_named_token(rust, i, &name, &content) != 0; ++i) {
    named_tokens_.push_back({std::string(View(name)), std::string(View(content))});
  }
  bos_id_ = NamedTokenId("bos_token");
  eos_id_ = NamedTokenId("eos_token");
}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const auto file = [&](const char* name) { return absl::StrCat(model_dir, "/", name); };
  ASSIGN_OR_RETURN(const std::string tokenizer,
                   ReadFile(file("tokenizer.json"), kMaxTokenizerBytes));
  ASSIGN_OR_RETURN(const std::string config,
                   ReadFileIfPresent(file("tokenizer_config.json"), kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string special,
                   ReadFileIfPresent(file("special_tokens_map.json"), kMaxConfigBytes));
  absl::StatusOr<std::shared_ptr<const Tokenizer>> loaded = FromJson(tokenizer, config, special);
  if (!loaded.ok()) {
    return absl::Status(loaded.status().code(),
                        absl::StrCat(model_dir, ": ", loaded.status().message()));
  }
  return loaded;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::FromJson(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json,
    std::string_view special_tokens_map_json) {
  weir_text_tokenizer* rust = nullptr;
  RustBuffer error;
  const int32_t code =
      weir_text_tokenizer_new(Borrow(tokenizer_json), Borrow(tokenizer_config_json),
                              Borrow(special_tokens_map_json), &rust, error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::make_unique<Handle>(rust)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       bool add_special_tokens,
                                                       bool parse_special) const {
  weir_text_ids ids = {nullptr, 0, 0};
  RustBuffer error;
  const int32_t code = weir_text_encode(handle_->pointer, Borrow(text), add_special_tokens,
                                        parse_special, &ids, error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  std::vector<int32_t> out(ids.data, ids.data + ids.len);
  weir_text_ids_free(&ids);
  return out;
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size_) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", ids[i], " at position ", i,
                                                     " is outside the vocabulary of ", vocab_size_,
                                                     " tokens"));
    }
  }
  const std::vector<uint32_t> unsigned_ids(ids.begin(), ids.end());
  RustBuffer text;
  RustBuffer error;
  const int32_t code = weir_text_decode(handle_->pointer, unsigned_ids.data(), unsigned_ids.size(),
                                        skip_special_tokens, text.get(), error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  return std::string(text.view());
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  RustBuffer bytes;
  if (id < 0 || weir_text_id_to_bytes(handle_->pointer, id, bytes.get()) == 0) return "";
  return std::string(bytes.view());
}

std::optional<std::string> Tokenizer::IdToToken(int32_t id) const {
  RustBuffer token;
  if (id < 0 || weir_text_id_to_token(handle_->pointer, id, token.get()) == 0) return std::nullopt;
  return std::string(token.view());
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token) const {
  uint32_t id = 0;
  if (weir_text_token_to_id(handle_->pointer, Borrow(token), &id) == 0) return std::nullopt;
  return static_cast<int32_t>(id);
}

bool Tokenizer::IsSpecial(int32_t id) const { return id >= 0 && id < vocab_size_ && special_[id]; }

std::optional<std::string> Tokenizer::NamedTokenText(std::string_view name) const {
  for (const NamedToken& token : named_tokens_) {
    if (token.name == name) return token.content;
  }
  return std::nullopt;
}

std::optional<int32_t> Tokenizer::NamedTokenId(std::string_view name) const {
  const std::optional<std::string> content = NamedTokenText(name);
  return content ? TokenId(*content) : std::nullopt;
}

}  // namespace weir::text
