#include "core/access_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/check.h"
#include "core/clock.h"
#include "core/error_details.h"
#include "core/files.h"
#include "core/log.h"

namespace weir {
namespace {

constexpr char kDigestPrefix[] = "sha256:";
constexpr size_t kMaxFileBytes = 64 << 20;
constexpr int64_t kLookEveryUs = 1'000'000;
constexpr double kMinuteUs = 60e6;

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

absl::Status ParseLimit(absl::string_view word, KeyLimits* limits) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(word, absl::MaxSplits('=', 1));
  int64_t* target = parts.first == "requests-per-minute" ? &limits->requests_per_minute
                    : parts.first == "tokens-per-minute" ? &limits->tokens_per_minute
                    : parts.first == "concurrent"        ? &limits->concurrent
                                                         : nullptr;
  if (target == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", word,
        "\" is no limit; there are requests-per-minute=N, tokens-per-minute=N and concurrent=N"));
  }
  if (!absl::SimpleAtoi(parts.second, target) || *target < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", word, "\" needs a whole number of at least 1"));
  }
  return absl::OkStatus();
}

absl::Status ParseDigest(absl::string_view word, std::array<uint8_t, 32>* digest) {
  const bool has_prefix = absl::StartsWith(word, kDigestPrefix);
  const absl::string_view hex = has_prefix ? word.substr(strlen(kDigestPrefix)) : word;
  if (!has_prefix || hex.size() != 64 ||
      !std::all_of(hex.begin(), hex.end(), [](char c) { return absl::ascii_isxdigit(c); })) {
    return absl::InvalidArgumentError(
        "the second word must be sha256: and the 64 hexadecimal digits of the key's SHA-256");
  }
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), digest->begin());
  return absl::OkStatus();
}

absl::StatusOr<AccessKey> ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (words.size() < 2) {
    return absl::InvalidArgumentError("a line is: NAME sha256:HEX [LIMIT=N ...]");
  }
  AccessKey key;
  key.name = std::string(words[0]);
  RETURN_IF_ERROR(ParseDigest(words[1], &key.digest));
  for (size_t i = 2; i < words.size(); ++i) RETURN_IF_ERROR(ParseLimit(words[i], &key.limits));
  return key;
}

// What of a file tells that it changed.
struct FileMark {
  int64_t inode = 0, size = 0, seconds = 0, nanoseconds = 0;
  bool operator==(const FileMark&) const = default;
};

std::optional<FileMark> MarkOf(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return std::nullopt;
  return FileMark{static_cast<int64_t>(info.st_ino), info.st_size, info.st_mtim.tv_sec,
                  info.st_mtim.tv_nsec};
}

absl::StatusOr<std::vector<AccessKey>> ReadKeys(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  absl::StatusOr<std::vector<AccessKey>> keys = ParseAccessKeys(text);
  if (!keys.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", keys.status().message()));
  }
  return keys;
}

// So much a minute, refilled evenly.
class Allowance {
 public:
  // `per_minute` 0: no limit. Returns 0 when `least` is there, else the microseconds until it is.
  int64_t WaitFor(double least, int64_t per_minute, int64_t now_us) {
    if (per_minute == 0) return 0;
    Refill(per_minute, now_us);
    const double missing = least - left_;
    return missing <= 0 ? 0 : static_cast<int64_t>(missing * kMinuteUs / per_minute) + 1;
  }
  void Take(double amount) { left_ -= amount; }

 private:
  void Refill(int64_t per_minute, int64_t now_us) {
    const double most = static_cast<double>(per_minute);
    if (since_us_ < 0) {
      left_ = most;
    } else {
      left_ += most * static_cast<double>(now_us - since_us_) / kMinuteUs;
    }
    left_ = std::min(left_, most);
    since_us_ = now_us;
  }
  double left_ = 0;
  int64_t since_us_ = -1;  // -1: never used
};

