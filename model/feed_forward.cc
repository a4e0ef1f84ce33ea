#include "model/feed_forward.h"

#include <vector>

#include "kernels/pointwise.h"

namespace weir::model {

absl::StatusOr<FeedForward> FeedForward::Make(const FeedForwardDescription& description,
                                              const std::string& prefix, WeightReader& weights) {
  FeedForward ff;
  ff.description_ = description;
  std::vector<RowBlock> blocks;
  if (description.gated) blocks.push_back("gate_proj.weight");
  blocks.push_back("up_proj.weight");
  ASSIGN_OR_RETURN(ff.in_, weights.Matrix(prefix, blocks));
  ASSIGN_OR_RETURN(ff.down_, weights.Matrix(prefix, {"down_proj.weight"}));
  if (!description.bias) return ff;
  std::vector<float> bias;
  if (description.gated) {
    ASSIGN_OR_RETURN(bias, weights.Values(prefix + "gate_proj.bias"));
  }
  ASSIGN_OR_RETURN(const std::vector<float> up, weights.Values(prefix + "up_proj.bias"));
  bias.insert(bias.end(), up.begin(), up.end());
  ASSIGN_OR_RETURN(ff.in_bias_, FloatVector::From(bias, weights.stream()));
  ASSIGN_OR_RETURN(ff.down_bias_, weights.Vector(prefix + "down_proj.bias"));
  return ff;
}

int64_t FeedForward::ScratchFloats(const FeedForwardDescription& description) {
  return int64_t{description.intermediate_size} * (description.gated ? 3 : 1);
}

void FeedForward::Forward(const StepContext& step, const kernels::MatMulInput& x,
                          const kernels::MatMulOutput& out) const {
  Scratch::Scope scope(step.scratch);
  const int64_t tokens = x.x.size(0), size = description_.intermediate_size;
  TensorView in = step.scratch.Activations(tokens, in_.out());
  TensorView inner = in.Columns(0, size);
  if (description_.gated) {
    // In place on the CPU, where the two products are there before the first is written over.
    if (step.stream.device == Device::kCuda) inner = step.scratch.Activations(tokens, size);
    kernels::MatMulGated(x, in_, in_bias_.view(), description_.activation, in, inner, step.stream);
  } else {
    kernels::MatMul(x, in_, in_bias_.view(), in, step.stream);
    kernels::Activate(inner, description_.activation, inner, step.stream);
  }
  kernels::MatMul(inner, down_, down_bias_.view(), out, step.stream);
}

}  // namespace weir::model
