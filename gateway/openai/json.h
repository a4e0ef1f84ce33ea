// The JSON of a request: parsed within limits, then read field by field.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/api_error.h"

namespace weir::gateway {

using Json = nlohmann::ordered_json;  // keeps the order: models see tools as they were sent

// The object in `body`. An error, with 400: no JSON, not UTF-8, no object, a field twice, brackets
// deeper than 64 levels, more than a million values. Time and memory grow linearly with the body.
std::optional<ApiError> ParseObject(std::string_view body, Json* object);

// What is wrong with a request, so that a client learns all of it at once.
class Problems {
 public:
  // Those past the first 20 are dropped. `description` goes on from the field's name: "must be
  // ...".
  void Add(std::string param, std::string description);
  bool empty() const { return list_.empty(); }
  // REQUIRES: not empty.
  ApiError ToError() const;

 private:
  struct Problem {
    std::string param;
    std::string description;
  };
  std::vector<Problem> list_;
};

// The fields of one JSON object. Each that is read is known from then on; null counts as absent.
// A value of the wrong type is a problem and reads as absent.
class Fields {
 public:
  // `path`: of the object in the request, "messages[2]"; empty for the request itself. `object` and
  // `problems` must outlive this. REQUIRES: `object` is one.
  Fields(const Json& object, std::string path, Problems* problems);

  const Json* Take(std::string_view name);  // nullptr: absent
  std::optional<bool> Bool(std::string_view name);
  std::optional<int64_t> Int(std::string_view name, int64_t least = INT32_MIN,
                             int64_t most = INT32_MAX);
  std::optional<float> Number(std::string_view name);
  // Points into the object.
  const std::string* String(std::string_view name);
  const Json* Object(std::string_view name);
  const Json* Array(std::string_view name);

  // A field of the API that is not served: a problem where it is given. `why` goes on from the
  // name.
  void Refuse(std::string_view name, std::string_view why);
  // The value must be the only one there is here, such as store: false.
  void Only(std::string_view name, const Json& value, std::string_view why);
  // Everything that nobody has read.
  void RefuseUnknown();

  std::string Path(std::string_view name) const;
  void Problem(std::string_view name, std::string description);
  Problems* problems() { return problems_; }

 private:
  const Json& object_;
  const std::string path_;
  Problems* const problems_;
  std::vector<bool> known_;  // by position in the object
};

// "a string", "an integer", "null", ...: what `value` is.
const char* Kind(const Json& value);

}  // namespace weir::gateway
