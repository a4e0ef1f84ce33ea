#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "core/thread_pool.h"
#include "kernels/norm.h"
#include "kernels/pointwise.h"

namespace weir::model {

void Decoder::Forward(const StepContext& step, TensorView ids, TensorView wanted,
                      TensorView out) const {
  Scratch::Scope scope(step.scratch);
  const Stream stream = step.stream;
  const int64_t tokens = ids.size(0), hidden = out.size(1);
  const bool all_rows = !wanted.defined();
  TensorView h = all_rows ? out : step.scratch.Floats(tokens, hidden);
  TensorView x = step.scratch.Activations(tokens, hidden);
  TensorView block = step.scratch.Activations(tokens, hidden);
  Embed(ids, h, stream);

  if (Joins(tokens, x.dtype(), stream)) {
    ForwardJoined(step, h, x, block);
    if (!all_rows) kernels::GatherRows(h, wanted, out, stream);
    return;
  }
  // What the last block computed is added to h together with the next norm.
  TensorView delta;
  for (const Layer& layer : layers_) {
    layer.mixer_norm.AddAndNorm(h, delta, residual_multiplier_, x, stream);
    if (layer.routed) {
      layer.routed->Forward(step, layer.mixers, x, residual_multiplier_, h);
      delta = TensorView();
    } else {
      for (size_t m = 0; m < layer.mixers.size(); ++m) {
        if (m > 0) kernels::AddScaled(h, block, residual_multiplier_, stream);
        layer.mixers[m]->Forward(step, x, block);
      }
      delta = block;
    }
    if (&layer == &layers_.back() && !all_rows) {
      // No token looks at another any more: only the wanted rows go on.
      if (wanted.size(0) == 0) return;
      kernels::GatherRows(h, wanted, out, stream);
      h = out;
      x = x.Rows(0, wanted.size(0));
      if (delta.defined()) kernels::GatherRows(delta, wanted, x, stream);
      block = block.Rows(0, wanted.size(0));
      std::swap(x, block);
      if (delta.defined()) delta = block;
    }
    if (layer.feed_forward) {
      layer.mlp_norm->AddAndNorm(h, delta, residual_multiplier_, x, stream);
      layer.feed_forward->Forward(step, x, block);
      delta = block;
    }
  }
  if (delta.defined()) kernels::AddScaled(h, delta, residual_multiplier_, stream);
}

void Decoder::ForwardJoined(const StepContext& step, TensorView h, TensorView x,
                            TensorView block) const {
  const TensorView room = step.scratch.Floats(kernels::SquaresParts(h.size(1)), kernels::kJoinRows);
  layers_[0].mixer_norm.AddAndNorm(h, {}, residual_multiplier_, x, step.stream);
  kernels::MatMulInput input = x;
  const auto run = [&](const auto& part, const BlockNorm* next) {
    if (next == nullptr) {
      part.Forward(step, input, block);
      kernels::AddScaled(h, block, residual_multiplier_, step.stream);
      return;
    }
    TensorView squares = room;
    part.Forward(step, input, next->AddTo(h, residual_multiplier_, block, &squares));
    input = next->Added(block, squares);
    std::swap(x, block);
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    run(*layers_[i].mixers[0], NormAfter(i, true));
    if (layers_[i].feed_forward) run(*layers_[i].feed_forward, NormAfter(i, false));
  }
}

bool Decoder::Joins(int64_t rows, DType activations, Stream stream) const {
  // Up to kStreamRows rows keep their bits whatever the batch, so all of them join or none; a
  // single one lost 1 % by it on an H200.
  if (layers_.empty() || rows <= kernels::kStreamRows) return false;
  const auto joins = [&](const std::vector<const kernels::PackedMatrix*>& matrices) {
    return std::all_of(matrices.begin(), matrices.end(), [&](const auto* matrix) {
      return kernels::MatMulJoins(*matrix, activations, rows, stream);
    });
  };
  return std::all_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
    return !layer.routed && layer.mixers.size() == 1 && layer.mixer_norm.can_join() &&
           joins(layer.mixers[0]->Matrices()) &&
           (!layer.feed_forward || joins(layer.feed_forward->Matrices()));
  });
}

const BlockNorm* Decoder::NormAfter(size_t layer, bool mixer) const {
  if (mixer && layers_[layer].feed_forward) return &*layers_[layer].mlp_norm;
  return layer + 1 < layers_.size() ? &layers_[layer + 1].mixer_norm : nullptr;
}

void Decoder::Logits(const StepContext& step, TensorView h, TensorView rows,
                     TensorView logits) const {
  Scratch::Scope scope(step.scratch);
  TensorView picked = h;
  if (rows.defined()) {
    picked = step.scratch.Floats(rows.size(0), h.size(1));
    kernels::GatherRows(h, rows, picked, step.stream);
  }
  TensorView x = step.scratch.Activations(picked.size(0), h.size(1));
  norm_.AddAndNorm(picked, {}, 1.0f, x, step.stream);
  kernels::MatMul(x, head_, {}, logits, step.stream);
}

void Decoder::Embed(TensorView ids, TensorView h, Stream stream) const {
  const TensorView table = embeddings_.view.defined() ? embeddings_.view : head_.table();
  if (table.defined()) {
    kernels::EmbeddingLookup(table, ids, embedding_multiplier_, h, stream);
    return;
  }
  stream.pool->ParallelRanges(ids.size(0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) head_.UnpackRow(ids.data<int32_t>()[t], h.row<float>(t));
  });
  if (embedding_multiplier_ != 1.0f) {
    kernels::AddScaled(h, h, embedding_multiplier_ - 1.0f, stream);
  }
}

