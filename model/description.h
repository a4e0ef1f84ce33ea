// A model as data: what a family's config.json comes down to. Everything after parsing (weights,
// state layout, forward pass) works from these structs and never learns which family wrote them.
//
// Letters as in docs/hybrid-format.md: D hidden size, H query heads, HK key/value heads, HV value
// heads, K and V a head's key and value dimensions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "kernels/short_conv.h"

namespace weir::model {

// Depthwise convolution over q, k and v of a linear-attention mixer.
struct ConvParams {
  bool enabled = false;
  int size = 4;  // taps
  bool bias = false;
};

// gla, simple_gla, retnet: S = D S + k v^T.
struct GatedLinearParams {
  enum class Gate : unsigned char {
    kVector,  // gla: low-rank, one value per key channel
    kScalar,  // simple_gla: one value per query head
    kFixed,   // retnet: a constant per query head, and RoPE on q and k
  };
  Gate gate = Gate::kVector;
  int heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0;
  int gate_rank = 16;  // kVector
  float gate_normalizer = 16.0f;
  std::optional<float> clamp_min;
  bool output_gate = true;
  bool norm_weight = true;  // false: the output norm has no weight
  ConvParams conv;
  double rope_theta = 10000.0;  // kFixed
  float norm_eps = 1e-6f;
};

// linear_attn: S = S + k v^T on mapped q and k.
struct LinearAttnParams {
  enum class FeatureMap : unsigned char { kIdentity, kRelu, kElu, kElementwiseProduct };
  int heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0;
  FeatureMap feature_map = FeatureMap::kIdentity;
  bool norm_q = false, norm_k = false, norm_feature_map = false;
  float norm_eps = 1e-6f;
};

// delta_net, gated_deltanet, kda: S = D S + k (beta (v - (D S)^T k))^T.
struct DeltaParams {
  enum class Gate : unsigned char {
    kNone,    // delta_net
    kScalar,  // gated_deltanet
    kVector,  // kda; its output gate is low-rank, with bias, and a sigmoid
  };
  enum class QkActivation : unsigned char { kSilu, kRelu, kElu, kIdentity };
  Gate gate = Gate::kScalar;
  int heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  bool use_beta = true;
  bool allow_neg_eigval = false;
  bool output_gate = true;
  QkActivation qk_activation = QkActivation::kSilu;
  bool l2_norm = true;               // false: q and k are divided by their sum
  std::optional<float> lower_bound;  // kVector
  ConvParams conv;
  float norm_eps = 1e-6f;
};

struct Mamba2Params {
  int heads = 0, head_dim = 0, state_size = 0, groups = 1;
  int conv_size = 4;
  bool bias = false, conv_bias = true;
  bool rms_norm = true, norm_before_gate = false;
  float dt_min = 0.0f;
  std::optional<float> dt_max;
  float norm_eps = 1e-6f;
};

// Rotary embedding of the first `dim` dimensions of each head; dim 0: none.
struct RopeParams {
  enum class Scaling : unsigned char { kNone, kLinear, kLlama3 };
  int dim = 0;
  double theta = 10000.0;
  Scaling scaling = Scaling::kNone;
  double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 4.0;
  double original_max_position = 8192.0;
};
// Angle per position of each pair, [dim / 2].
std::vector<float> RopeFrequencies(const RopeParams& rope);

// attn (window 0) and local_attn.
struct AttnParams {
  int heads = 0, kv_heads = 0, head_dim = 0;
  int window = 0;  // entries a token sees, itself included; 0: all
  RopeParams rope;
  bool qk_norm = false;
  bool qkv_bias = false;
  bool output_gate = false, gate_bias = false;
  bool output_bias = false;
  float scale = 1.0f;
  float norm_eps = 1e-6f;
};

// short_conv: out(C * conv(B * x)).
struct GatedConvParams {
  int size = 3;
  bool bias = false;
};

using MixerParams = std::variant<GatedLinearParams, LinearAttnParams, DeltaParams, Mamba2Params,
                                 AttnParams, GatedConvParams>;

struct MixerDescription {
  std::string type;  // "gla", "kda", ...: for people
  MixerParams params;
};

struct FeedForwardDescription {
  bool gated = true;  // down(act(gate x) * up x); false: down(act(up x))
  kernels::Activation activation = kernels::Activation::kSilu;
  int intermediate_size = 0;
  bool bias = false;
};

struct LayerDescription {
  enum class Join : unsigned char {
    kSum,     // one mixer, or several in parallel on the same input
    kRouted,  // a router picks top_k of the mixers per token
  };
  Join join = Join::kSum;
  std::vector<MixerDescription> mixers;  // not empty
  bool listed = false;                   // the config wrote a list of mixers, be it of one
  int top_k = 1;
  bool norm_topk_prob = false;
  std::optional<FeedForwardDescription> feed_forward;
};

enum class NormKind : unsigned char { kRms, kLayer };

struct ModelDescription {
  std::string family;
  int vocab_size = 0;
  int hidden_size = 0;
  int max_position = 0;
  NormKind norm = NormKind::kRms;
  bool zero_centered_norms = false;  // stored as w, meant as 1 + w: added while loading
  float norm_eps = 1e-6f;
  bool tied_head = false;  // the head is the embedding
  float embedding_multiplier = 1.0f, residual_multiplier = 1.0f, logits_multiplier = 1.0f;
  std::optional<DType> config_dtype;  // what the config says of the tensors; informative
  std::vector<int32_t> bos_ids, eos_ids;
  std::vector<LayerDescription> layers;
};

// One tensor that the forward pass needs, under our own name.
struct TensorNeed {
  enum class Role : unsigned char {
    kMatrix,
    kTable,
    kRouter,
    kConv,
    kNorm,
    kBias,
    kDecay,
    kStep,
    kSkip
  };
  std::string name;  // "layers.3.mixers.0.q_proj.weight": layers and mixers always numbered
  std::vector<int64_t> shape;
  Role role = Role::kMatrix;
  int layer = -1;     // -1: of the model
  int mixer = -1;     // -1: not of a mixer
  std::string local;  // name inside the mixer, the layer or the model: "q_proj.weight"

  int64_t num_elements() const {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    return n;
  }
};

// Every tensor of the model, in the order in which it is read.
std::vector<TensorNeed> ModelTensors(const ModelDescription& model);

// Prefixes of our names: "layers.3." and "layers.3.mixers.0.".
std::string LayerPrefix(int layer);
std::string MixerPrefix(int layer, int mixer);

}  // namespace weir::model
