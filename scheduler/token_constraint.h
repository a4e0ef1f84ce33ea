// TokenConstraint: what the answer of a sequence may be, one token after another. Implemented in
// server/; the scheduler sees ids and bits.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/types/span.h"

namespace weir::scheduler {

// One answer on its way. Called by one thread at a time, never by the engine's: both calls may take
// long. After a `false` nothing more is called, and the answer ends with kError.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Bit id % 32 of mask[id / 32]: `id` may come next. At least one bit is set; those of the ids
  // that end the answer are set exactly where it may end. False: nothing can.
  virtual bool FillMask(absl::Span<uint32_t> mask) = 0;
  // The answer goes on with `token`, which the last mask allowed.
  virtual bool Accept(int32_t token) = 0;
};

// Of a request: the beginning of each of its choices. Any thread; constant.
class ConstraintSource {
 public:
  virtual ~ConstraintSource() = default;
  // Not on the engine's thread: may take long. Null: it cannot.
  virtual std::unique_ptr<TokenConstraint> Start() const = 0;
};

}  // namespace weir::scheduler
