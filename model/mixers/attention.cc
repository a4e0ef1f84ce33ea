// attn and local_attn: softmax attention. The keys and values of attn lie in pages, those of
// local_attn in a ring of `window` entries in the slot.
#include <cmath>

#include "kernels/attention.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

using Params = AttnParams;
using Role = TensorNeed::Role;

// Columns of the one projection that reads x: q | k | v | output gate.
struct Columns {
  explicit Columns(const Params& p)
      : width(int64_t{p.heads} * p.head_dim),
        kv_width(int64_t{p.kv_heads} * p.head_dim),
        k(width),
        v(k + kv_width),
        gate(v + kv_width),
        total(gate + (p.output_gate ? width : 0)) {}
  int64_t width, kv_width, q = 0, k, v, gate, total;
};

class Attention final : public Mixer {
 public:
  explicit Attention(const Params& params) : p_(params), at_(params) {}

  absl::Status Load(const MixerPlace& place, WeightReader& weights) {
    const std::string& prefix = place.prefix;
    std::vector<RowBlock> blocks = {"q_proj.weight", "k_proj.weight", "v_proj.weight"};
    if (p_.output_gate) blocks.push_back("g_proj.weight");
    ASSIGN_OR_RETURN(in_, weights.Matrix(prefix, blocks));
    RETURN_IF_ERROR(LoadBiases(prefix, weights));
    if (p_.qk_norm) {
      ASSIGN_OR_RETURN(q_norm_, weights.Vector(prefix + "q_norm.weight"));
      ASSIGN_OR_RETURN(k_norm_, weights.Vector(prefix + "k_norm.weight"));
    }
    ASSIGN_OR_RETURN(inv_freq_, FloatVector::From(RopeFrequencies(p_.rope), weights.stream()));
    ASSIGN_OR_RETURN(out_, weights.Matrix(prefix, {"o_proj.weight"}));
    slot_offset_ = place.slot_offset;
    page_offset_ = place.page_offset;
    return absl::OkStatus();
  }

  void Forward(const StepContext& step, const kernels::MatMulInput& x,
               const kernels::MatMulOutput& out) const override {
    const int64_t tokens = x.x.size(0);
    Scratch::Scope scope(step.scratch);
    TensorView in = step.scratch.Activations(tokens, at_.total);
    kernels::MatMul(x, in_, in_bias_.view(), in, step.stream);
    kernels::AttentionArgs args;
    args.q = Heads(in, at_.q, p_.heads, p_.head_dim);
    args.k = Heads(in, at_.k, p_.kv_heads, p_.head_dim);
    args.v = Heads(in, at_.v, p_.kv_heads, p_.head_dim);
    args.q_norm = q_norm_.view();
    args.k_norm = k_norm_.view();
    args.norm_eps = p_.norm_eps;
    args.positions = step.batch.positions;
    args.inv_freq = inv_freq_.view();
    if (p_.output_gate) args.gate = in.Columns(at_.gate, at_.width);
    TensorView o = step.scratch.Activations(tokens, at_.width);
    args.out = o.Reshape({tokens, p_.heads, p_.head_dim});
    args.scale = p_.scale;
    args.offsets = step.batch.offsets;
    args.slots = step.batch.slots;
    args.cached = step.batch.cached;
    args.host_offsets = step.batch.host_offsets;
    args.host_cached = step.batch.host_cached;
    args.max_entries = step.batch.max_entries;
    args.scratch = step.op_scratch;
    Attend(step, args);
    kernels::MatMul(o, out_, out_bias_.view(), out, step.stream);
  }

  int64_t OpScratchBytes(const StepLimits& limits, Stream stream) const override {
    return kernels::AttentionScratchBytes(p_.heads, p_.kv_heads, p_.head_dim, limits.tokens,
                                          limits.sequences, limits.max_entries, limits.activations,
                                          stream);
  }
  std::vector<const kernels::PackedMatrix*> Matrices() const override { return {&in_, &out_}; }

