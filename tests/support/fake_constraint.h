// FakeConstraint: a TokenConstraint without a grammar. What it allows is a hash of all tokens so
// far, so a token that is missed, doubled or given to the wrong sequence shows as a wrong answer.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "scheduler/token_constraint.h"

namespace weir::testing {

class FakeConstraint final : public scheduler::ConstraintSource {
 public:
  struct Rules {
    uint64_t seed = 0;
    int32_t vocab = 0;
    std::vector<int32_t> stop_ids;
    int32_t complete_after = INT32_MAX;  // tokens; then only stop ids are allowed
    int32_t fails_at = -1;               // no mask can be made for this token; -1: never
    int64_t mask_us = 0;                 // how long a mask takes
  };
  explicit FakeConstraint(Rules rules) : rules_(std::move(rules)) {}

  std::unique_ptr<scheduler::TokenConstraint> Start() const override;

  // Masks made and tokens taken by all that were started.
  int64_t masks() const { return masks_; }
  int64_t accepted() const { return accepted_; }

 private:
  class Following;
  const Rules rules_;
  mutable std::atomic<int64_t> masks_{0}, accepted_{0};
};

}  // namespace weir::testing
