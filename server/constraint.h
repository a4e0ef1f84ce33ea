// What an answer must be: weir.v1.Constraint -> a grammar -> what the scheduler follows.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "scheduler/token_constraint.h"
#include "text/answer_style.h"
#include "text/grammar.h"
#include "text/tools.h"

namespace weir::v1 {
class Constraint;
}

namespace weir::server {

class Violations;
struct ServedModel;

// A constraint before it is compiled.
struct ConstraintSpec {
  std::string field;  // that gave it: "constraint.json_schema"
  text::GrammarSource source;
  // Instead of a source: the answer is calls of these tools, several if `parallel`.
  std::vector<text::Tool> calls;
  bool parallel = true;
};

// Nothing where the constraint is wrong; then `violations` says so.
std::optional<ConstraintSpec> ToConstraintSpec(const v1::Constraint& constraint, int64_t max_bytes,
                                               Violations* violations);

// What is to be compiled, with what may stand in front of it: `reasoning`, as the rendered prompt
// ends. INVALID_ARGUMENT: the tools' calls cannot be held to their schemas, or are too long.
absl::StatusOr<text::GrammarSource> ToGrammarSource(ConstraintSpec spec,
                                                    text::ReasoningStart reasoning,
                                                    const ServedModel& model, int64_t max_bytes);

// A compiled constraint of one request. `end_ids` are allowed where the grammar may end.
class GrammarConstraint final : public scheduler::ConstraintSource {
 public:
  GrammarConstraint(std::shared_ptr<const text::Grammar> grammar, std::vector<int32_t> end_ids)
      : grammar_(std::move(grammar)), end_ids_(std::move(end_ids)) {}

  std::unique_ptr<scheduler::TokenConstraint> Start() const override;

  const std::vector<int32_t>& end_ids() const { return end_ids_; }
  // Why a choice could not be followed any further; empty: all could. Any thread.
  std::string failure() const;
  void SetFailure(std::string_view why) const;

 private:
  const std::shared_ptr<const text::Grammar> grammar_;
  const std::vector<int32_t> end_ids_;
  mutable std::mutex mutex_;
  mutable std::string failure_;
};

}  // namespace weir::server
