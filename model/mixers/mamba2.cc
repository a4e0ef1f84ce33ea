// mamba2: S = exp(g) S + B (dt x)^T, y = S^T C + D x, out = out_proj(norm(y, z)).
// Maths: docs/hybrid-format.md; Dao & Gu, "Transformers are SSMs", 2024.
#include <cmath>

#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

using Params = Mamba2Params;
using Role = TensorNeed::Role;

// Columns of in_proj, as stored: z | x | B | C | dt.
struct Columns {
  explicit Columns(const Params& p)
      : inner(int64_t{p.heads} * p.head_dim),
        group_states(int64_t{p.groups} * p.state_size),
        x(inner),
        b(x + inner),
        c(b + group_states),
        dt(c + group_states),
        conv_width(dt - x),
        total(dt + p.heads) {}
  int64_t inner, group_states, x, b, c, dt, conv_width, total;
};

int64_t WindowBytes(const Params& p, DType window) {
  return AlignState((p.conv_size - 1) * Columns(p).conv_width * DTypeSize(window));
}

class Mamba2 final : public Mixer {
 public:
  explicit Mamba2(const Params& params) : p_(params), at_(params) {}

  absl::Status Load(const MixerPlace& place, WeightReader& weights) {
    const std::string& prefix = place.prefix;
    ASSIGN_OR_RETURN(in_, weights.Matrix(prefix, {"in_proj.weight"}));
    ASSIGN_OR_RETURN(out_, weights.Matrix(prefix, {"out_proj.weight"}));
    if (p_.bias) {
      ASSIGN_OR_RETURN(in_bias_, weights.Vector(prefix + "in_proj.bias"));
      ASSIGN_OR_RETURN(out_bias_, weights.Vector(prefix + "out_proj.bias"));
    }
    ASSIGN_OR_RETURN(conv_weight_, weights.Vector(prefix + "conv1d.weight"));
    if (p_.conv_bias) {
      ASSIGN_OR_RETURN(conv_bias_, weights.Vector(prefix + "conv1d.bias"));
    }
    ASSIGN_OR_RETURN(std::vector<float> a, weights.Values(prefix + "A_log"));
    for (float& value : a) value = std::exp(value);
    ASSIGN_OR_RETURN(exp_a_, FloatVector::From(a, weights.stream()));
    ASSIGN_OR_RETURN(dt_bias_, weights.Vector(prefix + "dt_bias"));
    ASSIGN_OR_RETURN(skip_, weights.Vector(prefix + "D"));
    if (p_.rms_norm) {
      ASSIGN_OR_RETURN(norm_, weights.Vector(prefix + "norm.weight"));
    }
    window_offset_ = place.slot_offset;
    state_offset_ = place.slot_offset + WindowBytes(p_, place.types.window);
    window_dtype_ = place.types.window;
    return absl::OkStatus();
  }

  void Forward(const StepContext& step, const kernels::MatMulInput& x,
               const kernels::MatMulOutput& out) const override {
    const int64_t tokens = x.x.size(0);
    Scratch::Scope scope(step.scratch);
    TensorView in = step.scratch.Activations(tokens, at_.total);
    kernels::MatMul(x, in_, in_bias_.view(), in, step.stream);
    Convolve(step, in.Columns(at_.x, at_.conv_width));

    const TensorView xs = Heads(in, at_.x, p_.heads, p_.head_dim);
    kernels::RecurrenceArgs args;
    args.decay = kernels::Decay::kScalar;
    args.heads = p_.heads;
    args.q = Heads(in, at_.c, p_.groups, p_.state_size);
    args.k = Heads(in, at_.b, p_.groups, p_.state_size);
    args.g = step.scratch.Floats(tokens, p_.heads);
    args.v = step.scratch.Activations(tokens, at_.inner).Reshape({tokens, p_.heads, p_.head_dim});
    kernels::Mamba2DtArgs dt;
    dt.x = in.Columns(at_.dt, p_.heads);
    dt.bias = dt_bias_.view();
    dt.exp_a = exp_a_.view();
    dt.lo = p_.dt_min;
    dt.hi = p_.dt_max.value_or(p_.dt_min);
    dt.xs = xs;
    dt.g = args.g;
    dt.v = args.v;
    kernels::Mamba2Dt(dt, step.stream);
    TensorView y = step.scratch.Activations(tokens, at_.inner);
    args.out = y.Reshape({tokens, p_.heads, p_.head_dim});
    RunRecurrence(args, step, state_offset_);
    kernels::AddSkip(xs, skip_.view(), args.out, step.stream);

    kernels::GatedRmsNormArgs norm;
    norm.x = y;
    norm.gate = in.Columns(0, at_.inner);
    norm.weight = norm_.view();
    norm.group = at_.inner / p_.groups;
    norm.eps = p_.norm_eps;
    norm.gate_first = !p_.norm_before_gate;
    norm.normalize = p_.rms_norm;
    norm.out = y;
    kernels::GatedRmsNorm(norm, step.stream);
    kernels::MatMul(y, out_, out_bias_.view(), out, step.stream);
  }

