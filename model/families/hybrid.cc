// The `hybrid` format (docs/hybrid-format.md): a model written out as a list of layers.
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "model/families/family.h"
#include "model/mixers/mixer.h"

namespace weir::model {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What mixers inherit from the model.
struct Context {
  int hidden = 0;
  double norm_eps = 1e-6;
};

int Count(const Fields& f, const char* key, int64_t max, std::optional<int64_t> fallback) {
  return static_cast<int>(f.Int(key, 1, max, fallback));
}

float Eps(const Fields& f, const Context& c) {
  return static_cast<float>(f.Number("norm_eps", 0.0, 1.0, c.norm_eps));
}

// D * expand / heads, rounded down, where `key` is not given.
int HeadDim(const Fields& f, const Context& c, const char* key, const char* expand_key,
            double expand, int heads) {
  if (expand_key != nullptr) expand = f.Number(expand_key, 1e-6, 1e6, expand);
  if (f.Has(key)) return Count(f, key, kMaxWidth, std::nullopt);
  const double dim = c.hidden * expand / heads;
  if (dim >= 1 && dim <= static_cast<double>(kMaxWidth)) return static_cast<int>(dim);
  if (f.ok()) {
    f.Refuse("num_heads", absl::StrCat("it leaves ", dim, " dimensions to each head (hidden_size ",
                                       c.hidden, " * ", expand, " / ", heads, "); give ", key));
  }
  return 1;
}

// A head count that must divide, or be a multiple of, `heads`.
int KvHeads(const Fields& f, int heads) {
  const int kv = Count(f, "num_kv_heads", kMaxHeads, heads);
  if (f.ok() && heads % kv != 0) {
    f.Refuse("num_kv_heads", absl::StrCat("it must divide num_heads, ", heads));
  }
  return kv;
}

int ValueHeads(const Fields& f, int heads) {
  const int v = Count(f, "num_v_heads", kMaxHeads, heads);
  if (f.ok() && v % heads != 0) {
    f.Refuse("num_v_heads", absl::StrCat("it must be a multiple of num_heads, ", heads));
  }
  return v;
}

ConvParams Conv(const Fields& f, bool enabled) {
  ConvParams conv;
  conv.enabled = f.Bool("use_short_conv", enabled);
  conv.size = Count(f, "conv_size", kMaxConvSize, 4);
  conv.bias = f.Bool("conv_bias", false);
  return conv;
}

MixerParams GatedLinear(const Fields& f, const Context& c, GatedLinearParams::Gate gate) {
  using Gate = GatedLinearParams::Gate;
  GatedLinearParams p;
  p.gate = gate;
  p.heads = Count(f, "num_heads", kMaxHeads, 4);
  p.kv_heads = KvHeads(f, p.heads);
  p.key_dim = HeadDim(f, c, "head_k_dim", "expand_k", gate == Gate::kVector ? 0.5 : 1.0, p.heads);
  p.value_dim = HeadDim(f, c, "head_v_dim", "expand_v", gate == Gate::kFixed ? 2.0 : 1.0, p.heads);
  if (gate == Gate::kVector) p.gate_rank = Count(f, "gate_low_rank_dim", kMaxWidth, 16);
  if (gate != Gate::kFixed) {
    p.gate_normalizer = static_cast<float>(f.Number("gate_logit_normalizer", 1e-6, 1e6, 16.0));
    if (f.Has("clamp_min")) p.clamp_min = static_cast<float>(f.Number("clamp_min", -1e6, 0.0));
  } else {
    p.rope_theta = f.Number("rope_theta", 1e-3, 1e12, 10000.0);
    if (f.ok() && p.key_dim % 2 != 0) {
      f.Refuse("head_k_dim", absl::StrCat("a key dimension of ", p.key_dim,
                                          " is odd; rotary embedding needs an even one"));
    }
  }
  p.output_gate = f.Bool("use_output_gate", true);
  p.conv = Conv(f, gate == Gate::kScalar);
  p.norm_eps = Eps(f, c);
  return p;
}

MixerParams Gla(const Fields& f, const Context& c) {
  return GatedLinear(f, c, GatedLinearParams::Gate::kVector);
}
MixerParams SimpleGla(const Fields& f, const Context& c) {
  return GatedLinear(f, c, GatedLinearParams::Gate::kScalar);
}
MixerParams Retnet(const Fields& f, const Context& c) {
  return GatedLinear(f, c, GatedLinearParams::Gate::kFixed);
}

MixerParams Linear(const Fields& f, const Context& c) {
  using Map = LinearAttnParams::FeatureMap;
  LinearAttnParams p;
  p.heads = Count(f, "num_heads", kMaxHeads, 4);
  p.kv_heads = KvHeads(f, p.heads);
  p.key_dim = HeadDim(f, c, "head_k_dim", "expand_k", 1.0, p.heads);
  p.value_dim = HeadDim(f, c, "head_v_dim", "expand_v", 1.0, p.heads);
  const std::string map =
      f.Choice("feature_map", {"identity", "relu", "elu", "elementwise_product"}, "identity");
  p.feature_map = map == "relu"                  ? Map::kRelu
                  : map == "elu"                 ? Map::kElu
                  : map == "elementwise_product" ? Map::kElementwiseProduct
                                                 : Map::kIdentity;
  p.norm_q = f.Bool("norm_q", false);
  p.norm_k = f.Bool("norm_k", false);
  p.norm_feature_map = f.Bool("norm_feature_map", false);
  p.norm_eps = Eps(f, c);
  return p;
}

MixerParams DeltaNet(const Fields& f, const Context& c) {
  using Act = DeltaParams::QkActivation;
  DeltaParams p;
  p.gate = DeltaParams::Gate::kNone;
  p.heads = Count(f, "num_heads", kMaxHeads, 4);
  p.value_heads = p.heads;
  p.key_dim = HeadDim(f, c, "head_k_dim", "expand_k", 1.0, p.heads);
  p.value_dim = HeadDim(f, c, "head_v_dim", "expand_v", 1.0, p.heads);
  p.use_beta = f.Bool("use_beta", true);
  p.output_gate = f.Bool("use_gate", false);
  p.allow_neg_eigval = f.Bool("allow_neg_eigval", false);
  p.l2_norm = f.Choice("qk_norm", {"l2", "sum"}, "l2") == "l2";
  const std::string act = f.Choice("qk_activation", {"silu", "relu", "elu", "identity"}, "silu");
  p.qk_activation = act == "relu"       ? Act::kRelu
                    : act == "elu"      ? Act::kElu
                    : act == "identity" ? Act::kIdentity
                                        : Act::kSilu;
  p.conv = Conv(f, true);
  p.norm_eps = Eps(f, c);
  return p;
}

DeltaParams GatedDelta(const Fields& f, const Context& c) {
  DeltaParams p;
  p.heads = Count(f, "num_heads", kMaxHeads, 4);
  p.value_heads = ValueHeads(f, p.heads);
  p.key_dim = HeadDim(f, c, "head_dim", nullptr, 1.0, p.heads);
  const double expand = f.Number("expand_v", 1e-6, 1e6, 1.0);
  const double value = p.key_dim * expand;
  if (f.ok() && (value < 1 || value > static_cast<double>(kMaxWidth))) {
    f.Refuse("expand_v", absl::StrCat("it makes heads of ", value, " values"));
  }
  p.value_dim = std::max(1, static_cast<int>(std::min<double>(value, kMaxWidth)));
  p.allow_neg_eigval = f.Bool("allow_neg_eigval", false);
  p.conv = Conv(f, true);
  p.norm_eps = Eps(f, c);
  return p;
}

MixerParams GatedDeltaNet(const Fields& f, const Context& c) {
  DeltaParams p = GatedDelta(f, c);
  p.output_gate = f.Bool("use_gate", true);
  return p;
}

MixerParams Kda(const Fields& f, const Context& c) {
  DeltaParams p = GatedDelta(f, c);
  p.gate = DeltaParams::Gate::kVector;
  if (f.Has("lower_bound")) {
    p.lower_bound = static_cast<float>(f.Number("lower_bound", -5.0, -1e-6));
  }
  return p;
}

MixerParams Mamba2(const Fields& f, const Context& c) {
  Mamba2Params p;
  p.heads = Count(f, "num_heads", kMaxHeads, 4);
  p.head_dim = HeadDim(f, c, "head_dim", "expand", 2.0, p.heads);
  p.state_size = Count(f, "state_size", kMaxWidth, 64);
  p.groups = Count(f, "n_groups", kMaxHeads, 1);
  if (f.ok() && p.heads % p.groups != 0) {
    f.Refuse("n_groups", absl::StrCat("it must divide num_heads, ", p.heads));
  }
  p.conv_size = Count(f, "conv_size", kMaxConvSize, 4);
  p.bias = f.Bool("use_bias", false);
  p.conv_bias = f.Bool("use_conv_bias", true);
  p.rms_norm = f.Bool("rms_norm", true);
  p.norm_before_gate = f.Bool("norm_before_gate", false);
  const std::vector<std::optional<double>> limit = f.NumberList("time_step_limit");
  if (!limit.empty()) {
    if (limit.size() != 2 || !limit[0] || *limit[0] < 0 || (limit[1] && *limit[1] <= *limit[0])) {
      f.Refuse("time_step_limit", "it must be [low, high], 0 <= low < high, or [low, null]");
    } else {
      p.dt_min = static_cast<float>(*limit[0]);
      if (limit[1]) p.dt_max = static_cast<float>(*limit[1]);
    }
  }
  p.norm_eps = Eps(f, c);
  return p;
}

RopeParams Rope(const Fields& f, int head_dim) {
  RopeParams rope;
  const double factor = f.Number("partial_rotary_factor", 0.0, 1.0, 1.0);
  rope.theta = f.Number("rope_theta", 1e-3, 1e12, 10000.0);
  const Fields scaling = f.Object("rope_scaling", false);
  if (f.Has("rope_scaling")) {
    const std::string type = scaling.Choice("rope_type", {"linear", "llama3"});
    rope.factor = scaling.Number("factor", 1e-6, 1e6);
    rope.scaling = RopeParams::Scaling::kLinear;
    if (type == "llama3") {
      rope.scaling = RopeParams::Scaling::kLlama3;
      rope.low_freq_factor = scaling.Number("low_freq_factor", 0.0, 1e6);
      rope.high_freq_factor = scaling.Number("high_freq_factor", 0.0, 1e6);
      rope.original_max_position =
          static_cast<double>(scaling.Int("original_max_position_embeddings", 1, kMaxPosition));
      if (f.ok() && rope.high_freq_factor <= rope.low_freq_factor) {
        scaling.Refuse("high_freq_factor", "it must be above low_freq_factor");
      }
    }
    scaling.RefuseUnknown();
  }
  if (f.IsNull("rope_theta")) return rope;
  rope.dim = static_cast<int>(factor * head_dim);
  if (f.ok() && rope.dim % 2 != 0) {
    f.Refuse("partial_rotary_factor", absl::StrCat("it turns ", rope.dim, " of ", head_dim,
                                                   " dimensions; the number must be even"));
  }
  return rope;
}

MixerParams Attention(const Fields& f, const Context& c) {
  AttnParams p;
  p.heads = Count(f, "num_heads", kMaxHeads, 4);
  p.kv_heads = KvHeads(f, p.heads);
  p.head_dim = HeadDim(f, c, "head_dim", nullptr, 1.0, p.heads);
  p.rope = Rope(f, p.head_dim);
  p.qk_norm = f.Bool("qk_norm", false);
  p.qkv_bias = f.Bool("qkv_bias", false);
  p.output_gate = f.Bool("output_gate", false);
  p.scale = static_cast<float>(f.Number("scale", 0.0, kInfinity, std::pow(p.head_dim, -0.5)));
  p.norm_eps = Eps(f, c);
  return p;
}

MixerParams LocalAttention(const Fields& f, const Context& c) {
  AttnParams p = std::get<AttnParams>(Attention(f, c));
  p.window = Count(f, "window", kMaxPosition, std::nullopt);
  return p;
}

MixerParams GatedConv(const Fields& f, const Context&) {
  GatedConvParams p;
  p.size = Count(f, "conv_size", kMaxConvSize, 3);
  p.bias = f.Bool("bias", false);
  return p;
}

struct MixerType {
  const char* name;
  MixerParams (*read)(const Fields& params, const Context& context);
};
const MixerType kMixerTypes[] = {
    {"gla", Gla},
    {"simple_gla", SimpleGla},
    {"retnet", Retnet},
    {"linear_attn", Linear},
    {"delta_net", DeltaNet},
    {"gated_deltanet", GatedDeltaNet},
    {"kda", Kda},
    {"mamba2", Mamba2},
    {"attn", Attention},
    {"local_attn", LocalAttention},
    {"short_conv", GatedConv},
};

// `mixer` is {"type", "params"}; its caller refuses what it does not know beside these.
MixerDescription ReadMixer(const Fields& mixer, const Context& context, const std::string& type) {
  MixerDescription description;
  description.type = type;
  const Fields params = mixer.Object("params", false);
  for (const MixerType& known : kMixerTypes) {
    if (type != known.name) continue;
    description.params = known.read(params, context);
    params.RefuseUnknown();
    return description;
  }
  std::string served;
  for (const MixerType& known : kMixerTypes) absl::StrAppend(&served, ", ", known.name);
  mixer.Refuse("type", absl::StrCat("no such mixer; served are: ", served.substr(2)));
  return description;
}

std::optional<FeedForwardDescription> ReadFeedForward(const Fields& owner) {
  using kernels::Activation;
  const Fields f = owner.Object("feed_forward", false);
  if (!owner.Has("feed_forward")) return std::nullopt;
  FeedForwardDescription ff;
  const std::string type = f.Choice("type", {"swiglu", "geglu", "mlp"});
  ff.intermediate_size = Count(f, "intermediate_size", kMaxWidth, std::nullopt);
  ff.bias = f.Bool("bias", false);
  ff.gated = type != "mlp";
  ff.activation = type == "swiglu" ? Activation::kSilu : Activation::kGeluTanh;
  const std::string act =
      f.Choice("activation", {"silu", "gelu", "gelu_tanh", "relu", "relu2"}, "gelu_tanh");
  if (type == "mlp") {
    ff.activation = act == "silu"        ? Activation::kSilu
                    : act == "gelu"      ? Activation::kGelu
                    : act == "gelu_tanh" ? Activation::kGeluTanh
                    : act == "relu"      ? Activation::kRelu
                                         : Activation::kRelu2;
  } else if (f.Has("activation")) {
    f.Refuse("activation", absl::StrCat("type ", type, " has its own activation; leave it out"));
  }
  f.RefuseUnknown();
  return ff;
}

LayerDescription ReadLayer(const Fields& f, const Context& context,
                           const std::optional<FeedForwardDescription>& common) {
  LayerDescription layer;
  const std::string type = f.String("type");
  layer.feed_forward =
      f.IsNull("feed_forward") || f.Has("feed_forward") ? ReadFeedForward(f) : common;
  if (type != "parallel" && type != "routed") {
    layer.mixers.push_back(ReadMixer(f, context, type));
    f.RefuseUnknown();
    return layer;
  }
  layer.listed = true;
  for (const Fields& mixer : f.ObjectList("mixers", true)) {
    const std::string inner = mixer.String("type");
    if (inner == "parallel" || inner == "routed") {
      mixer.Refuse("type", "parallel and routed layers do not nest");
      continue;
    }
    layer.mixers.push_back(ReadMixer(mixer, context, inner));
    mixer.RefuseUnknown();
  }
  constexpr size_t kMaxMixers = 64;
  if (f.ok() && (layer.mixers.empty() || layer.mixers.size() > kMaxMixers)) {
    f.Refuse("mixers", absl::StrCat("it must hold 1 to ", kMaxMixers, " mixers"));
  }
  if (type == "routed") {
    layer.join = LayerDescription::Join::kRouted;
    const int64_t count = std::max<int64_t>(1, static_cast<int64_t>(layer.mixers.size()));
    layer.top_k = Count(f, "top_k", count, 1);
    layer.norm_topk_prob = f.Bool("norm_topk_prob", false);
  }
  f.RefuseUnknown();
  return layer;
}

absl::StatusOr<ModelDescription> Parse(const Fields& f) {
  ModelDescription model;
  ReadCommon(f, &model);
  f.Ignore({"model_type", "architectures", "transformers_version"});
  const std::string norm =
      f.Choice("norm", {"rms_norm", "rms_norm_zero_centered", "layer_norm"}, "rms_norm");
  model.norm = norm == "layer_norm" ? NormKind::kLayer : NormKind::kRms;
  model.zero_centered_norms = norm == "rms_norm_zero_centered";
  Context context;
  context.hidden = model.hidden_size;
  context.norm_eps = f.Number("norm_eps", 0.0, 1.0, 1e-6);
  model.norm_eps = static_cast<float>(context.norm_eps);
  const auto multiplier = [&](const char* key) {
    return static_cast<float>(f.Number(key, -1e6, 1e6, 1.0));
  };
  model.embedding_multiplier = multiplier("embedding_multiplier");
  model.residual_multiplier = multiplier("residual_multiplier");
  model.logits_multiplier = multiplier("logits_multiplier");
  model.max_position = Count(f, "max_position_embeddings", kMaxPosition, 32768);
  const std::optional<FeedForwardDescription> common = ReadFeedForward(f);
  const std::vector<Fields> layers = f.ObjectList("layers", true);
  if (f.ok() && (layers.empty() || static_cast<int64_t>(layers.size()) > kMaxLayers)) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: layers has ", layers.size(),
                                                   " entries; it must have 1 to ", kMaxLayers));
  }
  for (const Fields& layer : layers) model.layers.push_back(ReadLayer(layer, context, common));
  f.RefuseUnknown();
  RETURN_IF_ERROR(f.status());
  return model;
}

Placement Place(const ModelDescription& model, const TensorNeed& need, const Checkpoint*) {
  if (need.name == "lm_head.weight") return Whole(need.name, need);
  std::string name = absl::StrCat("model.", need.name);
  if (need.mixer >= 0 && !model.layers[static_cast<size_t>(need.layer)].listed) {
    name = absl::StrCat("model.", LayerPrefix(need.layer), "mixer.", need.local);
  }
  Placement place = Whole(std::move(name), need);
  const bool block_norm = need.mixer < 0 && need.role == TensorNeed::Role::kNorm;
  if (block_norm && model.zero_centered_norms) place.add = 1.0f;
  return place;
}

bool Skips(const ModelDescription&, absl::string_view) { return false; }

}  // namespace

extern const Family kHybridFamily;
const Family kHybridFamily = {"hybrid", Parse, Place, Skips};

}  // namespace weir::model
