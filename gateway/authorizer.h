// Who may use the HTTP door, and how much. The door asks; whoever holds the keys answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "gateway/api_error.h"

namespace weir::gateway {

class Authorizer {
 public:
  // One admitted request; ends with its destruction, on any thread.
  class Use {
   public:
    virtual ~Use() = default;
    // Tokens of the prompt and of the answer, as they become known.
    virtual void AddTokens(int64_t tokens) = 0;
  };

  virtual ~Authorizer() = default;

  // Any thread; must not wait. `authorization` is the header's value, empty where there is none.
  // Returns the key's id, for the access log, or the error for the client (401). Counts nothing.
  virtual std::variant<std::string, ApiError> Check(std::string_view authorization,
                                                    std::string_view client_address) = 0;
  // The same for a request that takes the model's time, which counts against the key's limits
  // (429). The key was checked before.
  virtual std::variant<std::unique_ptr<Use>, ApiError> Admit(std::string_view authorization) = 0;
};

}  // namespace weir::gateway
