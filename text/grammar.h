// What an answer may be: JSON under a schema, a regular expression, one of some choices, a Lark
// grammar. Compiled over a tokenizer's vocabulary; a matcher then says which tokens may come next.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "text/tokenizer.h"

namespace weir::text {

enum class GrammarKind : unsigned char {
  kLark,        // its start rule is `start`
  kJsonSchema,  // a JSON value that is valid under it
  kRegex,       // the whole text matches
  kChoice,      // a JSON array of strings: one of them
};

struct GrammarSource {
  GrammarKind kind = GrammarKind::kLark;
  std::string text;
  // Empty, or the Lark text of what stands around the answer, in which @answer stands for it.
  std::string frame;
};

enum class GrammarState : unsigned char {
  kOpen,      // the answer must go on
  kMayEnd,    // it may end here, or go on
  kComplete,  // nothing may follow
};

// A compiled grammar; constant, for any thread.
class Grammar {
 public:
  struct Handle;
  explicit Grammar(std::unique_ptr<Handle> handle);
  ~Grammar();
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;

  const Handle& handle() const { return *handle_; }

 private:
  std::unique_ptr<Handle> handle_;
};

// One answer on its way through a grammar. One thread at a time.
class GrammarMatcher {
 public:
  static absl::StatusOr<GrammarMatcher> Start(const Grammar& grammar);
  ~GrammarMatcher();
  GrammarMatcher(GrammarMatcher&&) noexcept;
  GrammarMatcher& operator=(GrammarMatcher&&) noexcept;

  // The answer goes on with `id`, one that the last mask allowed. After an error the matcher is of
  // no more use.
  absl::Status Accept(int32_t id);

  // Bit id % 32 of mask[id / 32]: `id` may come next; of the end tokens only the first, where the
  // answer may end. All clear when it is complete. RESOURCE_EXHAUSTED: finding out takes more than
  // the library's limits allow. INVALID_ARGUMENT: no token of the vocabulary fits.
  absl::StatusOr<GrammarState> FillMask(absl::Span<uint32_t> mask);

 private:
  struct Handle;
  explicit GrammarMatcher(std::unique_ptr<Handle> handle);
  std::unique_ptr<Handle> handle_;
};

// Compiles grammars for one tokenizer and keeps those used last. Any thread.
class GrammarCompiler {
 public:
  struct Compiled {
    std::shared_ptr<const Grammar> grammar;
    bool cached = false;
  };

  // `end_ids`: the tokens that end an answer. At most `cache_entries` grammars are kept, of
  // altogether at most `cache_bytes` of source.
  GrammarCompiler(std::shared_ptr<const Tokenizer> tokenizer, std::vector<int32_t> end_ids,
                  size_t cache_entries, size_t cache_bytes);
  ~GrammarCompiler();

  // Arranges the vocabulary now, instead of with the first grammar: about a microsecond per token
  // and more. Compile waits for it.
  void Prepare();

  // INVALID_ARGUMENT, with the reason: the source cannot be compiled, or only beyond the library's
  // limits; or the tokenizer has none of the end tokens. May take a while: for text threads.
  absl::StatusOr<Compiled> Compile(const GrammarSource& source);

  size_t cached() const;

 private:
  struct Vocabulary;
  using Entry = std::pair<std::string, std::shared_ptr<const Grammar>>;

  absl::StatusOr<const Vocabulary*> GetVocabulary();
  std::shared_ptr<const Grammar> Find(const std::string& key);
  void Keep(const std::string& key, std::shared_ptr<const Grammar> grammar);

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::vector<int32_t> end_ids_;
  const size_t cache_entries_, cache_bytes_;

  std::mutex vocabulary_mutex_;
  std::unique_ptr<Vocabulary> vocabulary_;  // made when first needed, then constant

  mutable std::mutex mutex_;  // guards what follows
  std::list<Entry> entries_;  // used last first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
  size_t bytes_ = 0;  // of the keys
};

}  // namespace weir::text
