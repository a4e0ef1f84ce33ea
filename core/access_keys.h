// AccessKeys: who may call, and how much. Kept in a file that holds no key, only their SHA-256.
//
//   # name   SHA-256 of the key         limits, each optional
//   alice    sha256:9f86d081884c7d65...  requests-per-minute=60 tokens-per-minute=100000
//   concurrent=4
//
// Keys are random (256 bits, see NewSecret), so that a plain hash of them cannot be searched. The
// file is read again when it changes (looked at no more than once a second) or when told to; a file
// that has become wrong is reported and the keys in force stay. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace weir {

class Clock;

// 0: no limit. Minutes are refilled evenly: after a pause a key has one minute's worth at once.
struct KeyLimits {
  int64_t requests_per_minute = 0;
  int64_t tokens_per_minute = 0;  // prompt and answer
  int64_t concurrent = 0;         // requests running or waiting
};

struct AccessKey {
  std::string name;
  std::array<uint8_t, 32> digest{};  // SHA-256 of the key
  KeyLimits limits;
};

// INVALID_ARGUMENT that names the line: not the form above, a name or a key given twice, a limit
// unknown or out of range.
absl::StatusOr<std::vector<AccessKey>> ParseAccessKeys(std::string_view text);
// One line of the file, without its end.
std::string FormatAccessKey(const AccessKey& key);
// A new key, "weir-" and 43 letters of base64url: 256 random bits.
std::string NewSecret();
std::array<uint8_t, 32> DigestOf(std::string_view secret);

class AccessKeys {
 public:
  struct Account;

  // One request of a key: counts as running until destroyed. Movable.
  class Use {
   public:
    Use() = default;  // of nobody: no limits
    Use(Use&& other) noexcept;
    Use& operator=(Use&& other) noexcept;
    ~Use();
    // Takes tokens from the key's minute, which may be overdrawn: later requests wait for it.
    void AddTokens(int64_t tokens);
    // The key's name; empty: of nobody.
    std::string_view name() const;

   private:
    friend class AccessKeys;
    Use(AccessKeys* keys, std::shared_ptr<Account> account);
    AccessKeys* keys_ = nullptr;
    std::shared_ptr<Account> account_;
  };

  // `clock` outlives it. NOT_FOUND, or INVALID_ARGUMENT with file and line.
  static absl::StatusOr<std::unique_ptr<AccessKeys>> Load(const std::string& path,
                                                          const Clock* clock);
  ~AccessKeys();

  // The name of the key. UNAUTHENTICATED: empty, or no key of the file. Takes the same time for
  // every wrong key. Counts nothing.
  absl::StatusOr<std::string> Check(std::string_view secret);
  // The same, and counts one request. RESOURCE_EXHAUSTED, with the limit's name and when to try
  // again: too many requests or tokens in a minute, or too many at once. Uses must not outlive this
  // object.
  absl::StatusOr<Use> Admit(std::string_view secret);

  // Reads the file again. On an error the keys in force stay.
  absl::Status Reload();
  int64_t num_keys() const;

 private:
  struct Impl;
  explicit AccessKeys(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The key in "Bearer KEY" (the scheme in any case); empty for anything else.
std::string_view BearerSecret(std::string_view authorization);

}  // namespace weir
