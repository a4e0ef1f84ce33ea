// delta_net, gated_deltanet and kda: S- = D S, S = S- + k (beta (v - S-^T k))^T, o = S^T q,
// out = o_proj(rms(o) [* act(gate)]).
// Maths: docs/hybrid-format.md; Yang et al., "Parallelizing Linear Transformers with the Delta
// Rule", 2024, and "Gated Delta Networks", 2024; "Kimi Linear", 2025.
#include <cmath>

#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

using Params = DeltaParams;
using Gate = DeltaParams::Gate;
using QkActivation = DeltaParams::QkActivation;
using Role = TensorNeed::Role;

// Columns of the one projection that reads x: q | k | v | output gate | decay input | beta. Of kda
// gate and decay input are low-rank: V columns each.
struct Columns {
  explicit Columns(const Params& p)
      : k(int64_t{p.heads} * p.key_dim),
        v(2 * k),
        gate(v + int64_t{p.value_heads} * p.value_dim),
        gate_width(p.gate == Gate::kVector ? p.value_dim
                   : p.output_gate         ? int64_t{p.value_heads} * p.value_dim
                                           : 0),
        decay(gate + gate_width),
        decay_width(p.gate == Gate::kVector   ? p.value_dim
                    : p.gate == Gate::kScalar ? p.value_heads
                                              : 0),
        beta(decay + decay_width),
        total(beta + p.value_heads) {}
  int64_t q = 0, k, v, gate, gate_width, decay, decay_width, beta, total;
};

class Delta final : public Mixer {
 public:
  explicit Delta(const Params& params)
      : p_(params), at_(params), width_(int64_t{params.value_heads} * params.value_dim) {}

  absl::Status Load(const MixerPlace& place, WeightReader& weights) {
    std::vector<RowBlock> blocks = {"q_proj.weight", "k_proj.weight", "v_proj.weight"};
    const bool vector_gate = p_.gate == Gate::kVector;
    if (vector_gate) {
      blocks.push_back("g_proj.0.weight");
      blocks.push_back("f_proj.0.weight");
    } else {
      if (p_.output_gate) blocks.push_back("g_proj.weight");
      if (p_.gate == Gate::kScalar) blocks.push_back("a_proj.weight");
    }
    // Without beta its columns are zero: sigmoid(0) = 1/2, doubled.
    blocks.push_back(p_.use_beta ? RowBlock("b_proj.weight") : RowBlock("", 0, p_.value_heads));
    ASSIGN_OR_RETURN(in_, weights.Matrix(place.prefix, blocks));
    if (vector_gate) {
      ASSIGN_OR_RETURN(f_, weights.Matrix(place.prefix, {"f_proj.1.weight"}));
      ASSIGN_OR_RETURN(g_, weights.Matrix(place.prefix, {"g_proj.1.weight"}));
      ASSIGN_OR_RETURN(g_bias_, weights.Vector(place.prefix + "g_proj.1.bias"));
    }
    if (p_.gate != Gate::kNone) {
      ASSIGN_OR_RETURN(std::vector<float> a, weights.Values(place.prefix + "A_log"));
      for (float& value : a) value = std::exp(value);
      ASSIGN_OR_RETURN(exp_a_, FloatVector::From(a, weights.stream()));
      ASSIGN_OR_RETURN(dt_bias_, weights.Vector(place.prefix + "dt_bias"));
    }
    if (!p_.use_beta) beta_scale_ *= 2.0f;
    if (p_.allow_neg_eigval) beta_scale_ *= 2.0f;
    ASSIGN_OR_RETURN(conv_, QkvConv::Make(p_.conv, place, weights));
    ASSIGN_OR_RETURN(norm_, weights.Vector(place.prefix + "o_norm.weight"));
    ASSIGN_OR_RETURN(out_, weights.Matrix(place.prefix, {"o_proj.weight"}));
    state_offset_ = place.slot_offset + QkvConv::SlotBytes(p_.conv, at_.gate, place.types.window);
    return absl::OkStatus();
  }

