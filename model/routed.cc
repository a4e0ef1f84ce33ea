#include "model/routed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

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

void RoutedMixers::CopyCounters(const StepContext& step, int count, bool to_slots,
                                int32_t* counters) const {
  const auto bytes = static_cast<size_t>(count) * 4;
  const bool gpu = step.stream.device == Device::kCuda;
  for (int s = 0; s < step.batch.sequences; ++s) {
    const int32_t slot = step.batch.host->slots[s];
    if (slot < 0) continue;
    std::byte* in_slot = step.state.slots + slot * step.state.slot_bytes + counters_offset_;
    int32_t* here = counters + int64_t{s} * count;
    void* to = to_slots ? static_cast<void*>(in_slot) : here;
    const void* from = to_slots ? static_cast<const void*>(here) : in_slot;
    if (gpu) {
      cuda::Copy(to, from, bytes, step.stream);
    } else {
      std::memcpy(to, from, bytes);
    }
  }
  if (gpu) cuda::Synchronize(step.stream);
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

BatchView RoutedMixers::Gather(const StepContext& step, TensorView picks, int mixer, float scale,
                               int32_t* counters) const {
  const BatchView& all = step.batch;
  const BatchStorage& from = *all.host;
  BatchStorage& part = step.routed;
  const int64_t count = picks.size(1);
  int tokens = 0, sequences = 0, singles = 0;
  // Two rounds: sequences with one token come first.
  for (const bool single : {true, false}) {
    for (int s = 0; s < all.sequences; ++s) {
      if (from.slots[s] < 0) continue;
      const int begin = tokens;
      for (int32_t t = from.offsets[s]; t < from.offsets[s + 1]; ++t) {
        const float weight = picks.row<float>(t)[mixer];
        if (weight < 0.0f) continue;
        part.rows[tokens] = t;
        part.weights[tokens] = scale * weight;
        part.positions[tokens] = from.positions[t];
        ++tokens;
      }
      const int run = tokens - begin;
      if (run == 0 || (run == 1) != single) {
        tokens = begin;
        continue;
      }
      const int at = sequences++;
      if (single) ++singles;
      int32_t* counter = counters + s * count + mixer;
      part.offsets[at] = begin;
      part.offsets[at + 1] = tokens;
      part.slots[at] = from.slots[s];
      part.cached[at] = *counter;
      part.fresh[at] = *counter == 0 ? 1 : 0;
      *counter += run;
      if (part.columns > 0) {
        const int entries = part.cached[at] + run;
        std::copy_n(from.block_table + s * from.columns,
                    (entries + step.state.page_tokens - 1) / step.state.page_tokens,
                    part.block_table + at * part.columns);
      }
    }
  }
  if (tokens > 0) part.Upload(tokens, sequences, step.stream);
  return part.View(tokens, sequences, singles);
}

void RoutedMixers::Forward(const StepContext& step,
                           const std::vector<std::unique_ptr<Mixer>>& mixers, TensorView x,
                           float scale, TensorView h) const {
  const auto count = static_cast<int>(mixers.size());
  std::vector<int32_t> counters(static_cast<size_t>(step.batch.sequences * count));
  CopyCounters(step, count, false, counters.data());
  for (int s = 0; s < step.batch.sequences; ++s) {
    if (step.batch.host->fresh[s] != 0) std::fill_n(counters.data() + int64_t{s} * count, count, 0);
  }
  Scratch::Scope scope(step.scratch);
  TensorView picks = step.scratch.Floats(x.size(0), count);
  kernels::MatMul(x, router_, {}, picks, step.stream);
  std::vector<float> host_picks;
  if (step.stream.device == Device::kCuda) {
    host_picks.resize(static_cast<size_t>(picks.num_elements()));
    cuda::Copy(host_picks.data(), picks.raw(), host_picks.size() * 4, step.stream);
    cuda::Synchronize(step.stream);
    picks = TensorView(host_picks.data(), {x.size(0), count});
  }
  Pick(picks);
  for (int m = 0; m < count; ++m) {
    const BatchView part = Gather(step, picks, m, scale, counters.data());
    if (part.tokens == 0) continue;
    Scratch::Scope inner(step.scratch);
    const TensorView rows = step.routed.Rows(0, part.tokens);
    TensorView in = step.scratch.Activations(part.tokens, x.size(1));
    TensorView out = step.scratch.Activations(part.tokens, x.size(1));
    kernels::GatherRows(x, rows, in, step.stream);
    mixers[static_cast<size_t>(m)]->Forward(
        {part, step.state, step.scratch, step.routed, step.stream, step.op_scratch}, in, out);
    kernels::ScatterAddScaled(h, out, rows, step.routed.Weights(part.tokens), step.stream);
  }
  CopyCounters(step, count, true, counters.data());
}

}  // namespace weir::model
