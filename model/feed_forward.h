// The feed-forward part of a layer: down(act(gate x) * up x), or down(act(up x)).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "model/batch.h"
#include "model/description.h"
#include "model/weights.h"

namespace weir::model {

class FeedForward {
 public:
  // `prefix`: of its tensors, our names ("layers.3.mlp.").
  static absl::StatusOr<FeedForward> Make(const FeedForwardDescription& description,
                                          const std::string& prefix, WeightReader& weights);
  // Floats of scratch per token that Forward takes.
  static int64_t ScratchFloats(const FeedForwardDescription& description);

  // out = ff(x), both [tokens, D].
  void Forward(const StepContext& step, const kernels::MatMulInput& x,
               const kernels::MatMulOutput& out) const;
  std::vector<const kernels::PackedMatrix*> Matrices() const { return {&in_, &down_}; }

 private:
  FeedForwardDescription description_;
  kernels::PackedMatrix in_, down_;  // in_: gate rows, then up rows
  FloatVector in_bias_, down_bias_;
};

}  // namespace weir::model
