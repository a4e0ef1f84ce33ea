// gla, simple_gla and retnet: S = D S + k v^T, o = S^T q, out = o_proj(rms(o) [* silu(gate)]).
// Maths: docs/hybrid-format.md; Yang et al., "Gated Linear Attention", 2023; Sun et al., "Retentive
// Network", 2023.
#include <cmath>

#include "kernels/attention.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

using Params = GatedLinearParams;
using Gate = GatedLinearParams::Gate;
using Role = TensorNeed::Role;

// Columns of the one projection that reads x: q | k | v | output gate | decay input.
struct Columns {
  explicit Columns(const Params& p)
      : k(int64_t{p.heads} * p.key_dim),
        v(k + int64_t{p.kv_heads} * p.key_dim),
        gate(v + int64_t{p.kv_heads} * p.value_dim),
        decay(gate + (p.output_gate ? int64_t{p.heads} * p.value_dim : 0)),
        decay_width(p.gate == Gate::kVector   ? p.gate_rank
                    : p.gate == Gate::kScalar ? p.heads
                                              : 0),
        total(decay + decay_width) {}
  int64_t q = 0, k, v, gate, decay, decay_width, total;
};

std::string NormName(const Params& p) {
  return p.output_gate ? "g_norm_swish_gate.weight" : "g_norm.weight";
}

class GatedLinear final : public Mixer {
 public:
  explicit GatedLinear(const Params& params) : p_(params), at_(params) {}

  absl::Status Load(const MixerPlace& place, WeightReader& weights) {
    std::vector<RowBlock> blocks = {"q_proj.weight", "k_proj.weight", "v_proj.weight"};
    if (p_.output_gate) blocks.push_back("g_proj.weight");
    if (p_.gate == Gate::kVector) blocks.push_back("gk_proj.0.weight");
    if (p_.gate == Gate::kScalar) blocks.push_back("gk_proj.weight");
    ASSIGN_OR_RETURN(in_, weights.Matrix(place.prefix, blocks));
    if (p_.gate == Gate::kVector) {
      ASSIGN_OR_RETURN(gk_, weights.Matrix(place.prefix, {"gk_proj.1.weight"}));
      ASSIGN_OR_RETURN(gk_bias_, weights.Vector(place.prefix + "gk_proj.1.bias"));
    } else if (p_.gate == Gate::kScalar) {
      ASSIGN_OR_RETURN(gk_bias_, weights.Vector(place.prefix + "gk_proj.bias"));
    } else {
      RETURN_IF_ERROR(LoadFixedDecay(weights));
    }
    ASSIGN_OR_RETURN(conv_, QkvConv::Make(p_.conv, place, weights));
    if (p_.norm_weight) {
      ASSIGN_OR_RETURN(norm_, weights.Vector(place.prefix + NormName(p_)));
    }
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
      TensorView o = step.scratch.Activations(tokens, int64_t{p_.heads} * p_.value_dim);
      DescribeFused(step, in, o, &fused);
      kernels::LinearMixer(fused, step.stream);
      kernels::MatMul(o, out_, {}, out, step.stream);
      return;
    }
    if (conv_.enabled()) {
      conv_.Forward(step, in.Columns(0, at_.gate), kernels::Activation::kSilu);
    }
    kernels::RecurrenceArgs args;
    args.scale = 1.0f / std::sqrt(static_cast<float>(p_.key_dim));
    args.heads = p_.heads;
    args.q = Heads(in, at_.q, p_.heads, p_.key_dim);
    args.k = Heads(in, at_.k, p_.kv_heads, p_.key_dim);
    args.v = Heads(in, at_.v, p_.kv_heads, p_.value_dim);
    args.decay = p_.gate == Gate::kVector ? kernels::Decay::kVector : kernels::Decay::kScalar;
    args.g = LogDecay(step, in);
    if (p_.gate == Gate::kFixed) {
      kernels::Rotary({args.q, step.batch.positions, inv_freq_.view()}, step.stream);
      kernels::Rotary({args.k, step.batch.positions, inv_freq_.view()}, step.stream);
    }
    const int64_t width = int64_t{p_.heads} * p_.value_dim;
    TensorView o = step.scratch.Activations(tokens, width);
    args.out = o.Reshape({tokens, p_.heads, p_.value_dim});
    RunRecurrence(args, step, state_offset_);