int64_t Decoder::OpScratchBytes(const StepLimits& limits, Stream stream) const {
  int64_t bytes = 0;
  for (const Layer& layer : layers_) {
    for (const auto& mixer : layer.mixers) {
      bytes = std::max(bytes, mixer->OpScratchBytes(limits, stream));
    }
  }
  return bytes;
}

bool Decoder::has_routed_layers() const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [](const Layer& layer) { return layer.routed.has_value(); });
}

std::vector<const kernels::PackedMatrix*> Decoder::Matrices() const {
  std::vector<const kernels::PackedMatrix*> all;
  const auto append = [&](const std::vector<const kernels::PackedMatrix*>& some) {
    all.insert(all.end(), some.begin(), some.end());
  };
  for (const Layer& layer : layers_) {
    for (const auto& mixer : layer.mixers) append(mixer->Matrices());
    if (layer.feed_forward) append(layer.feed_forward->Matrices());
  }
  all.push_back(&head_);
  return all;
}

absl::StatusOr<BlockNorm> BlockNorm::Make(const ModelDescription& model, const std::string& name,
                                          float gain, WeightReader& weights) {
  const auto load = [&](const std::string& tensor) -> absl::StatusOr<FloatVector> {
    ASSIGN_OR_RETURN(std::vector<float> values, weights.Values(tensor));
    for (float& value : values) value *= gain;
    return FloatVector::From(values, weights.stream());
  };
  BlockNorm norm;
  norm.kind_ = model.norm;
  norm.eps_ = model.norm_eps;
  ASSIGN_OR_RETURN(norm.weight_, load(name + ".weight"));
  if (norm.kind_ == NormKind::kLayer) {
    ASSIGN_OR_RETURN(norm.bias_, load(name + ".bias"));
  }
  return norm;
}

void BlockNorm::AddAndNorm(TensorView h, TensorView delta, float scale, TensorView out,
                           Stream stream) const {
  if (kind_ == NormKind::kRms) {
    kernels::AddRmsNorm({h, delta, scale, weight_.view(), eps_, out}, stream);
    return;
  }
  if (delta.defined()) kernels::AddScaled(h, delta, scale, stream);
  kernels::LayerNorm({h, weight_.view(), bias_.view(), eps_, out}, stream);
}

kernels::MatMulOutput BlockNorm::AddTo(TensorView h, float scale, TensorView out,
                                       TensorView* squares) const {
  kernels::MatMulOutput output = out;
  output.h = h;
  output.scale = scale;
  output.norm_weight = weight_.view();
  output.squares = squares;
  return output;
}

kernels::MatMulInput BlockNorm::Added(TensorView out, TensorView squares) const {
  kernels::MatMulInput input = out;
  input.squares = squares;
  input.eps = eps_;
  return input;
}

absl::Status Decoder::LoadLayer(const ModelDescription& model, const MemoryPlan& plan, int index,
                                WeightReader& weights) {
  const LayerDescription& from = model.layers[static_cast<size_t>(index)];
  const LayerPlan& place = plan.layers[static_cast<size_t>(index)];
  const std::string prefix = LayerPrefix(index);
  Layer layer;
  ASSIGN_OR_RETURN(layer.mixer_norm, BlockNorm::Make(model, prefix + "mixer_norm", 1.0f, weights));
  for (size_t m = 0; m < from.mixers.size(); ++m) {
    MixerPlace at;
    at.prefix = MixerPrefix(index, static_cast<int>(m));
    at.hidden = model.hidden_size;
    at.slot_offset = place.mixers[m].slot;
    at.page_offset = place.mixers[m].page;
    at.types = plan.types;
    ASSIGN_OR_RETURN(auto mixer, MakeMixer(from.mixers[m], at, weights));
    layer.mixers.push_back(std::move(mixer));
  }
  if (from.join == LayerDescription::Join::kRouted) {
    ASSIGN_OR_RETURN(layer.routed, RoutedMixers::Make(from, place, index, weights));
  }
  if (from.feed_forward) {
    ASSIGN_OR_RETURN(layer.mlp_norm, BlockNorm::Make(model, prefix + "mlp_norm", 1.0f, weights));
    ASSIGN_OR_RETURN(layer.feed_forward,
                     FeedForward::Make(*from.feed_forward, prefix + "mlp.", weights));
  }
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

absl::StatusOr<Decoder> Decoder::Load(const ModelDescription& model, const MemoryPlan& plan,
                                      WeightReader& weights) {
  Decoder decoder;
  decoder.embedding_multiplier_ = model.embedding_multiplier;
  decoder.residual_multiplier_ = model.residual_multiplier;
  if (model.tied_head) {
    ASSIGN_OR_RETURN(decoder.head_, weights.Matrix("", {"embeddings.weight"}));
  } else {
    ASSIGN_OR_RETURN(decoder.embeddings_, weights.EmbeddingTable("embeddings.weight"));
  }
  for (int n = 0; n < static_cast<int>(model.layers.size()); ++n) {
    RETURN_IF_ERROR(decoder.LoadLayer(model, plan, n, weights));
  }
  // logits * multiplier = (norm(h) * multiplier) @ head^T
  ASSIGN_OR_RETURN(decoder.norm_, BlockNorm::Make(model, "norm", model.logits_multiplier, weights));
  if (!model.tied_head) {
    ASSIGN_OR_RETURN(decoder.head_, weights.Matrix("", {"lm_head.weight"}));
  }
  decoder.weight_bytes_ = weights.bytes_kept();
  return decoder;
}

}  // namespace weir::model
