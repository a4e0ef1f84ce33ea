// What a step costs at least: bytes that must be read and operations that must be done. A benchmark
// divides them by the machine's own rates.
#pragma once

#include <cstdint>
#include <string>

#include "core/status.h"
#include "model/model.h"

namespace weir::model {

struct StepCost {
  // Read once per step, whatever the batch: all matrices (the embedding table only where it is the
  // head) and small parameters.
  int64_t weight_bytes = 0;
  // Read and written per sequence and step of decode: recurrent state and conv windows.
  int64_t state_bytes = 0;
  // Rings of local attention: read per sequence and step once `window` entries are stored.
  int64_t ring_bytes = 0;
  // Read per sequence, step and token of context by full attention.
  int64_t kv_bytes_per_context_token = 0;

  // Multiply-adds count as two. Per token, whatever rows are wanted: matrix products and
  // recurrences.
  double matrix_flops_per_token = 0;
  double state_flops_per_token = 0;
  // Per row of logits: the head, and the last layer's feed-forward part, which other rows skip.
  double head_flops = 0;
  // Per token and entry of context that full attention looks at.
  double attention_flops_per_context_token = 0;
  // Per token, of local attention with full windows.
  double window_flops_per_token = 0;

  // One step of decode: `batch` sequences at `context` tokens each.
  double DecodeBytes(int64_t batch, int64_t context) const {
    return static_cast<double>(weight_bytes) +
           static_cast<double>(batch) * static_cast<double>(2 * state_bytes + ring_bytes +
                                                            kv_bytes_per_context_token * context);
  }
  double DecodeFlops(int64_t batch, int64_t context) const {
    return static_cast<double>(batch) *
           (matrix_flops_per_token + state_flops_per_token + head_flops + window_flops_per_token +
            attention_flops_per_context_token * static_cast<double>(context));
  }
  // Prefill of `tokens` tokens from position 0, one row of logits.
  double PrefillFlops(int64_t tokens) const {
    const auto n = static_cast<double>(tokens);
    return n * (matrix_flops_per_token + state_flops_per_token + window_flops_per_token) +
           attention_flops_per_context_token * n * (n + 1) / 2 + head_flops;
  }
};

// From config.json (and tensor names) alone; errors as DescribeModel. Routed mixers count by the
// share of tokens that an even router sends them.
absl::StatusOr<StepCost> EstimateCost(const std::string& path, const LoadOptions& options);

}  // namespace weir::model