    kernels::GatedRmsNormArgs norm;
    norm.x = o;
    if (p_.output_gate) norm.gate = in.Columns(at_.gate, width);
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
    return RecurrenceScratch(RecurrenceDecay(), kernels::Update::kAdditive, p_.heads, p_.kv_heads,
                             p_.key_dim, p_.value_dim, limits, stream);
  }
  std::vector<const kernels::PackedMatrix*> Matrices() const override { return {&in_, &out_}; }

 private:
  kernels::Decay RecurrenceDecay() const {
    return p_.gate == Gate::kVector ? kernels::Decay::kVector : kernels::Decay::kScalar;
  }

  // What the fused op is told by the parameters alone.
  kernels::LinearMixerArgs Fused() const {
    kernels::LinearMixerArgs args;
    args.decay = RecurrenceDecay();
    args.heads = args.heads_q = p_.heads;
    args.heads_k = args.heads_v = p_.kv_heads;
    args.heads_g = p_.gate == Gate::kVector ? p_.kv_heads : p_.heads;
    args.key_dim = p_.key_dim;
    args.value_dim = p_.value_dim;
    args.conv_weight = conv_.shape();
    args.window_dtype = conv_.window();
    args.activation = conv_.enabled() ? kernels::Activation::kSilu : kernels::Activation::kNone;
    args.q_scale = 1.0f / std::sqrt(static_cast<float>(p_.key_dim));
    args.decay_form = kernels::LogDecayArgs::Form::kLogSigmoid;
    args.decay_bias = gk_bias_.view();
    args.normalizer = p_.gate_normalizer;
    args.has_clamp = p_.clamp_min.has_value();
    args.clamp_min = p_.clamp_min.value_or(0.0f);
    args.norm_weight = norm_.view();
    args.norm_eps = p_.norm_eps;
    // Rotary embedding stands between convolution and recurrence.
    if (p_.gate == Gate::kFixed) args.heads = 0;
    return args;
  }

  void DescribeFused(const StepContext& step, TensorView in, TensorView o,
                     kernels::LinearMixerArgs* args) const {
    conv_.Describe(step, args);
    args->decay_x = in.Columns(at_.decay, at_.decay_width);
    if (p_.gate == Gate::kVector) {
      args->decay_x = step.scratch.Activations(in.size(0), int64_t{p_.kv_heads} * p_.key_dim);
      kernels::MatMul(in.Columns(at_.decay, at_.decay_width), gk_, {}, args->decay_x, step.stream);
    }
    if (p_.output_gate) args->gate = in.Columns(at_.gate, int64_t{p_.heads} * p_.value_dim);
    args->out = o;
    SetBatch(step, state_offset_, args);
  }

  // [tokens, HK, K], [tokens, H] or [1, H].
  TensorView LogDecay(const StepContext& step, TensorView in) const {
    if (p_.gate == Gate::kFixed) return TensorView(fixed_decay_.view()).Reshape({1, p_.heads});
    kernels::LogDecayArgs args{};
    args.form = kernels::LogDecayArgs::Form::kLogSigmoid;
    args.x = in.Columns(at_.decay, at_.decay_width);
    const int64_t tokens = in.size(0);
    const int64_t width =
        p_.gate == Gate::kVector ? int64_t{p_.kv_heads} * p_.key_dim : int64_t{p_.heads};
    if (p_.gate == Gate::kVector) {
      TensorView g = step.scratch.Activations(tokens, width);
      kernels::MatMul(args.x, gk_, {}, g, step.stream);
      args.x = g;
    }
    args.bias = gk_bias_.view();
    args.normalizer = p_.gate_normalizer;
    args.has_clamp = p_.clamp_min.has_value();
    args.clamp_min = p_.clamp_min.value_or(0.0f);
    args.out = step.scratch.Floats(tokens, width);
    kernels::LogDecay(args, step.stream);
    if (p_.gate == Gate::kScalar) return args.out;
    return args.out.Reshape({tokens, p_.kv_heads, p_.key_dim});
  }

  absl::Status LoadFixedDecay(WeightReader& weights) {
    std::vector<float> g;
    for (int h = 0; h < p_.heads; ++h) {
      g.push_back(static_cast<float>(std::log1p(-std::exp2(-5.0 - h))));
    }
    ASSIGN_OR_RETURN(fixed_decay_, FloatVector::From(g, weights.stream()));
    RopeParams rope;
    rope.dim = p_.key_dim;
    rope.theta = p_.rope_theta;
    ASSIGN_OR_RETURN(inv_freq_, FloatVector::From(RopeFrequencies(rope), weights.stream()));
    return absl::OkStatus();
  }

  const Params p_;
  const Columns at_;
  kernels::PackedMatrix in_, gk_, out_;
  FloatVector gk_bias_, norm_, fixed_decay_, inv_freq_;
  QkvConv conv_;
  int64_t state_offset_ = 0;
};

}  // namespace

