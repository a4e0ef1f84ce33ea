#include "model/plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "model/batch.h"
#include "model/feed_forward.h"
#include "model/mixers/mixer.h"

namespace weir::model {

namespace {
// One sequence's part of anything beyond this is a mistake in the config, not a model.
constexpr int64_t kMaxPartBytes = int64_t{1} << 40;
}  // namespace

absl::StatusOr<MemoryPlan> PlanMemory(const ModelDescription& model, const StateTypes& types,
                                      int page_tokens) {
  MemoryPlan plan;
  plan.types = types;
  int64_t slot = 0, page = 0;
  for (const LayerDescription& layer : model.layers) {
    LayerPlan out;
    const bool routed = layer.join == LayerDescription::Join::kRouted;
    const auto count = static_cast<int64_t>(layer.mixers.size());
    int64_t mixing = 0;
    for (const MixerDescription& mixer : layer.mixers) {
      const MixerNeeds needs = NeedsOf(mixer, model.hidden_size, types);
      out.mixers.push_back({slot, page});
      slot += AlignState(needs.slot_bytes);
      page += AlignState(needs.kv_bytes_per_token * page_tokens);
      if (routed && needs.kv_bytes_per_token > 0) plan.layout.pages_fill_in_order = false;
      mixing = std::max(mixing, needs.scratch_floats);
      if (std::max({slot, page, 4 * mixing}) > kMaxPartBytes) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the model needs more than ", kMaxPartBytes,
                         " bytes for the state or the activations of one sequence"));
      }
    }
    if (routed) {
      out.counters = slot;
      slot += AlignState(count * 4);
      // Router probabilities, gathered input and output of one mixer.
      mixing += count + 2 * model.hidden_size;
    }
    const int64_t feeding =
        layer.feed_forward ? FeedForward::ScratchFloats(*layer.feed_forward) : 0;
    out.scratch_floats = std::max(mixing, feeding);
    plan.scratch_floats_per_token = std::max(plan.scratch_floats_per_token, out.scratch_floats);
    plan.layers.push_back(std::move(out));
  }
  plan.layout.slot_bytes = std::max<int64_t>(slot, kStateAlignment);
  plan.layout.page_bytes = page;
  plan.layout.page_tokens = page > 0 ? page_tokens : 0;
  return plan;
}

}  // namespace weir::model
