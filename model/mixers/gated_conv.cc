// short_conv: out(C * conv(B * x)), in_proj(x) = B | C | x, no activation.
#include "kernels/pointwise.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

using Params = GatedConvParams;
using Role = TensorNeed::Role;

class GatedConv final : public Mixer {
 public:
  GatedConv(const Params& params, int hidden) : p_(params), hidden_(hidden) {}

  absl::Status Load(const MixerPlace& place, WeightReader& weights) {
    const std::string& prefix = place.prefix;
    ASSIGN_OR_RETURN(in_, weights.Matrix(prefix, {"in_proj.weight"}));
    ASSIGN_OR_RETURN(conv_weight_, weights.Vector(prefix + "conv.weight"));
    ASSIGN_OR_RETURN(out_, weights.Matrix(prefix, {"out_proj.weight"}));
    if (p_.bias) {
      ASSIGN_OR_RETURN(in_bias_, weights.Vector(prefix + "in_proj.bias"));
      ASSIGN_OR_RETURN(conv_bias_, weights.Vector(prefix + "conv.bias"));
      ASSIGN_OR_RETURN(out_bias_, weights.Vector(prefix + "out_proj.bias"));
    }
    slot_offset_ = place.slot_offset;
    window_ = place.types.window;
    return absl::OkStatus();
  }

  void Forward(const StepContext& step, const kernels::MatMulInput& x,
               const kernels::MatMulOutput& out) const override {
    Scratch::Scope scope(step.scratch);
    TensorView in = step.scratch.Activations(x.x.size(0), 3 * hidden_);
    kernels::MatMul(x, in_, in_bias_.view(), in, step.stream);
    TensorView b = in.Columns(0, hidden_), c = in.Columns(hidden_, hidden_);
    TensorView y = in.Columns(2 * hidden_, hidden_);
    kernels::Multiply(b, y, y, step.stream);
    kernels::ShortConvArgs args;
    args.x = y;
    args.out = y;
    args.weight = conv_weight_.matrix(hidden_);
    args.bias = conv_bias_.view();
    args.activation = kernels::Activation::kNone;
    args.offsets = step.batch.offsets;
    args.slots = step.batch.slots;
    args.fresh = step.batch.fresh;
    args.window_dtype = window_;
    args.state = step.state.slots + slot_offset_;
    args.slot_stride_bytes = step.state.slot_bytes;
    kernels::ShortConv(args, step.stream);
    kernels::Multiply(c, y, y, step.stream);
    kernels::MatMul(y, out_, out_bias_.view(), out, step.stream);
  }

  int64_t OpScratchBytes(const StepLimits& /*limits*/, Stream /*stream*/) const override {
    return 0;
  }
  std::vector<const kernels::PackedMatrix*> Matrices() const override { return {&in_, &out_}; }

 private:
  DType window_ = DType::kF32;
  const Params p_;
  const int64_t hidden_;
  kernels::PackedMatrix in_, out_;
  FloatVector conv_weight_, in_bias_, conv_bias_, out_bias_;
  int64_t slot_offset_ = 0;
};

}  // namespace

void ListTensors(const GatedConvParams& p, int hidden, TensorList* list) {
  const int64_t d = hidden;
  list->Add("in_proj.weight", {3 * d, d}, Role::kMatrix);
  list->Add("conv.weight", {d, 1, p.size}, Role::kConv);
  list->Add("out_proj.weight", {d, d}, Role::kMatrix);
  if (p.bias) {
    list->Add("in_proj.bias", {3 * d}, Role::kBias);
    list->Add("conv.bias", {d}, Role::kBias);
    list->Add("out_proj.bias", {d}, Role::kBias);
  }
}

MixerNeeds Needs(const GatedConvParams& p, int hidden, const StateTypes& types) {
  MixerNeeds needs;
  needs.slot_bytes = AlignState(int64_t{p.size - 1} * hidden * DTypeSize(types.window));
  needs.scratch_floats = int64_t{3} * hidden;
  needs.state_flops = 2.0 * p.size * hidden;
  return needs;
}

absl::StatusOr<std::unique_ptr<Mixer>> Make(const GatedConvParams& params, const MixerPlace& place,
                                            WeightReader& weights) {
  auto mixer = std::make_unique<GatedConv>(params, place.hidden);
  RETURN_IF_ERROR(mixer->Load(place, weights));
  return mixer;
}

}  // namespace weir::model
