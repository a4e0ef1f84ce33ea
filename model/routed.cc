#include "model/routed.h"

#include <algorithm>
#include <cmath>

#include "kernels/pointwise.h"

namespace weir::model {

absl::StatusOr<RoutedMixers> RoutedMixers::Make(const LayerDescription& layer,
                                                const LayerPlan& plan, int layer_index,
                                                WeightReader& weights) {
  RoutedMixers routed;
  ASSIGN_OR_RETURN(routed.router_,
                   weights.Matrix(LayerPrefix(layer_index), {"router.weight"}, DType::kF32));
  routed.top_k_ = layer.top_k;
  routed.norm_topk_prob_ = layer.norm_topk_prob;
  routed.counters_offset_ = plan.counters;
  return routed;
}

int32_t* RoutedMixers::Counters(const StepContext& step, int32_t slot) const {
  return reinterpret_cast<int32_t*>(step.state.slots + slot * step.state.slot_bytes +
                                    counters_offset_);
}

void RoutedMixers::Pick(TensorView logits) const {
  const int64_t count = logits.size(1);
  for (int64_t t = 0; t < logits.size(0); ++t) {
    float* p = logits.row<float>(t);
    const float max = *std::max_element(p, p + count);
    float sum = 0.0f;
    for (int64_t m = 0; m < count; ++m) sum += p[m] = std::exp(p[m] - max);
    for (int64_t m = 0; m < count; ++m) p[m] /= sum;
    // A pick is marked by turning its sign; of equal values the lower index goes first.
    float picked = 0.0f;
    for (int k = 0; k < top_k_; ++k) {
      int64_t best = -1;
      for (int64_t m = 0; m < count; ++m) {
        if (!std::signbit(p[m]) && (best < 0 || p[m] > p[best])) best = m;
      }
      if (best < 0) break;  // NaN logits: nothing to choose from
      picked += p[best];
      p[best] = -p[best];
    }
    const float divisor = norm_topk_prob_ && picked > 0.0f ? picked : 1.0f;
    for (int64_t m = 0; m < count; ++m) p[m] = std::signbit(p[m]) ? -p[m] / divisor : -1.0f;
  }
}

BatchView RoutedMixers::Gather(const StepContext& step, TensorView picks, int mixer,
                               float scale) const {
  const BatchView& all = step.batch;
  BatchStorage& part = step.routed;
  const int32_t* offsets = all.offsets.data<int32_t>();
  int tokens = 0, sequences = 0, singles = 0;
  // Two rounds: sequences with one token come first.
  for (const bool single : {true, false}) {
    for (int s = 0; s < all.sequences; ++s) {
      const int begin = tokens;
      for (int32_t t = offsets[s]; t < offsets[s + 1]; ++t) {
        const float weight = picks.row<float>(t)[mixer];
        if (weight < 0.0f) continue;
        const auto at = static_cast<size_t>(tokens++);
        part.rows[at] = t;
        part.weights[at] = scale * weight;
        part.positions[at] = all.positions.data<int32_t>()[t];
      }
      const int count = tokens - begin;
      if (count == 0 || (count == 1) != single) {
        tokens = begin;
        continue;
      }
      const auto at = static_cast<size_t>(sequences++);
      if (single) ++singles;
      const int32_t slot = all.slots.data<int32_t>()[s];
      int32_t* counter = Counters(step, slot) + mixer;
      part.offsets[at] = begin;
      part.offsets[at + 1] = tokens;
      part.slots[at] = slot;
      part.cached[at] = *counter;
      part.fresh[at] = *counter == 0 ? 1 : 0;
      *counter += count;
      if (part.columns > 0) {
        const int entries = part.cached[at] + count;
        std::copy_n(all.block_table.row<int32_t>(s),
                    (entries + step.state.page_tokens - 1) / step.state.page_tokens,
                    part.block_table.begin() + static_cast<int64_t>(at) * part.columns);
      }
    }
  }
  return part.View(tokens, sequences, singles);
}

void RoutedMixers::Forward(const StepContext& step,
                           const std::vector<std::unique_ptr<Mixer>>& mixers, TensorView x,
                           float scale, TensorView h) const {
  const auto count = static_cast<int>(mixers.size());
  for (int s = 0; s < step.batch.sequences; ++s) {
    if (step.batch.fresh.data<uint8_t>()[s] == 0) continue;
    std::fill_n(Counters(step, step.batch.slots.data<int32_t>()[s]), count, 0);
  }
  Scratch::Scope scope(step.scratch);
  TensorView picks = step.scratch.Floats(x.size(0), count);
  kernels::MatMul(x, router_, {}, picks, step.stream);
  Pick(picks);
  for (int m = 0; m < count; ++m) {
    const BatchView part = Gather(step, picks, m, scale);
    if (part.tokens == 0) continue;
    Scratch::Scope inner(step.scratch);
    TensorView rows(step.routed.rows.data(), {part.tokens});
    TensorView in = step.scratch.Floats(part.tokens, x.size(1));
    TensorView out = step.scratch.Floats(part.tokens, x.size(1));
    kernels::GatherRows(x, rows, in, step.stream);
    mixers[static_cast<size_t>(m)]->Forward(
        {part, step.state, step.scratch, step.routed, step.stream}, in, out);
    kernels::ScatterAddScaled(h, out, rows, TensorView(step.routed.weights.data(), {part.tokens}),
                              step.stream);
  }
}

}  // namespace weir::model
