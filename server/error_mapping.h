// Statuses of ours as gRPC clients see them: a code, a sentence and google.rpc details.
#pragma once

#include <string_view>

#include "core/status.h"

namespace grpc {
class Status;
}

namespace weir::server {

// FAILED_PRECONDITION: the model lacks what the call needs. `type` is "TOKENIZER",
// "CHAT_TEMPLATE" or "END_TOKEN"; `description` says what to do instead.
absl::Status MissingPrecondition(std::string_view type, std::string_view model,
                                 std::string_view description);

// The code and the message as they are; details from core/error_details.h as BadRequest,
// QuotaFailure and RetryInfo, from MissingPrecondition as PreconditionFailure. Long ones are
// shortened: the trailer that carries them is limited to 8 KiB by gRPC.
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace weir::server