  void Forward(const StepContext& step, const kernels::MatMulInput& x,
               const kernels::MatMulOutput& out) const override {
    const int64_t tokens = x.x.size(0);
    Scratch::Scope scope(step.scratch);
    TensorView in = step.scratch.Activations(tokens, at_.total);
    kernels::MatMul(x, in_, {}, in, step.stream);
    kernels::LinearMixerArgs fused = Fused();
    fused.qkv = in.Columns(0, at_.gate);
    if (kernels::LinearMixerSupported(fused, step.stream)) {
      TensorView o = step.scratch.Activations(tokens, width_);
      DescribeFused(step, in, o, &fused);
      kernels::LinearMixer(fused, step.stream);
      kernels::MatMul(o, out_, {}, out, step.stream);
      return;
    }
    ConvAndActivate(step, in);
    NormalizeQk(step, in);

    kernels::RecurrenceArgs args;
    args.update = kernels::Update::kDelta;
    args.heads = p_.value_heads;
    args.q = Heads(in, at_.q, p_.heads, p_.key_dim);
    args.k = Heads(in, at_.k, p_.heads, p_.key_dim);
    args.v = Heads(in, at_.v, p_.value_heads, p_.value_dim);
    args.scale = p_.l2_norm ? 1.0f : QScale();
    SetDecay(step, in, &args);
    args.beta = step.scratch.Floats(tokens, p_.value_heads);
    kernels::Beta(in.Columns(at_.beta, p_.value_heads), beta_scale_, args.beta, step.stream);
    TensorView o = step.scratch.Activations(tokens, width_);
    args.out = o.Reshape({tokens, p_.value_heads, p_.value_dim});
    RunRecurrence(args, step, state_offset_);

    kernels::GatedRmsNormArgs norm;
    norm.x = o;
    norm.gate = OutputGate(step, in);
    norm.activation =
        p_.gate == Gate::kVector ? kernels::Activation::kSigmoid : kernels::Activation::kSilu;
    norm.weight = norm_.view();
    norm.group = p_.value_dim;
    norm.eps = p_.norm_eps;
    norm.out = o;
    kernels::GatedRmsNorm(norm, step.stream);
    kernels::MatMul(o, out_, {}, out, step.stream);
  }

  int64_t OpScratchBytes(const StepLimits& limits, Stream stream) const override {
    kernels::LinearMixerArgs fused = Fused();
    fused.qkv = TensorView(nullptr, limits.activations, {limits.tokens, at_.gate});
    if (kernels::LinearMixerSupported(fused, stream)) {
      return kernels::LinearMixerScratchBytes(fused, limits.tokens, limits.sequences);
    }
    return RecurrenceScratch(RecurrenceDecay(), kernels::Update::kDelta, p_.value_heads, p_.heads,
                             p_.key_dim, p_.value_dim, limits, stream);
  }
  std::vector<const kernels::PackedMatrix*> Matrices() const override { return {&in_, &out_}; }

 private:
  kernels::Decay RecurrenceDecay() const {
    return p_.gate == Gate::kVector   ? kernels::Decay::kVector
           : p_.gate == Gate::kScalar ? kernels::Decay::kScalar
                                      : kernels::Decay::kNone;
  }

  // What the fused op is told by the parameters alone.
  kernels::LinearMixerArgs Fused() const {
    kernels::LinearMixerArgs args;
    args.decay = RecurrenceDecay();
    args.update = kernels::Update::kDelta;
    args.heads = args.heads_v = args.heads_g = p_.value_heads;
    args.heads_q = args.heads_k = p_.heads;
    args.key_dim = p_.key_dim;
    args.value_dim = p_.value_dim;
    args.conv_weight = conv_.shape();
    args.window_dtype = conv_.window();
    args.activation = kernels::Activation::kSilu;
    args.l2_norm = p_.l2_norm;
    args.q_scale = QScale();
    args.decay_bias = dt_bias_.view();
    args.exp_a = exp_a_.view();
    if (p_.gate == Gate::kVector && p_.lower_bound) {
      args.decay_form = kernels::LogDecayArgs::Form::kBoundedSigmoid;
      args.lower_bound = *p_.lower_bound;
    }
    args.beta_scale = beta_scale_;
    args.gate_activation =
        p_.gate == Gate::kVector ? kernels::Activation::kSigmoid : kernels::Activation::kSilu;
    args.norm_weight = norm_.view();
    args.norm_eps = p_.norm_eps;
    // Other activations and sums as norms are composed of single ops.
    if (p_.qk_activation != QkActivation::kSilu || !p_.l2_norm) args.heads = 0;
    return args;
  }

