// The routed join: a router picks, per token, which of a layer's mixers act on it. A mixer runs on
// the subsequence of tokens that picked it and keeps its state as it was for the others
// (docs/hybrid-format.md).
#pragma once

#include <memory>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "model/batch.h"
#include "model/description.h"
#include "model/mixers/mixer.h"
#include "model/plan.h"
#include "model/weights.h"

namespace weir::model {

class RoutedMixers {
 public:
  static absl::StatusOr<RoutedMixers> Make(const LayerDescription& layer, const LayerPlan& plan,
                                           int layer_index, WeightReader& weights);

  // h += scale * sum over the picked mixers of weight * mixer(x); x, h [tokens, D].
  //
  // The picks are looked at on the host: on a GPU every such layer waits for them.
  //
  // Each mixer's counter in the slot holds how many tokens it has seen: it says whether its state
  // is still to start from zero and how many entries its attention has stored.
  void Forward(const StepContext& step, const std::vector<std::unique_ptr<Mixer>>& mixers,
               TensorView x, float scale, TensorView h) const;

 private:
  // Turns router logits [tokens, mixers] into weights; -1 where a mixer was not picked.
  void Pick(TensorView logits) const;
  // The part of the batch that picked `mixer`, in step.routed; advances the counters.
  // `counters`: of all mixers, of the sequences of the batch one after another.
  BatchView Gather(const StepContext& step, TensorView picks, int mixer, float scale,
                   int32_t* counters) const;
  // Between the slots and `counters` (host).
  void CopyCounters(const StepContext& step, int count, bool to_slots, int32_t* counters) const;

  kernels::PackedMatrix router_;  // f32: a pick must not hang on rounding
  int top_k_ = 1;
  bool norm_topk_prob_ = false;
  int64_t counters_offset_ = 0;
};

}  // namespace weir::model