absl::Status TooMuch(std::string_view what, const std::string& name, int64_t limit,
                     int64_t wait_us) {
  const int64_t wait_ms = std::max<int64_t>(1, (wait_us + 999) / 1000);
  return Exhausted(absl::StrCat("key:", ToAbsl(what)),
                   absl::StrCat("the API key \"", name, "\" has used its ", limit, " ",
                                ToAbsl(what), "; try again in ", (wait_ms + 999) / 1000, " s"),
                   wait_ms);
}

}  // namespace

// What a key has used; outlives the key's line, so that a reload forgives nothing.
struct AccessKeys::Account {
  std::string name;
  KeyLimits limits;
  Allowance requests, tokens;
  int64_t running = 0;
};

struct AccessKeys::Impl {
  std::string path;
  const Clock* clock = nullptr;
  mutable std::mutex mutex;  // guards what follows
  std::vector<AccessKey> keys;
  std::map<std::string, std::shared_ptr<Account>> accounts;
  std::optional<FileMark> mark;
  int64_t looked_us = 0;

  void Take(std::vector<AccessKey> read) {
    keys = std::move(read);
    for (const AccessKey& key : keys) {
      std::shared_ptr<Account>& account = accounts[key.name];
      if (account == nullptr) {
        account = std::make_shared<Account>();
        account->name = key.name;  // never again: it is read without the lock
      }
      account->limits = key.limits;
    }
  }

  absl::Status Read() {
    mark = MarkOf(path);
    ASSIGN_OR_RETURN(std::vector<AccessKey> read, ReadKeys(path));
    Take(std::move(read));
    return absl::OkStatus();
  }

  void Look() {
    const int64_t now_us = clock->NowUs();
    if (now_us - looked_us < kLookEveryUs) return;
    looked_us = now_us;
    const std::optional<FileMark> now = MarkOf(path);
    // A file that is gone for a moment is being replaced.
    if (!now || now == mark) return;
    const absl::Status status = Read();
    if (status.ok()) {
      LogInfo("API keys read again: ", keys.size());
    } else {
      LogError("the API keys stay as they were: ", status.message());
    }
  }

  // REQUIRES: mutex held.
  absl::StatusOr<std::shared_ptr<Account>> Find(std::string_view secret) {
    Look();
    if (secret.empty()) {
      return absl::UnauthenticatedError(
          "an API key is needed: send it as \"Authorization: Bearer KEY\"");
    }
    const std::array<uint8_t, 32> digest = DigestOf(secret);
    const AccessKey* found = nullptr;
    for (const AccessKey& key : keys) {  // all of them, whichever it is
      if (CRYPTO_memcmp(key.digest.data(), digest.data(), digest.size()) == 0) found = &key;
    }
    if (found == nullptr) return absl::UnauthenticatedError("the API key is not known here");
    return accounts.at(found->name);
  }
};

absl::StatusOr<std::vector<AccessKey>> ParseAccessKeys(std::string_view text) {
  std::vector<AccessKey> keys;
  std::set<std::string> names;
  std::set<std::array<uint8_t, 32>> digests;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(ToAbsl(text), '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    absl::StatusOr<AccessKey> key = ParseLine(line);
    absl::Status status = key.status();
    if (status.ok() && !names.insert(key->name).second) {
      status = absl::InvalidArgumentError(absl::StrCat("the name ", key->name, " is given twice"));
    }
    if (status.ok() && !digests.insert(key->digest).second) {
      status = absl::InvalidArgumentError("the same key is given twice");
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", status.message()));
    }
    keys.push_back(*std::move(key));
  }
  return keys;
}

std::string FormatAccessKey(const AccessKey& key) {
  std::string line =
      absl::StrCat(key.name, " ", kDigestPrefix,
                   absl::BytesToHexString(absl::string_view(
                       reinterpret_cast<const char*>(key.digest.data()), key.digest.size())));
  const KeyLimits& limits = key.limits;
  if (limits.requests_per_minute > 0) {
    absl::StrAppend(&line, " requests-per-minute=", limits.requests_per_minute);
  }
  if (limits.tokens_per_minute > 0) {
    absl::StrAppend(&line, " tokens-per-minute=", limits.tokens_per_minute);
  }
  if (limits.concurrent > 0) absl::StrAppend(&line, " concurrent=", limits.concurrent);
  return line;
}

