#include "model/cost.h"

#include "model/loading.h"
#include "model/mixers/mixer.h"

namespace weir::model {

absl::StatusOr<StepCost> EstimateCost(const std::string& path, const LoadOptions& options) {
  ASSIGN_OR_RETURN(const ModelFolder folder, OpenModelFolder(path, options));
  const ModelDescription& model = folder.description;
  const int64_t weight_size = DTypeSize(folder.info.compute_dtype);
  StepCost cost;
  const auto share = [&](int layer) {
    const LayerDescription& of = model.layers[static_cast<size_t>(layer)];
    return of.join == LayerDescription::Join::kRouted
               ? static_cast<double>(of.top_k) / static_cast<double>(of.mixers.size())
               : 1.0;
  };
  for (const TensorNeed& need : ModelTensors(model)) {
    if (need.role == TensorNeed::Role::kTable) continue;
    const bool matrix = need.role == TensorNeed::Role::kMatrix;
    cost.weight_bytes += need.num_elements() * (matrix ? weight_size : 4);
    if (!matrix && need.role != TensorNeed::Role::kRouter) continue;
    const double flops = 2.0 * static_cast<double>(need.num_elements());
    const bool last_feed_forward =
        need.mixer < 0 && need.layer + 1 == static_cast<int>(model.layers.size()) && matrix;
    if (need.layer < 0 || last_feed_forward) {
      cost.head_flops += flops;  // lm_head, or the embedding that serves as one
    } else {
      cost.matrix_flops_per_token += need.mixer >= 0 ? share(need.layer) * flops : flops;
    }
  }
  for (int n = 0; n < static_cast<int>(model.layers.size()); ++n) {
    for (const MixerDescription& mixer : model.layers[static_cast<size_t>(n)].mixers) {
      const MixerNeeds needs = NeedsOf(mixer, model.hidden_size, folder.plan.types);
      const double part = share(n);
      (needs.window > 0 ? cost.ring_bytes : cost.state_bytes) +=
          static_cast<int64_t>(part * static_cast<double>(needs.slot_bytes));
      cost.kv_bytes_per_context_token +=
          static_cast<int64_t>(part * static_cast<double>(needs.kv_bytes_per_token));
      cost.state_flops_per_token += part * needs.state_flops;
      if (needs.window > 0) {
        cost.window_flops_per_token += part * needs.entry_flops * static_cast<double>(needs.window);
      } else {
        cost.attention_flops_per_context_token += part * needs.entry_flops;
      }
    }
  }
  return cost;
}

}  // namespace weir::model