  void DescribeFused(const StepContext& step, TensorView in, TensorView o,
                     kernels::LinearMixerArgs* args) const {
    const int64_t tokens = in.size(0);
    conv_.Describe(step, args);
    if (p_.gate == Gate::kScalar) args->decay_x = in.Columns(at_.decay, at_.decay_width);
    if (p_.gate == Gate::kVector) {
      args->decay_x = step.scratch.Activations(tokens, int64_t{p_.value_heads} * p_.key_dim);
      kernels::MatMul(in.Columns(at_.decay, at_.decay_width), f_, {}, args->decay_x, step.stream);
    }
    args->beta_x = in.Columns(at_.beta, p_.value_heads);
    args->gate = OutputGate(step, in);
    args->out = o;
    SetBatch(step, state_offset_, args);
  }

  float QScale() const { return 1.0f / std::sqrt(static_cast<float>(p_.key_dim)); }

  // q and k: conv, then qk_activation; v: conv, then silu.
  void ConvAndActivate(const StepContext& step, TensorView in) const {
    const bool all_silu = p_.qk_activation == QkActivation::kSilu;
    TensorView qkv = in.Columns(0, at_.gate);
    if (conv_.enabled()) {
      conv_.Forward(step, qkv, all_silu ? kernels::Activation::kSilu : kernels::Activation::kNone);
      if (all_silu) return;
    }
    TensorView qk = in.Columns(0, at_.v);
    TensorView v = in.Columns(at_.v, width_);
    kernels::Activate(v, kernels::Activation::kSilu, v, step.stream);
    switch (p_.qk_activation) {
      case QkActivation::kSilu:
        kernels::Activate(qk, kernels::Activation::kSilu, qk, step.stream);
        break;
      case QkActivation::kRelu:
        kernels::Activate(qk, kernels::Activation::kRelu, qk, step.stream);
        break;
      case QkActivation::kElu:
        kernels::EluPlusOne(qk.Reshape({in.size(0), 2 * p_.heads, p_.key_dim}), step.stream);
        break;
      case QkActivation::kIdentity:
        break;
    }
  }

  void NormalizeQk(const StepContext& step, TensorView in) const {
    TensorView q = in.Columns(at_.q, at_.k), k = in.Columns(at_.k, at_.k);
    if (p_.l2_norm) {
      kernels::L2Norm({q, p_.key_dim, 1e-6f, QScale(), q}, step.stream);
      kernels::L2Norm({k, p_.key_dim, 1e-6f, 1.0f, k}, step.stream);
    } else {
      kernels::DivideBySum(Heads(in, at_.q, 2 * p_.heads, p_.key_dim), 0.0f, step.stream);
    }
  }

  void SetDecay(const StepContext& step, TensorView in, kernels::RecurrenceArgs* args) const {
    if (p_.gate == Gate::kNone) return;
    kernels::LogDecayArgs decay{};
    decay.form = kernels::LogDecayArgs::Form::kSoftplus;
    decay.x = in.Columns(at_.decay, at_.decay_width);
    const int64_t tokens = in.size(0);
    const int64_t width =
        p_.gate == Gate::kVector ? int64_t{p_.value_heads} * p_.key_dim : int64_t{p_.value_heads};
    if (p_.gate == Gate::kVector) {
      TensorView f = step.scratch.Activations(tokens, width);
      kernels::MatMul(decay.x, f_, {}, f, step.stream);
      decay.x = f;
      if (p_.lower_bound) {
        decay.form = kernels::LogDecayArgs::Form::kBoundedSigmoid;
        decay.lower_bound = *p_.lower_bound;
      }
    }
    decay.bias = dt_bias_.view();
    decay.exp_a = exp_a_.view();
    decay.out = step.scratch.Floats(tokens, width);
    kernels::LogDecay(decay, step.stream);
    args->decay = RecurrenceDecay();
    args->g = p_.gate == Gate::kVector ? decay.out.Reshape({tokens, p_.value_heads, p_.key_dim})
                                       : decay.out;
  }

