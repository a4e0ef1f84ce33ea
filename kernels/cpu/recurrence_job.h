// One head of one sequence, as the recurrence kernels of each instruction set take it: plain data.
#pragma once

#include <stdint.h>

namespace weir::kernels {

// Strides are floats between tokens; q, k, v, g, beta and out point at the first token's values.
struct RecurrenceJob {
  bool vector_decay = false;
  bool delta = false;
  float scale = 1.0f;
  int64_t tokens = 0;  // >= 1
  int64_t dim_k = 0;
  int64_t dim_v = 0;  // columns of S computed here: v, out and state point at the first of them
  const float* q = nullptr;     // [dim_k]
  const float* k = nullptr;     // [dim_k]
  const float* v = nullptr;     // [dim_v]
  const float* g = nullptr;     // [dim_k] with vector_decay, else [1]; null: no decay
  const float* beta = nullptr;  // [1], with delta
  float* out = nullptr;         // [dim_v]
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, g_stride = 0, beta_stride = 0, out_stride = 0;
  float* state = nullptr;    // [dim_v, dim_k]
  bool fresh = false;        // read the state as zeros
  float* scratch = nullptr;  // RecurrenceScratchFloats(dim_k, dim_v) floats, 64-byte aligned
};

// Enough for every instruction set and form.
int64_t RecurrenceScratchFloats(int64_t dim_k, int64_t dim_v);

// Runs of up to this many tokens take the step form, longer ones the chunk form: a choice by the
// run's own length, so that a token's result does not depend on its batch.
constexpr int kStepTokens = 8;

void RunRecurrenceBaseline(const RecurrenceJob& job);
#if defined(__x86_64__)
void RunRecurrenceAvx2(const RecurrenceJob& job);
void RunRecurrenceAvx512(const RecurrenceJob& job);
#endif

}  // namespace weir::kernels
