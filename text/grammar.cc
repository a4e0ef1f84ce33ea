#include "text/grammar.h"

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "text/rust_handles.h"

namespace weir::text {

static_assert(static_cast<int>(GrammarKind::kLark) == WEIR_TEXT_GRAMMAR_LARK);
static_assert(static_cast<int>(GrammarKind::kJsonSchema) == WEIR_TEXT_GRAMMAR_JSON_SCHEMA);
static_assert(static_cast<int>(GrammarKind::kRegex) == WEIR_TEXT_GRAMMAR_REGEX);
static_assert(static_cast<int>(GrammarKind::kChoice) == WEIR_TEXT_GRAMMAR_CHOICE);
static_assert(static_cast<int>(GrammarState::kOpen) == WEIR_TEXT_GRAMMAR_OPEN);
static_assert(static_cast<int>(GrammarState::kMayEnd) == WEIR_TEXT_GRAMMAR_MAY_END);
static_assert(static_cast<int>(GrammarState::kComplete) == WEIR_TEXT_GRAMMAR_COMPLETE);

struct Grammar::Handle {
  ~Handle() { weir_text_grammar_free(pointer); }
  weir_text_grammar* pointer = nullptr;
};

struct GrammarMatcher::Handle {
  ~Handle() { weir_text_matcher_free(pointer); }
  weir_text_matcher* pointer = nullptr;
};

struct GrammarCompiler::Vocabulary {
  ~Vocabulary() { weir_text_vocabulary_free(pointer); }
  weir_text_vocabulary* pointer = nullptr;
};

Grammar::Grammar(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
Grammar::~Grammar() = default;

GrammarMatcher::GrammarMatcher(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
GrammarMatcher::~GrammarMatcher() = default;
GrammarMatcher::GrammarMatcher(GrammarMatcher&&) noexcept = default;
GrammarMatcher& GrammarMatcher::operator=(GrammarMatcher&&) noexcept = default;

absl::StatusOr<GrammarMatcher> GrammarMatcher::Start(const Grammar& grammar) {
  auto handle = std::make_unique<Handle>();
  RustBuffer error;
  const int32_t code =
      weir_text_matcher_new(grammar.handle().pointer, &handle->pointer, error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  return GrammarMatcher(std::move(handle));
}

absl::Status GrammarMatcher::Accept(int32_t id) {
  RustBuffer error;
  const int32_t code =
      weir_text_matcher_accept(handle_->pointer, static_cast<uint32_t>(id), error.get());
  return ToStatus(code, error);
}

absl::StatusOr<GrammarState> GrammarMatcher::FillMask(absl::Span<uint32_t> mask) {
  int32_t state = 0;
  RustBuffer error;
  const int32_t code =
      weir_text_matcher_mask(handle_->pointer, mask.data(), mask.size(), &state, error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  return static_cast<GrammarState>(state);
}

GrammarCompiler::GrammarCompiler(std::shared_ptr<const Tokenizer> tokenizer,
                                 std::vector<int32_t> end_ids, size_t cache_entries,
                                 size_t cache_bytes)
    : tokenizer_(std::move(tokenizer)),
      end_ids_(std::move(end_ids)),
      cache_entries_(cache_entries),
      cache_bytes_(cache_bytes) {}

GrammarCompiler::~GrammarCompiler() = default;

absl::StatusOr<const GrammarCompiler::Vocabulary*> GrammarCompiler::GetVocabulary() {
  std::lock_guard<std::mutex> lock(vocabulary_mutex_);
  if (vocabulary_ != nullptr) return vocabulary_.get();
  const std::vector<uint32_t> ends(end_ids_.begin(), end_ids_.end());
  auto vocabulary = std::make_unique<Vocabulary>();
  RustBuffer error;
  const int32_t code = weir_text_vocabulary_new(tokenizer_->handle().pointer, ends.data(),
                                                ends.size(), &vocabulary->pointer, error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  vocabulary_ = std::move(vocabulary);
  return vocabulary_.get();
}

void GrammarCompiler::Prepare() { GetVocabulary().status().IgnoreError(); }

absl::StatusOr<GrammarCompiler::Compiled> GrammarCompiler::Compile(const GrammarSource& source) {
  const std::string key = absl::StrCat(static_cast<int>(source.kind), ":", source.frame.size(), ":",
                                       source.frame, source.text);
  if (auto found = Find(key)) return Compiled{std::move(found), true};
  ASSIGN_OR_RETURN(const Vocabulary* vocabulary, GetVocabulary());
  auto handle = std::make_unique<Grammar::Handle>();
  RustBuffer error;
  const int32_t code = weir_text_grammar_new(vocabulary->pointer, static_cast<int32_t>(source.kind),
                                             Borrow(source.text), Borrow(source.frame),
                                             &handle->pointer, error.get());
  RETURN_IF_ERROR(ToStatus(code, error));
  auto grammar = std::make_shared<const Grammar>(std::move(handle));
  Keep(key, grammar);
  return Compiled{std::move(grammar), false};
}

std::shared_ptr<const Grammar> GrammarCompiler::Find(const std::string& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->second;
}

void GrammarCompiler::Keep(const std::string& key, std::shared_ptr<const Grammar> grammar) {
  if (key.size() > cache_bytes_ || cache_entries_ == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (by_key_.contains(key)) return;  // another thread compiled it too
  while (entries_.size() >= cache_entries_ || bytes_ + key.size() > cache_bytes_) {
    bytes_ -= entries_.back().first.size();
    by_key_.erase(entries_.back().first);
    entries_.pop_back();
  }
  entries_.emplace_front(key, std::move(grammar));
  by_key_.emplace(key, entries_.begin());
  bytes_ += key.size();
}

size_t GrammarCompiler::cached() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return entries_.size();
}

}  // namespace weir::text
