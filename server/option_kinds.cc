#include "server/option_kinds.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "core/bytes.h"

namespace weir::server {
namespace {

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

OptionSpec Text(std::string name, std::string* target, std::string help) {
  return {std::move(name), std::move(help), *target, "text", [target](std::string_view text) {
            *target = std::string(text);
            return absl::OkStatus();
          }};
}

OptionSpec Choice(std::string name, std::string* target, std::vector<std::string> allowed,
                  std::string help) {
  std::string kind = absl::StrJoin(allowed, "|");
  auto set = [target, allowed = std::move(allowed)](std::string_view text) {
    if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", ToAbsl(text), "\" is none of ", absl::StrJoin(allowed, ", ")));
    }
    *target = std::string(text);
    return absl::OkStatus();
  };
  return {std::move(name), std::move(help), *target, std::move(kind), std::move(set)};
}

OptionSpec Bool(std::string name, bool* target, std::string help) {
  auto set = [target](std::string_view text) {
    if (text != "true" && text != "false") {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", ToAbsl(text), "\" is neither true nor false"));
    }
    *target = text == "true";
    return absl::OkStatus();
  };
  return {std::move(name), std::move(help), *target ? "true" : "false", "true|false",
          std::move(set)};
}

OptionSpec Integer(std::string name, int64_t* target, int64_t least, int64_t most,
                   std::string help) {
  auto set = [target, least, most](std::string_view text) {
    int64_t value = 0;
    if (!absl::SimpleAtoi(ToAbsl(text), &value)) {
      return absl::InvalidArgumentError(absl::StrCat("\"", ToAbsl(text), "\" is no whole number"));
    }
    if (value < least || value > most) {
      return absl::InvalidArgumentError(
          absl::StrCat(value, " is out of range; allowed: ", least, " to ", most));
    }
    *target = value;
    return absl::OkStatus();
  };
  return {std::move(name), std::move(help), absl::StrCat(*target), "integer", std::move(set)};
}

OptionSpec Bytes(std::string name, int64_t* target, int64_t least, int64_t most, std::string help) {
  auto set = [target, least, most](std::string_view text) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, ParseBytes(text));
    if (value < least || value > most) {
      return absl::InvalidArgumentError(
          absl::StrCat(FormatBytes(value), " is out of range; allowed: ", FormatBytes(least),
                       " to ", FormatBytes(most)));
    }
    *target = value;
    return absl::OkStatus();
  };
  std::string shown =
      absl::StrReplaceAll(*target == 0 ? std::string("0") : FormatBytes(*target), {{" ", ""}});
  return {std::move(name), std::move(help), std::move(shown), "bytes", std::move(set)};
}

OptionSpec Duration(std::string name, int64_t* target, int64_t least_us, std::string help) {
  auto set = [target, least_us](std::string_view text) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, ParseDurationUs(text));
    if (value < least_us) {
      return absl::InvalidArgumentError(
          absl::StrCat(ToAbsl(text), " is too short; at least ", FormatDurationUs(least_us)));
    }
    *target = value;
    return absl::OkStatus();
  };
  return {std::move(name), std::move(help), FormatDurationUs(*target), "duration", std::move(set)};
}

absl::Status CheckAddress(std::string_view name, const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(name), ": \"", address,
                     "\" is no address; write host:port, such as 127.0.0.1:50051 or [::]:50051"));
  }
  return absl::OkStatus();
}

}  // namespace weir::server