 private:
  void Attend(const StepContext& step, const kernels::AttentionArgs& args) const {
    if (p_.window > 0) {
      kernels::RingKv ring;
      ring.base = step.state.slots + slot_offset_;
      ring.slot_stride_bytes = step.state.slot_bytes;
      ring.window = p_.window;
      ring.dtype = step.state.types.kv;
      kernels::WindowAttention(args, ring, step.stream);
      return;
    }
    kernels::PagedKv kv;
    kv.base = step.state.pages;
    kv.page_stride_bytes = step.state.page_bytes;
    kv.layer_offset_bytes = page_offset_;
    kv.page_tokens = step.state.page_tokens;
    kv.dtype = step.state.types.kv;
    kv.block_table = step.batch.block_table;
    kernels::PagedAttention(args, kv, step.stream);
  }

  // The stacked bias of q, k, v and gate; zeros where one has none.
  absl::Status LoadBiases(const std::string& prefix, WeightReader& weights) {
    std::vector<float> bias;
    const auto append = [&](bool present, const char* name, int64_t width) -> absl::Status {
      std::vector<float> part(static_cast<size_t>(width), 0.0f);
      if (present) {
        ASSIGN_OR_RETURN(part, weights.Values(prefix + name));
      }
      bias.insert(bias.end(), part.begin(), part.end());
      return absl::OkStatus();
    };
    if (p_.qkv_bias || (p_.output_gate && p_.gate_bias)) {
      RETURN_IF_ERROR(append(p_.qkv_bias, "q_proj.bias", at_.width));
      RETURN_IF_ERROR(append(p_.qkv_bias, "k_proj.bias", at_.kv_width));
      RETURN_IF_ERROR(append(p_.qkv_bias, "v_proj.bias", at_.kv_width));
      if (p_.output_gate) RETURN_IF_ERROR(append(p_.gate_bias, "g_proj.bias", at_.width));
    }
    ASSIGN_OR_RETURN(in_bias_, FloatVector::From(bias, weights.stream()));
    if (p_.output_bias) {
      ASSIGN_OR_RETURN(out_bias_, weights.Vector(prefix + "o_proj.bias"));
    }
    return absl::OkStatus();
  }

  const Params p_;
  const Columns at_;
  kernels::PackedMatrix in_, out_;
  FloatVector in_bias_, out_bias_, q_norm_, k_norm_, inv_freq_;
  int64_t slot_offset_ = 0, page_offset_ = 0;
};

}  // namespace

void ListTensors(const AttnParams& p, int hidden, TensorList* list) {
  const Columns at(p);
  list->Add("q_proj.weight", {at.width, hidden}, Role::kMatrix);
  list->Add("k_proj.weight", {at.kv_width, hidden}, Role::kMatrix);
  list->Add("v_proj.weight", {at.kv_width, hidden}, Role::kMatrix);
  if (p.output_gate) list->Add("g_proj.weight", {at.width, hidden}, Role::kMatrix);
  if (p.qkv_bias) {
    list->Add("q_proj.bias", {at.width}, Role::kBias);
    list->Add("k_proj.bias", {at.kv_width}, Role::kBias);
    list->Add("v_proj.bias", {at.kv_width}, Role::kBias);
  }
  if (p.output_gate && p.gate_bias) list->Add("g_proj.bias", {at.width}, Role::kBias);
  if (p.qk_norm) {
    list->Add("q_norm.weight", {p.head_dim}, Role::kNorm);
    list->Add("k_norm.weight", {p.head_dim}, Role::kNorm);
  }
  list->Add("o_proj.weight", {hidden, at.width}, Role::kMatrix);
  if (p.output_bias) list->Add("o_proj.bias", {hidden}, Role::kBias);
}

MixerNeeds Needs(const AttnParams& p, int /*hidden*/, const StateTypes& types) {
  const Columns at(p);
  const int64_t entry_bytes = 2 * at.kv_width * DTypeSize(types.kv);
  MixerNeeds needs;
  if (p.window > 0) {
    needs.slot_bytes = AlignState(p.window * entry_bytes);
  } else {
    needs.kv_bytes_per_token = entry_bytes;
  }
  needs.scratch_floats = at.total + at.width;
  needs.entry_flops = 4.0 * static_cast<double>(at.width);
  needs.window = p.window;
  return needs;
}

absl::StatusOr<std::unique_ptr<Mixer>> Make(const AttnParams& params, const MixerPlace& place,
                                            WeightReader& weights) {
  auto mixer = std::make_unique<Attention>(params);
  RETURN_IF_ERROR(mixer->Load(place, weights));
  return mixer;
}

}  // namespace weir::model
