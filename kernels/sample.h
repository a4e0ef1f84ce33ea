// From logits to a token, one row per sequence.
//
// Order of operations (documented for clients in proto/weir/v1): repetition, presence and frequency
// penalties and logit bias on the logits; forbidden tokens; then greedy when temperature == 0, else
// temperature, top-k, top-p, min-p on the probabilities and one draw (kernels/draw_noise.h: a seed
// gives the same token on every device unless the logits' roundings decide). Log probabilities are
// of the model's distribution after penalties and bias and before temperature and truncation.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/types/span.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace weir::kernels {

struct SampleRow {
  float temperature = 1.0f;  // 0: greedy; ties go to the lowest id
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // divides positive, multiplies negative logits of seen tokens
  float presence_penalty = 0.0f;    // subtracted once from each generated token
  float frequency_penalty = 0.0f;   // subtracted per occurrence among the generated tokens
  uint64_t seed = 0;
  uint64_t draw = 0;                    // index of the generated token: counter of the generator
  absl::Span<const int32_t> prompt;     // for repetition_penalty; empty when it is 1
  absl::Span<const int32_t> generated;  // for all penalties; empty when they are off
  absl::Span<const std::pair<int32_t, float>> logit_bias;
  absl::Span<const int32_t> forbidden;      // never sampled (stop ids below min_tokens)
  absl::Span<const uint32_t> allowed_mask;  // bit per id; empty: all allowed
  int32_t num_top_logprobs = -1;            // -1: no logprob wanted; 0: of the token only
};

struct SampleResult {
  int32_t token = -1;
  float logprob = 0.0f;
  // Descending; equal values by id. Capacity given by the caller, SampleRow::num_top_logprobs used.
  absl::Span<std::pair<int32_t, float>> top;
};

// logits [rows, vocab] f32; overwritten. results has rows entries. Deterministic: depends on the
// row alone. If every token is forbidden or every logit is NaN, token is -1.
void Sample(TensorView logits, absl::Span<const SampleRow> rows, absl::Span<SampleResult> results,
            Stream stream);

// Log probability of `targets[i]` and the top entries under row i, for prompt logprobs.
void LogProbs(TensorView logits, absl::Span<const int32_t> targets,
              absl::Span<SampleResult> results, Stream stream);

}  // namespace weir::kernels
