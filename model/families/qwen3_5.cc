// `qwen3_5_text`, and `qwen3_5`, which holds it beside a vision tower: gated delta rule in most
// layers, gated attention in the others, dense feed-forward parts.
#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "model/families/family.h"

namespace weir::model {
namespace {

MixerDescription ReadDelta(const Fields& f, const ModelDescription& model) {
  DeltaParams p;
  p.heads = static_cast<int>(f.Int("linear_num_key_heads", 1, kMaxHeads));
  p.value_heads = static_cast<int>(f.Int("linear_num_value_heads", 1, kMaxHeads));
  if (f.ok() && p.value_heads % p.heads != 0) {
    f.Refuse("linear_num_value_heads",
             absl::StrCat("it must be a multiple of linear_num_key_heads, ", p.heads));
  }
  p.key_dim = static_cast<int>(f.Int("linear_key_head_dim", 1, kMaxWidth));
  p.value_dim = static_cast<int>(f.Int("linear_value_head_dim", 1, kMaxWidth));
  p.conv.enabled = true;
  p.conv.size = static_cast<int>(f.Int("linear_conv_kernel_dim", 1, kMaxConvSize, 4));
  p.norm_eps = model.norm_eps;
  return {"gated_deltanet", p};
}

MixerDescription ReadAttention(const Fields& f, const ModelDescription& model) {
  AttnParams p;
  p.heads = static_cast<int>(f.Int("num_attention_heads", 1, kMaxHeads));
  p.kv_heads = static_cast<int>(f.Int("num_key_value_heads", 1, kMaxHeads, p.heads));
  if (f.ok() && p.heads % p.kv_heads != 0) {
    f.Refuse("num_key_value_heads", absl::StrCat("it must divide num_attention_heads, ", p.heads));
  }
  const int64_t share = model.hidden_size / std::max(1, p.heads);
  p.head_dim = static_cast<int>(f.Int("head_dim", 1, kMaxWidth, share));
  const bool nested = f.Has("rope_parameters");
  const Fields rope = nested ? f.Object("rope_parameters", false) : f;
  // Text alone gives the three axes of the interleaved multimodal form one position: plain RoPE.
  if (nested) rope.Choice("rope_type", {"default"}, "default");
  if (f.Has("rope_scaling")) {
    f.Object("rope_scaling", false).Choice("rope_type", {"default"}, "default");
  }
  p.rope.theta = rope.Number("rope_theta", 1e-3, 1e12, 1e7);
  const double factor = rope.Number("partial_rotary_factor", 0.0, 1.0,
                                    f.Number("partial_rotary_factor", 0.0, 1.0, 0.25));
  p.rope.dim = static_cast<int>(p.head_dim * factor);
  if (f.ok() && p.rope.dim % 2 != 0) {
    rope.Refuse("partial_rotary_factor", absl::StrCat("it turns ", p.rope.dim, " of ", p.head_dim,
                                                      " dimensions; the number must be even"));
  }
  p.qk_norm = true;
  p.output_gate = true;
  const bool bias = f.Bool("attention_bias", false);
  p.qkv_bias = p.gate_bias = p.output_bias = bias;
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  p.norm_eps = model.norm_eps;
  return {"attn", p};
}

// Per layer: does it attend?
std::vector<bool> ReadLayerTypes(const Fields& f, int layers) {
  std::vector<bool> attends;
  if (!f.Has("layer_types")) {
    const int64_t interval = f.Int("full_attention_interval", 1, kMaxLayers, 4);
    for (int i = 0; i < layers; ++i) attends.push_back((i + 1) % interval == 0);
    return attends;
  }
  for (const std::string& type : f.StringList("layer_types")) {
    const bool attention = type == "full_attention" || type == "attention";
    if (!attention && type != "linear_attention" && type != "mamba" && type != "conv") {
      f.Refuse("layer_types", absl::StrCat("\"", type.substr(0, 40),
                                           "\" is not a layer type; served "
                                           "are linear_attention and full_attention"));
    }
    attends.push_back(attention);
  }
  if (f.ok() && static_cast<int>(attends.size()) != layers) {
    f.Refuse("layer_types",
             absl::StrCat("it has ", attends.size(), " entries, num_hidden_layers is ", layers));
  }
  attends.resize(static_cast<size_t>(layers), false);
  return attends;
}

absl::StatusOr<ModelDescription> ParseText(const Fields& f) {
  ModelDescription model;
  ReadCommon(f, &model);
  for (const char* key : {"num_experts", "num_experts_per_tok", "moe_intermediate_size"}) {
    if (f.Has(key)) f.Refuse(key, "models with experts are not served");
  }
  if (!f.Bool("attn_output_gate", true)) {
    f.Refuse("attn_output_gate", "attention without its output gate is not served");
  }
  f.Choice("hidden_act", {"silu", "swish"}, "silu");
  model.norm_eps = static_cast<float>(f.Number("rms_norm_eps", 0.0, 1.0, 1e-6));
  model.zero_centered_norms = true;
  model.max_position = static_cast<int>(f.Int("max_position_embeddings", 1, kMaxPosition, 32768));
  const int layers = static_cast<int>(f.Int("num_hidden_layers", 1, kMaxLayers));
  FeedForwardDescription ff;
  ff.intermediate_size = static_cast<int>(f.Int("intermediate_size", 1, kMaxWidth));
  const MixerDescription delta = ReadDelta(f, model), attention = ReadAttention(f, model);
  for (const bool attends : ReadLayerTypes(f, layers)) {
    LayerDescription layer;
    layer.mixers.push_back(attends ? attention : delta);
    layer.feed_forward = ff;
    model.layers.push_back(std::move(layer));
  }
  RETURN_IF_ERROR(f.status());
  return model;
}

absl::StatusOr<ModelDescription> ParseMultimodal(const Fields& f) {
  const Fields text = f.Object("text_config", true);
  RETURN_IF_ERROR(f.status());
  ASSIGN_OR_RETURN(ModelDescription model, ParseText(text));
  // The outer flag decides which head the checkpoint holds.
  model.tied_head = f.Bool("tie_word_embeddings", model.tied_head);
  ReadTokenIds(f, &model);
  if (!model.config_dtype) ReadDType(f, &model);
  RETURN_IF_ERROR(f.status());
  return model;
}

// Text tensors lie under "model.language_model." beside a vision tower, else under "model.".
std::string Prefix(const Checkpoint* checkpoint) {
  const char* nested = "model.language_model.";
  const bool is_nested = checkpoint != nullptr &&
                         checkpoint->Find(absl::StrCat(nested, "embed_tokens.weight")) != nullptr;
  return is_nested ? nested : "model.";
}

Placement PlaceDelta(const DeltaParams& p, const std::string& at, const TensorNeed& need) {
  const int64_t keys = int64_t{p.heads} * p.key_dim, values = int64_t{p.value_heads} * p.value_dim;
  const int64_t all = 2 * keys + values;
  const std::string& name = need.local;
  const std::string qkv = at + "in_proj_qkv.weight", conv = at + "conv1d.weight";
  if (name == "q_proj.weight") return RowRange(qkv, need, 0, all);
  if (name == "k_proj.weight") return RowRange(qkv, need, keys, all);
  if (name == "v_proj.weight") return RowRange(qkv, need, 2 * keys, all);
  if (name == "q_conv1d.weight") return RowRange(conv, need, 0, all);
  if (name == "k_conv1d.weight") return RowRange(conv, need, keys, all);
  if (name == "v_conv1d.weight") return RowRange(conv, need, 2 * keys, all);
  if (name == "g_proj.weight") return Whole(at + "in_proj_z.weight", need);
  if (name == "a_proj.weight") return Whole(at + "in_proj_a.weight", need);
  if (name == "b_proj.weight") return Whole(at + "in_proj_b.weight", need);
  if (name == "o_norm.weight") return Whole(at + "norm.weight", need);  // not zero-centred
  if (name == "o_proj.weight") return Whole(at + "out_proj.weight", need);
  return Whole(at + name, need);
}

// q_proj holds, head by head, the query's rows and then the gate's.
Placement PlaceAttention(const AttnParams& p, const std::string& at, const TensorNeed& need) {
  const bool query = absl::StartsWith(need.local, "q_proj."),
             gate = absl::StartsWith(need.local, "g_proj.");
  if (!query && !gate) {
    Placement place = Whole(at + need.local, need);
    if (need.role == TensorNeed::Role::kNorm) place.add = 1.0f;
    return place;
  }
  Placement place = Whole(absl::StrCat(at, "q_proj.", need.local.substr(7)), need);
  place.shape[0] = 2 * need.shape[0];
  place.first = gate ? p.head_dim : 0;
  place.block_rows = p.head_dim;
  place.stride = 2 * p.head_dim;
  return place;
}

Placement Place(const ModelDescription& model, const TensorNeed& need,
                const Checkpoint* checkpoint) {
  if (need.name == "lm_head.weight") return Whole(need.name, need);
  const std::string prefix = Prefix(checkpoint);
  const std::string layer = absl::StrCat(prefix, LayerPrefix(need.layer));
  if (need.mixer >= 0) {
    const MixerParams& params = model.layers[static_cast<size_t>(need.layer)].mixers[0].params;
    if (const auto* delta = std::get_if<DeltaParams>(&params)) {
      return PlaceDelta(*delta, layer + "linear_attn.", need);
    }
    return PlaceAttention(std::get<AttnParams>(params), layer + "self_attn.", need);
  }
  std::string name = need.layer < 0 ? prefix + need.local : layer + need.local;
  if (need.local == "embeddings.weight") name = prefix + "embed_tokens.weight";
  if (need.local == "mixer_norm.weight") name = layer + "input_layernorm.weight";
  if (need.local == "mlp_norm.weight") name = layer + "post_attention_layernorm.weight";
  Placement place = Whole(std::move(name), need);
  if (need.role == TensorNeed::Role::kNorm) place.add = 1.0f;
  return place;
}

bool Skips(const ModelDescription& model, absl::string_view tensor) {
  for (const char* prefix :
       {"model.visual.", "visual.", "mtp.", "model.mtp.", "model.language_model.mtp."}) {
    if (absl::StartsWith(tensor, prefix)) return true;
  }
  return model.tied_head && tensor == "lm_head.weight";
}

}  // namespace

extern const Family kQwen35TextFamily;
extern const Family kQwen35Family;
const Family kQwen35TextFamily = {"qwen3_5_text", ParseText, Place, Skips};
const Family kQwen35Family = {"qwen3_5", ParseMultimodal, Place, Skips};

}  // namespace weir::model