  // [tokens, HV * V], or undefined.
  TensorView OutputGate(const StepContext& step, TensorView in) const {
    if (p_.gate != Gate::kVector) {
      return p_.output_gate ? in.Columns(at_.gate, width_) : TensorView();
    }
    TensorView gate = step.scratch.Activations(in.size(0), width_);
    kernels::MatMul(in.Columns(at_.gate, at_.gate_width), g_, g_bias_.view(), gate, step.stream);
    return gate;
  }

  const Params p_;
  const Columns at_;
  const int64_t width_;  // HV * V
  kernels::PackedMatrix in_, f_, g_, out_;
  FloatVector g_bias_, exp_a_, dt_bias_, norm_;
  QkvConv conv_;
  float beta_scale_ = 1.0f;
  int64_t state_offset_ = 0;
};

}  // namespace

void ListTensors(const DeltaParams& p, int hidden, TensorList* list) {
  const int64_t qk = int64_t{p.heads} * p.key_dim, v = int64_t{p.value_heads} * p.value_dim;
  list->Add("q_proj.weight", {qk, hidden}, Role::kMatrix);
  list->Add("k_proj.weight", {qk, hidden}, Role::kMatrix);
  list->Add("v_proj.weight", {v, hidden}, Role::kMatrix);
  if (p.gate == Gate::kVector) {
    const int64_t decay = int64_t{p.value_heads} * p.key_dim;
    list->Add("g_proj.0.weight", {p.value_dim, hidden}, Role::kMatrix);
    list->Add("f_proj.0.weight", {p.value_dim, hidden}, Role::kMatrix);
    list->Add("f_proj.1.weight", {decay, p.value_dim}, Role::kMatrix);
    list->Add("g_proj.1.weight", {v, p.value_dim}, Role::kMatrix);
    list->Add("g_proj.1.bias", {v}, Role::kBias);
    list->Add("A_log", {p.value_heads}, Role::kDecay);
    list->Add("dt_bias", {decay}, Role::kStep);
  } else {
    if (p.output_gate) list->Add("g_proj.weight", {v, hidden}, Role::kMatrix);
    if (p.gate == Gate::kScalar) {
      list->Add("a_proj.weight", {p.value_heads, hidden}, Role::kMatrix);
      list->Add("A_log", {p.value_heads}, Role::kDecay);
      list->Add("dt_bias", {p.value_heads}, Role::kStep);
    }
  }
  if (p.use_beta) list->Add("b_proj.weight", {p.value_heads, hidden}, Role::kMatrix);
  QkvConv::ListTensors(p.conv, qk, qk, v, list);
  list->Add("o_norm.weight", {p.value_dim}, Role::kNorm);
  list->Add("o_proj.weight", {hidden, v}, Role::kMatrix);
}

MixerNeeds Needs(const DeltaParams& p, int /*hidden*/, const StateTypes& types) {
  const Columns at(p);
  const int64_t state = int64_t{p.value_heads} * p.key_dim * p.value_dim;
  const int64_t width = int64_t{p.value_heads} * p.value_dim;
  MixerNeeds needs;
  needs.slot_bytes = QkvConv::SlotBytes(p.conv, at.gate, types.window) + AlignState(state * 4);
  needs.scratch_floats = at.total + width + 2 * p.value_heads;
  if (p.gate == Gate::kVector) {
    needs.scratch_floats += 2 * int64_t{p.value_heads} * p.key_dim + width;
  }
  needs.state_flops = 7.0 * static_cast<double>(state);
  return needs;
}

absl::StatusOr<std::unique_ptr<Mixer>> Make(const DeltaParams& params, const MixerPlace& place,
                                            WeightReader& weights) {
  auto mixer = std::make_unique<Delta>(params);
  RETURN_IF_ERROR(mixer->Load(place, weights));
  return mixer;
}

}  // namespace weir::model
