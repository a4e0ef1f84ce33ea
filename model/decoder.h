// The forward pass: from token ids to hidden states, and from hidden states to logits.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "kernels/matmul.h"
#include "model/batch.h"
#include "model/description.h"
#include "model/feed_forward.h"
#include "model/mixers/mixer.h"
#include "model/plan.h"
#include "model/routed.h"
#include "model/weights.h"

namespace weir::model {

// A norm between blocks.
class BlockNorm {
 public:
  // `gain` multiplies the output.
  static absl::StatusOr<BlockNorm> Make(const ModelDescription& model, const std::string& name,
                                        float gain, WeightReader& weights);
  // h += scale * delta (undefined: nothing); out = norm(h). All [rows, D].
  void AddAndNorm(TensorView h, TensorView delta, float scale, TensorView out, Stream stream) const;
  // The same with no kernel of its own: what `output`, to h, makes a block's last product do, and
  // what the next block's first product is then given. Of norms that can be split so.
  bool can_join() const { return kind_ == NormKind::kRms; }
  kernels::MatMulOutput AddTo(TensorView h, float scale, TensorView out, TensorView* squares) const;
  kernels::MatMulInput Added(TensorView out, TensorView squares) const;

 private:
  NormKind kind_ = NormKind::kRms;
  float eps_ = 1e-6f;
  FloatVector weight_, bias_;
};

class Decoder {
 public:
  static absl::StatusOr<Decoder> Load(const ModelDescription& model, const MemoryPlan& plan,
                                      WeightReader& weights);

  // Floats per token that Forward takes of the scratch, beside what layers take.
  static int64_t OwnScratchFloats(int hidden) { return 3 * int64_t{hidden}; }
  // And once.
  static int64_t JoinScratchFloats(int hidden) {
    return kernels::SquaresParts(hidden) * kernels::kJoinRows;
  }

  // out [n, D] f32: the residual stream after the last layer in the rows `wanted` [n] i32 of the
  // batch (n may be 0); wanted undefined: in all of them. ids [tokens] i32. Advances the states of
  // the batch's slots.
  void Forward(const StepContext& step, TensorView ids, TensorView wanted, TensorView out) const;

  // logits [n, vocab] f32 of the rows `rows` [n] i32 of h (undefined: of all). Takes 2 * n * D
  // floats of scratch.
  void Logits(const StepContext& step, TensorView h, TensorView rows, TensorView logits) const;

  // GPU: bytes of StepContext::op_scratch.
  int64_t OpScratchBytes(const StepLimits& limits, Stream stream) const;
  // Routed layers look at the router's picks on the host: no graph can hold that.
  bool has_routed_layers() const;
  // All matrices of all layers, and the head last.
  std::vector<const kernels::PackedMatrix*> Matrices() const;

  int64_t weight_bytes() const { return weight_bytes_; }

 private:
  struct Layer {
    BlockNorm mixer_norm;
    std::vector<std::unique_ptr<Mixer>> mixers;
    std::optional<RoutedMixers> routed;
    std::optional<BlockNorm> mlp_norm;
    std::optional<FeedForward> feed_forward;
  };

  absl::Status LoadLayer(const ModelDescription& model, const MemoryPlan& plan, int index,
                         WeightReader& weights);
  // Whether no kernel is needed between the blocks of a step of so many rows.
  bool Joins(int64_t rows, DType activations, Stream stream) const;
  // All layers on h, by way of x and block [rows, D].
  void ForwardJoined(const StepContext& step, TensorView h, TensorView x, TensorView block) const;
  // The norm that follows the mixer of that layer, or its feed-forward; null: none.
  const BlockNorm* NormAfter(size_t layer, bool mixer) const;
  void Embed(TensorView ids, TensorView h, Stream stream) const;

  float embedding_multiplier_ = 1.0f, residual_multiplier_ = 1.0f;
  WeightReader::Table embeddings_;  // undefined when the head is tied: its rows are looked up
  std::vector<Layer> layers_;
  BlockNorm norm_;
  kernels::PackedMatrix head_;
  int64_t weight_bytes_ = 0;
};

}  // namespace weir::model
