#include "model/description.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "model/mixers/mixer.h"

namespace weir::model {

using Role = TensorNeed::Role;

std::string LayerPrefix(int layer) { return absl::StrCat("layers.", layer, "."); }

std::string MixerPrefix(int layer, int mixer) {
  return absl::StrCat(LayerPrefix(layer), "mixers.", mixer, ".");
}

// Llama 3's rule (Grattafiori et al., "The Llama 3 Herd of Models", 2024): slow pairs are stretched
// by `factor`, fast ones kept, those between blended.
std::vector<float> RopeFrequencies(const RopeParams& rope) {
  std::vector<float> frequencies;
  for (int i = 0; i < rope.dim / 2; ++i) {
    double f = std::pow(rope.theta, -2.0 * i / rope.dim);
    if (rope.scaling == RopeParams::Scaling::kLinear) {
      f /= rope.factor;
    } else if (rope.scaling == RopeParams::Scaling::kLlama3) {
      const double turns = rope.original_max_position * f / (2 * std::numbers::pi);
      const double keep = std::clamp(
          (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
          1.0);
      f = (1 - keep) * f / rope.factor + keep * f;
    }
    frequencies.push_back(static_cast<float>(f));
  }
  return frequencies;
}

namespace {

void ListNorm(const ModelDescription& model, const std::string& name, TensorList* list) {
  list->Add(name + ".weight", {model.hidden_size}, Role::kNorm);
  if (model.norm == NormKind::kLayer) list->Add(name + ".bias", {model.hidden_size}, Role::kBias);
}

void ListFeedForward(const FeedForwardDescription& ff, int hidden, TensorList* list) {
  const auto add = [&](const char* name, int64_t out, int64_t in) {
    list->Add(absl::StrCat("mlp.", name, ".weight"), {out, in}, Role::kMatrix);
    if (ff.bias) list->Add(absl::StrCat("mlp.", name, ".bias"), {out}, Role::kBias);
  };
  if (ff.gated) add("gate_proj", ff.intermediate_size, hidden);
  add("up_proj", ff.intermediate_size, hidden);
  add("down_proj", hidden, ff.intermediate_size);
}

}  // namespace

std::vector<TensorNeed> ModelTensors(const ModelDescription& model) {
  std::vector<TensorNeed> all;
  TensorList top(&all, "", -1, -1);
  top.Add("embeddings.weight", {model.vocab_size, model.hidden_size},
          model.tied_head ? Role::kMatrix : Role::kTable);
  for (int n = 0; n < static_cast<int>(model.layers.size()); ++n) {
    const LayerDescription& layer = model.layers[static_cast<size_t>(n)];
    TensorList list(&all, LayerPrefix(n), n, -1);
    ListNorm(model, "mixer_norm", &list);
    const int count = static_cast<int>(layer.mixers.size());
    if (layer.join == LayerDescription::Join::kRouted) {
      list.Add("router.weight", {count, model.hidden_size}, Role::kRouter);
    }
    for (int m = 0; m < count; ++m) {
      TensorList inner(&all, MixerPrefix(n, m), n, m);
      ListMixerTensors(layer.mixers[static_cast<size_t>(m)], model.hidden_size, &inner);
    }
    if (layer.feed_forward) {
      ListNorm(model, "mlp_norm", &list);
      ListFeedForward(*layer.feed_forward, model.hidden_size, &list);
    }
  }
  ListNorm(model, "norm", &top);
  if (!model.tied_head) {
    top.Add("lm_head.weight", {model.vocab_size, model.hidden_size}, Role::kMatrix);
  }
  return all;
}

}  // namespace weir::model
