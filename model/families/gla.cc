// `gla`: the GLA checkpoints of flash-linear-attention, with its option of attention layers.
#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "model/families/family.h"

namespace weir::model {
namespace {

// int(D * expand) spread over the heads, as the layer computes it.
int HeadDim(const Fields& f, const char* key, double fallback, int hidden, int heads) {
  const double expand = f.Number(key, 1e-6, 1e6, fallback);
  const auto total = static_cast<int64_t>(hidden * expand);
  if (f.ok() && (total < heads || total > kMaxWidth || total % heads != 0)) {
    f.Refuse("num_heads", absl::StrCat("it must divide int(hidden_size * ", key, ") = ", total));
    return 1;
  }
  return static_cast<int>(std::max<int64_t>(1, total / heads));
}

int KvHeads(const Fields& f, int heads) {
  const int kv = static_cast<int>(f.Int("num_kv_heads", 1, kMaxHeads, heads));
  if (f.ok() && heads % kv != 0) {
    f.Refuse("num_kv_heads", absl::StrCat("it must divide num_heads, ", heads));
  }
  return kv;
}

MixerDescription ReadGla(const Fields& f, const ModelDescription& model) {
  GatedLinearParams p;
  p.heads = static_cast<int>(f.Int("num_heads", 1, kMaxHeads, 4));
  p.kv_heads = KvHeads(f, p.heads);
  p.key_dim = HeadDim(f, "expand_k", 0.5, model.hidden_size, p.heads);
  p.value_dim = HeadDim(f, "expand_v", 1.0, model.hidden_size, p.heads);
  // Layer defaults there, not written by its config class; read where somebody added them.
  p.gate_rank = static_cast<int>(f.Int("gate_low_rank_dim", 1, kMaxWidth, 16));
  p.gate_normalizer = static_cast<float>(f.Number("gate_logit_normalizer", 1e-6, 1e6, 16.0));
  if (f.Has("clamp_min")) p.clamp_min = static_cast<float>(f.Number("clamp_min", -1e6, 0.0));
  p.output_gate = f.Bool("use_output_gate", true);
  p.norm_weight = f.Bool("elementwise_affine", true);
  p.conv.enabled = f.Bool("use_short_conv", false);
  p.conv.size = static_cast<int>(f.Int("conv_size", 1, kMaxConvSize, 4));
  p.norm_eps = model.norm_eps;
  return {"gla", p};
}

// One entry of `attn`: {"layers": [...], "num_heads": ...}.
MixerDescription ReadAttention(const Fields& f, const ModelDescription& model) {
  AttnParams p;
  p.heads = static_cast<int>(f.Int("num_heads", 1, kMaxHeads));
  p.kv_heads = KvHeads(f, p.heads);
  if (f.ok() && model.hidden_size % p.heads != 0) {
    f.Refuse("num_heads", absl::StrCat("it must divide hidden_size, ", model.hidden_size));
  }
  p.head_dim = model.hidden_size / p.heads;
  p.window = static_cast<int>(f.Int("window_size", 1, kMaxPosition, 0));
  p.rope.theta = f.Number("rope_theta", 1e-3, 1e12, 10000.0);
  p.rope.dim = p.head_dim;
  if (f.ok() && p.head_dim % 2 != 0) {
    f.Refuse("num_heads",
             absl::StrCat("heads of ", p.head_dim,
                          " dimensions cannot be turned in pairs by rotary embedding"));
  }
  p.qkv_bias = f.Bool("qkv_bias", false);
  p.qk_norm = f.Bool("qk_norm", false);
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  p.norm_eps = 1e-5f;  // of a bare norm layer there
  f.RefuseUnknown();
  return {p.window > 0 ? "local_attn" : "attn", p};
}

// Options that change the mathematics and are not served, refused unless they are off.
void RefuseUnserved(const Fields& f) {
  for (const char* key : {"attnres_block_size", "feature_map"}) {
    if (f.Has(key)) f.Refuse(key, "this option is not served; it must be null");
  }
  if (!f.Bool("use_gk", true)) f.Refuse("use_gk", "only models with a key gate are served");
  if (f.Bool("use_gv", false)) f.Refuse("use_gv", "value gates are not served");
  f.Choice("hidden_act", {"swish", "silu"}, "swish");
}

int IntermediateSize(const Fields& f, int hidden) {
  // Two thirds of the ratio, up to a multiple of 256, where the size is left out.
  const double ratio = f.Number("hidden_ratio", 0.01, 1000.0, 4.0);
  const auto part = static_cast<int64_t>(hidden * ratio * 2 / 3);
  return static_cast<int>(f.Int("intermediate_size", 1, kMaxWidth, (part + 255) / 256 * 256));
}

absl::StatusOr<ModelDescription> Parse(const Fields& f) {
  ModelDescription model;
  ReadCommon(f, &model);
  RefuseUnserved(f);
  model.norm_eps = static_cast<float>(f.Number("norm_eps", 0.0, 1.0, 1e-6));
  model.max_position = static_cast<int>(f.Int("max_position_embeddings", 1, kMaxPosition, 32768));
  const int layers = static_cast<int>(f.Int("num_hidden_layers", 1, kMaxLayers, 24));
  FeedForwardDescription ff;
  ff.intermediate_size = IntermediateSize(f, model.hidden_size);
  LayerDescription layer;
  layer.mixers.push_back(ReadGla(f, model));
  layer.feed_forward = ff;
  RETURN_IF_ERROR(f.status());
  model.layers.assign(static_cast<size_t>(layers), layer);

  std::vector<Fields> options;
  if (f.IsArray("attn")) {
    options = f.ObjectList("attn", false);
  } else if (f.Has("attn")) {
    options.push_back(f.Object("attn", false));
  }
  std::set<int64_t> taken;
  for (const Fields& option : options) {
    if (!option.Has("layers")) option.Refuse("layers", "it must list the layers with attention");
    const std::vector<int64_t> indices = option.IntList("layers", 0, layers - 1);
    const MixerDescription attention = ReadAttention(option, model);
    for (const int64_t index : indices) {
      if (!taken.insert(index).second) {
        option.Refuse("layers", absl::StrCat("layer ", index, " is named twice"));
      }
      model.layers[static_cast<size_t>(index)].mixers = {attention};
    }
  }
  RETURN_IF_ERROR(f.status());
  return model;
}

Placement Place(const ModelDescription&, const TensorNeed& need, const Checkpoint* checkpoint) {
  if (need.layer < 0) {
    return Whole(need.local == "lm_head.weight" ? need.local : absl::StrCat("model.", need.local),
                 need);
  }
  const std::string layer = absl::StrCat("model.", LayerPrefix(need.layer));
  if (need.mixer >= 0) {
    std::string name = absl::StrCat(layer, "attn.", need.local);
    // Without fuse_norm the gated norm has the plain one's name.
    if (need.local == "g_norm_swish_gate.weight" && checkpoint != nullptr &&
        checkpoint->Find(name) == nullptr) {
      const std::string unfused = absl::StrCat(layer, "attn.g_norm.weight");
      if (checkpoint->Find(unfused) != nullptr) name = unfused;
    }
    return Whole(std::move(name), need);
  }
  if (need.local == "mixer_norm.weight") return Whole(layer + "attn_norm.weight", need);
  // Checkpoints before February 2025 hold gate and up rows in one gate_proj.
  const std::string packed = layer + "mlp.gate_proj.weight";
  const bool gate = need.local == "mlp.gate_proj.weight", up = need.local == "mlp.up_proj.weight";
  if ((gate || up) && checkpoint != nullptr &&
      checkpoint->Find(layer + "mlp.up_proj.weight") == nullptr) {
    const int64_t size = need.shape[0];
    const StoredTensor* stored = checkpoint->Find(packed);
    if (stored != nullptr && stored->shape.size() == 2 && stored->shape[0] == 2 * size) {
      return RowRange(packed, need, gate ? 0 : size, 2 * size);
    }
  }
  return Whole(absl::StrCat(layer, need.local), need);
}

bool Skips(const ModelDescription& model, absl::string_view tensor) {
  return (model.tied_head && tensor == "lm_head.weight") ||
         absl::EndsWith(tensor, ".rotary.inv_freq");
}

}  // namespace

extern const Family kGlaFamily;
const Family kGlaFamily = {"gla", Parse, Place, Skips};

}  // namespace weir::model