void ListTensors(const GatedLinearParams& p, int hidden, TensorList* list) {
  const int64_t q = int64_t{p.heads} * p.key_dim, k = int64_t{p.kv_heads} * p.key_dim;
  const int64_t v = int64_t{p.kv_heads} * p.value_dim, o = int64_t{p.heads} * p.value_dim;
  list->Add("q_proj.weight", {q, hidden}, Role::kMatrix);
  list->Add("k_proj.weight", {k, hidden}, Role::kMatrix);
  list->Add("v_proj.weight", {v, hidden}, Role::kMatrix);
  if (p.output_gate) list->Add("g_proj.weight", {o, hidden}, Role::kMatrix);
  if (p.gate == Gate::kVector) {
    list->Add("gk_proj.0.weight", {p.gate_rank, hidden}, Role::kMatrix);
    list->Add("gk_proj.1.weight", {k, p.gate_rank}, Role::kMatrix);
    list->Add("gk_proj.1.bias", {k}, Role::kBias);
  } else if (p.gate == Gate::kScalar) {
    list->Add("gk_proj.weight", {p.heads, hidden}, Role::kMatrix);
    list->Add("gk_proj.bias", {p.heads}, Role::kBias);
  }
  QkvConv::ListTensors(p.conv, q, k, v, list);
  if (p.norm_weight) list->Add(NormName(p), {p.value_dim}, Role::kNorm);
  list->Add("o_proj.weight", {hidden, o}, Role::kMatrix);
}

MixerNeeds Needs(const GatedLinearParams& p, int /*hidden*/, const StateTypes& types) {
  const Columns at(p);
  const int64_t state = int64_t{p.heads} * p.key_dim * p.value_dim;
  MixerNeeds needs;
  needs.slot_bytes = QkvConv::SlotBytes(p.conv, at.gate, types.window) + AlignState(state * 4);
  needs.scratch_floats = at.total + int64_t{p.heads} * p.value_dim + p.heads +
                         (p.gate == Gate::kVector ? 2 * int64_t{p.kv_heads} * p.key_dim : 0);
  needs.state_flops = 5.0 * static_cast<double>(state);
  return needs;
}

absl::StatusOr<std::unique_ptr<Mixer>> Make(const GatedLinearParams& params,
                                            const MixerPlace& place, WeightReader& weights) {
  auto mixer = std::make_unique<GatedLinear>(params);
  RETURN_IF_ERROR(mixer->Load(place, weights));
  return mixer;
}

}  // namespace weir::model
