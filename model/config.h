// Reading config.json field by field. Each misfit becomes one sentence that names the field and its
// value; all sentences of a document are reported together.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/status.h"

namespace weir::model {

namespace internal {
struct JsonState;
}

// One JSON object of the document. Cheap to copy; copies share the list of complaints and the
// record of which keys were read. A reader that fails records why and returns a value inside its
// bounds, so that parsing can go on to the next field; nothing may be built before status() is ok.
class Fields {
 public:
  // INVALID_ARGUMENT when `text` is not one JSON object. `document` ("config.json") leads messages.
  static absl::StatusOr<Fields> Parse(absl::string_view text, std::string document);

  // Present and not null.
  bool Has(absl::string_view key) const;
  // Present and null.
  bool IsNull(absl::string_view key) const;
  bool IsObject(absl::string_view key) const;
  bool IsArray(absl::string_view key) const;

  // Without a default the field is required. Null counts as missing.
  int64_t Int(absl::string_view key, int64_t min, int64_t max,
              std::optional<int64_t> fallback = std::nullopt) const;
  double Number(absl::string_view key, double min, double max,
                std::optional<double> fallback = std::nullopt) const;
  bool Bool(absl::string_view key, bool fallback) const;
  std::string String(absl::string_view key,
                     std::optional<std::string> fallback = std::nullopt) const;
  // One of `allowed`, refused by name otherwise.
  std::string Choice(absl::string_view key, std::initializer_list<absl::string_view> allowed,
                     std::optional<std::string> fallback = std::nullopt) const;
  // An integer or a list of them; empty when missing.
  std::vector<int64_t> IntList(absl::string_view key, int64_t min, int64_t max) const;
  // A list of finite numbers and nulls; empty when missing.
  std::vector<std::optional<double>> NumberList(absl::string_view key) const;
  std::vector<std::string> StringList(absl::string_view key) const;
  // An object; an empty one, with a complaint when `required`, when missing.
  Fields Object(absl::string_view key, bool required) const;
  // A list of objects; empty, with a complaint when `required`, when missing.
  std::vector<Fields> ObjectList(absl::string_view key, bool required) const;

  // Counts `keys` as read without looking at them.
  void Ignore(std::initializer_list<absl::string_view> keys) const;
  // Complains of every key that nobody asked for.
  void RefuseUnknown() const;
  // Complains of a field whose value is only refused by meaning: "<path>.<key> is <value>: <why>".
  void Refuse(absl::string_view key, absl::string_view why) const;

  // "layers[3].params"; empty for the document itself.
  const std::string& path() const { return path_; }
  bool ok() const;
  // INVALID_ARGUMENT with every complaint so far.
  absl::Status status() const;

 private:
  Fields(std::shared_ptr<internal::JsonState> state, const void* node, std::string path)
      : state_(std::move(state)), node_(node), path_(std::move(path)) {}
  const void* Find(absl::string_view key) const;  // nlohmann::json*, null when missing or null
  void Complain(absl::string_view key, absl::string_view what) const;
  std::string Name(absl::string_view key) const;

  std::shared_ptr<internal::JsonState> state_;
  const void* node_ = nullptr;
  std::string path_;
};

}  // namespace weir::model