std::string NewSecret() {
  std::array<unsigned char, 32> bytes{};
  WEIR_CHECK(RAND_bytes(bytes.data(), bytes.size()) == 1);
  std::string text;
  absl::WebSafeBase64Escape(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()), &text);
  return absl::StrCat("weir-", text);
}

std::array<uint8_t, 32> DigestOf(std::string_view secret) {
  std::array<uint8_t, 32> digest{};
  WEIR_CHECK(
      EVP_Digest(secret.data(), secret.size(), digest.data(), nullptr, EVP_sha256(), nullptr) == 1);
  return digest;
}

AccessKeys::Use::Use(AccessKeys* keys, std::shared_ptr<Account> account)
    : keys_(keys), account_(std::move(account)) {}
AccessKeys::Use::Use(Use&& other) noexcept
    : keys_(std::exchange(other.keys_, nullptr)), account_(std::move(other.account_)) {}
AccessKeys::Use& AccessKeys::Use::operator=(Use&& other) noexcept {
  std::swap(keys_, other.keys_);
  std::swap(account_, other.account_);
  return *this;
}
AccessKeys::Use::~Use() {
  if (keys_ == nullptr) return;
  std::lock_guard<std::mutex> lock(keys_->impl_->mutex);
  --account_->running;
}

void AccessKeys::Use::AddTokens(int64_t tokens) {
  if (keys_ == nullptr) return;
  std::lock_guard<std::mutex> lock(keys_->impl_->mutex);
  account_->tokens.Take(static_cast<double>(tokens));
}

std::string_view AccessKeys::Use::name() const {
  return account_ == nullptr ? std::string_view() : account_->name;
}

AccessKeys::AccessKeys(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AccessKeys::~AccessKeys() = default;

absl::StatusOr<std::unique_ptr<AccessKeys>> AccessKeys::Load(const std::string& path,
                                                             const Clock* clock) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->clock = clock;
  impl->looked_us = clock->NowUs();
  RETURN_IF_ERROR(impl->Read());
  return std::unique_ptr<AccessKeys>(new AccessKeys(std::move(impl)));
}

absl::Status AccessKeys::Reload() {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->Read();
}

int64_t AccessKeys::num_keys() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return static_cast<int64_t>(impl_->keys.size());
}

absl::StatusOr<std::string> AccessKeys::Check(std::string_view secret) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  ASSIGN_OR_RETURN(const std::shared_ptr<Account> account, impl_->Find(secret));
  return account->name;
}

absl::StatusOr<AccessKeys::Use> AccessKeys::Admit(std::string_view secret) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  ASSIGN_OR_RETURN(std::shared_ptr<Account> account, impl_->Find(secret));
  const KeyLimits& limits = account->limits;
  const int64_t now_us = impl_->clock->NowUs();
  if (limits.concurrent > 0 && account->running >= limits.concurrent) {
    return TooMuch("requests at once", account->name, limits.concurrent, 1'000'000);
  }
  const int64_t tokens_us = account->tokens.WaitFor(1, limits.tokens_per_minute, now_us);
  if (tokens_us > 0) {
    return TooMuch("tokens per minute", account->name, limits.tokens_per_minute, tokens_us);
  }
  const int64_t requests_us = account->requests.WaitFor(1, limits.requests_per_minute, now_us);
  if (requests_us > 0) {
    return TooMuch("requests per minute", account->name, limits.requests_per_minute, requests_us);
  }
  account->requests.Take(1);
  ++account->running;
  return Use(this, std::move(account));
}

std::string_view BearerSecret(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size()) return {};
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (absl::ascii_tolower(static_cast<unsigned char>(authorization[i])) != kScheme[i]) return {};
  }
  const absl::string_view secret =
      absl::StripAsciiWhitespace(ToAbsl(authorization.substr(kScheme.size())));
  return {secret.data(), secret.size()};
}

}  // namespace weir
