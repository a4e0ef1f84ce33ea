// linear_attn: S = S + k v^T on mapped q and k, out = o_proj(rms(o)).
// Maths: docs/hybrid-format.md; Katharopoulos et al., "Transformers are RNNs", 2020.
//
// norm_feature_map divides o by q . sum(k). The sum is one more column of the state: with v
// extended by a constant 1, the recurrence's output is [o | q . sum(k)] (scale included, as it must
// be).
#include <cmath>

#include "kernels/norm.h"
#include "kernels/pointwise.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

using Params = LinearAttnParams;
using FeatureMap = LinearAttnParams::FeatureMap;
using Role = TensorNeed::Role;

constexpr float kNormEps = 1e-4f;
constexpr float kDivideEps = 1e-10f;

int64_t StateDim(const Params& p) { return p.value_dim + (p.norm_feature_map ? 1 : 0); }

class LinearAttn final : public Mixer {
 public:
  explicit LinearAttn(const Params& params)
      : p_(params),
        q_width_(int64_t{params.heads} * params.key_dim),
        k_width_(int64_t{params.kv_heads} * params.key_dim),
        v_width_(params.kv_heads * StateDim(params)) {}

  absl::Status Load(const MixerPlace& place, WeightReader& weights) {
    // q and k stand apart from v: the product feature map needs each as [tokens * heads, K].
    ASSIGN_OR_RETURN(q_, weights.Matrix(place.prefix, {"q_proj.weight"}));
    ASSIGN_OR_RETURN(k_, weights.Matrix(place.prefix, {"k_proj.weight"}));
    std::vector<RowBlock> rows;
    std::vector<float> ones;
    for (int h = 0; h < p_.kv_heads; ++h) {
      rows.push_back({"v_proj.weight", int64_t{h} * p_.value_dim, p_.value_dim});
      ones.insert(ones.end(), static_cast<size_t>(p_.value_dim), 0.0f);
      if (p_.norm_feature_map) {
        rows.push_back({"", 0, 1});
        ones.push_back(1.0f);
      }
    }
    ASSIGN_OR_RETURN(v_, weights.Matrix(place.prefix, rows));
    if (p_.norm_feature_map) {
      ASSIGN_OR_RETURN(v_bias_, FloatVector::From(ones, weights.stream()));
    }
    if (p_.feature_map == FeatureMap::kElementwiseProduct) {
      ASSIGN_OR_RETURN(map_q_, weights.Matrix(place.prefix, {"feature_map_q.layer1.weight",
                                                             "feature_map_q.layer2.weight"}));
      ASSIGN_OR_RETURN(map_k_, weights.Matrix(place.prefix, {"feature_map_k.layer1.weight",
                                                             "feature_map_k.layer2.weight"}));
    }
    ASSIGN_OR_RETURN(norm_, weights.Vector(place.prefix + "norm.weight"));
    ASSIGN_OR_RETURN(out_, weights.Matrix(place.prefix, {"o_proj.weight"}));
    state_offset_ = place.slot_offset;
    return absl::OkStatus();
  }

  void Forward(const StepContext& step, const kernels::MatMulInput& x,
               const kernels::MatMulOutput& out) const override {
    const int64_t tokens = x.x.size(0);
    Scratch::Scope scope(step.scratch);
    TensorView q = step.scratch.Activations(tokens, q_width_);
    TensorView k = step.scratch.Activations(tokens, k_width_);
    TensorView v = step.scratch.Activations(tokens, v_width_);
    kernels::MatMul(x, q_, {}, q, step.stream);
    kernels::MatMul(x, k_, {}, k, step.stream);
    kernels::MatMul(x, v_, v_bias_.view(), v, step.stream);

    kernels::RecurrenceArgs args;
    args.scale = 1.0f / std::sqrt(static_cast<float>(p_.key_dim));
    args.heads = p_.heads;
    args.q = MapFeatures(step, q, p_.heads, map_q_, p_.norm_q);
    args.k = MapFeatures(step, k, p_.kv_heads, map_k_, p_.norm_k);
    args.v = v.Reshape({tokens, p_.kv_heads, StateDim(p_)});
    TensorView read = step.scratch.Activations(tokens, p_.heads * StateDim(p_));
    args.out = read.Reshape({tokens, p_.heads, StateDim(p_)});
    RunRecurrence(args, step, state_offset_);

    TensorView o = read;
    if (p_.norm_feature_map) {
      o = step.scratch.Activations(tokens, int64_t{p_.heads} * p_.value_dim);
      kernels::DivideByLast(args.out, kDivideEps, o.Reshape({tokens, p_.heads, p_.value_dim}),
                            step.stream);
    }
    kernels::RmsNorm({o, norm_.view(), p_.value_dim, p_.norm_eps, o}, step.stream);
    kernels::MatMul(o, out_, {}, out, step.stream);
  }