  int64_t OpScratchBytes(const StepLimits& limits, Stream stream) const override {
    return RecurrenceScratch(kernels::Decay::kScalar, kernels::Update::kAdditive, p_.heads,
                             p_.groups, p_.state_size, p_.head_dim, limits, stream);
  }
  std::vector<const kernels::PackedMatrix*> Matrices() const override { return {&in_, &out_}; }

 private:
  void Convolve(const StepContext& step, TensorView xbc) const {
    kernels::ShortConvArgs args;
    args.x = xbc;
    args.out = xbc;
    args.weight = conv_weight_.matrix(at_.conv_width);
    args.bias = conv_bias_.view();
    args.offsets = step.batch.offsets;
    args.slots = step.batch.slots;
    args.fresh = step.batch.fresh;
    args.window_dtype = window_dtype_;
    args.state = step.state.slots + window_offset_;
    args.slot_stride_bytes = step.state.slot_bytes;
    kernels::ShortConv(args, step.stream);
  }

  const Params p_;
  const Columns at_;
  kernels::PackedMatrix in_, out_;
  FloatVector in_bias_, out_bias_, conv_weight_, conv_bias_, exp_a_, dt_bias_, skip_, norm_;
  int64_t window_offset_ = 0, state_offset_ = 0;
  DType window_dtype_ = DType::kF32;
};

}  // namespace

void ListTensors(const Mamba2Params& p, int hidden, TensorList* list) {
  const Columns at(p);
  list->Add("in_proj.weight", {at.total, hidden}, Role::kMatrix);
  if (p.bias) list->Add("in_proj.bias", {at.total}, Role::kBias);
  list->Add("conv1d.weight", {at.conv_width, 1, p.conv_size}, Role::kConv);
  if (p.conv_bias) list->Add("conv1d.bias", {at.conv_width}, Role::kBias);
  list->Add("A_log", {p.heads}, Role::kDecay);
  list->Add("dt_bias", {p.heads}, Role::kStep);
  list->Add("D", {p.heads}, Role::kSkip);
  if (p.rms_norm) list->Add("norm.weight", {at.inner}, Role::kNorm);
  list->Add("out_proj.weight", {hidden, at.inner}, Role::kMatrix);
  if (p.bias) list->Add("out_proj.bias", {hidden}, Role::kBias);
}

MixerNeeds Needs(const Mamba2Params& p, int /*hidden*/, const StateTypes& types) {
  const Columns at(p);
  const int64_t state = at.inner * p.state_size;
  MixerNeeds needs;
  needs.slot_bytes = WindowBytes(p, types.window) + AlignState(state * 4);
  needs.scratch_floats = at.total + p.heads + 2 * at.inner;
  needs.state_flops = 5.0 * static_cast<double>(state);
  return needs;
}

absl::StatusOr<std::unique_ptr<Mixer>> Make(const Mamba2Params& params, const MixerPlace& place,
                                            WeightReader& weights) {
  auto mixer = std::make_unique<Mamba2>(params);
  RETURN_IF_ERROR(mixer->Load(place, weights));
  return mixer;
}

}  // namespace weir::model