  int64_t OpScratchBytes(const StepLimits& limits, Stream stream) const override {
    return RecurrenceScratch(kernels::Decay::kNone, kernels::Update::kAdditive, p_.heads,
                             p_.kv_heads, p_.key_dim, StateDim(p_), limits, stream);
  }
  std::vector<const kernels::PackedMatrix*> Matrices() const override {
    return {&q_, &k_, &v_, &out_};
  }

 private:
  // x [tokens, heads * K] to its features [tokens, heads, K].
  TensorView MapFeatures(const StepContext& step, TensorView x, int heads,
                         const kernels::PackedMatrix& map, bool normalize) const {
    const int64_t tokens = x.size(0);
    const TensorView by_head = x.Reshape({tokens, heads, p_.key_dim});
    switch (p_.feature_map) {
      case FeatureMap::kIdentity:
        break;
      case FeatureMap::kRelu:
        kernels::Activate(x, kernels::Activation::kRelu, x, step.stream);
        break;
      case FeatureMap::kElu:
        kernels::EluPlusOne(by_head, step.stream);
        break;
      case FeatureMap::kElementwiseProduct: {
        Scratch::Scope scope(step.scratch);
        TensorView rows = x.Reshape({tokens * heads, p_.key_dim});
        TensorView both = step.scratch.Activations(tokens * heads, 2 * p_.key_dim);
        kernels::MatMul(rows, map, {}, both, step.stream);
        kernels::Multiply(both.Columns(0, p_.key_dim), both.Columns(p_.key_dim, p_.key_dim), rows,
                          step.stream);
        break;
      }
    }
    if (normalize) kernels::DivideBySum(by_head, kNormEps, step.stream);
    return by_head;
  }

  const Params p_;
  const int64_t q_width_, k_width_, v_width_;
  kernels::PackedMatrix q_, k_, v_, map_q_, map_k_, out_;
  FloatVector v_bias_, norm_;
  int64_t state_offset_ = 0;
};

}  // namespace

void ListTensors(const LinearAttnParams& p, int hidden, TensorList* list) {
  const int64_t key = p.key_dim;
  list->Add("q_proj.weight", {p.heads * key, hidden}, Role::kMatrix);
  list->Add("k_proj.weight", {p.kv_heads * key, hidden}, Role::kMatrix);
  list->Add("v_proj.weight", {int64_t{p.kv_heads} * p.value_dim, hidden}, Role::kMatrix);
  if (p.feature_map == FeatureMap::kElementwiseProduct) {
    for (const char* name : {"feature_map_q.layer1.weight", "feature_map_q.layer2.weight",
                             "feature_map_k.layer1.weight", "feature_map_k.layer2.weight"}) {
      list->Add(name, {key, key}, Role::kMatrix);
    }
  }
  list->Add("norm.weight", {p.value_dim}, Role::kNorm);
  list->Add("o_proj.weight", {hidden, int64_t{p.heads} * p.value_dim}, Role::kMatrix);
}

MixerNeeds Needs(const LinearAttnParams& p, int /*hidden*/, const StateTypes& /*types*/) {
  const int64_t state = p.heads * p.key_dim * StateDim(p);
  const int64_t key = p.key_dim;
  MixerNeeds needs;
  needs.slot_bytes = AlignState(state * 4);
  needs.scratch_floats = (p.heads + p.kv_heads) * key + p.kv_heads * StateDim(p) +
                         2 * p.heads * StateDim(p) + 2 * p.heads * key;
  needs.state_flops = 4.0 * static_cast<double>(state);
  return needs;
}

absl::StatusOr<std::unique_ptr<Mixer>> Make(const LinearAttnParams& params, const MixerPlace& place,
                                            WeightReader& weights) {
  auto mixer = std::make_unique<LinearAttn>(params);
  RETURN_IF_ERROR(mixer->Load(place, weights));
  return mixer;
}

}  // namespace weir::model
