// Sampling where nothing of the size of the vocabulary, and no synchronisation, passes between host
// and device: rows are described on the host, chosen on the device, and the tokens stay there for
// the next step. Same rules and, for the same logits, the same tokens as Sample (kernels/sample.h).
#pragma once

#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "core/status.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/sample.h"

namespace weir::kernels {

class DeviceSampler {
 public:
  struct Limits {
    int max_rows = 0;
    int vocab = 0;
    int max_top = 20;         // top logprobs per row
    int steps_in_flight = 2;  // host-side copies of descriptions and results
  };
  // Takes all memory it will ever need, and that of LogProbs. history_capacity: what Describe can
  // be given, all rows together, in words of four bytes: ids of prompts and answers (of rows with
  // penalties), two for a bias, one for a forbidden id, a word of an allowed_mask.
  // RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Make(const Limits& limits,
                                                             int64_t history_capacity,
                                                             Stream stream);
  virtual ~DeviceSampler() = default;

  // Describes the rows of the step that uses host-side copy `step` (0 ... steps_in_flight - 1) and
  // enqueues the upload. `append_fed[i]`: the row's history of generated tokens is to be extended
  // by the token that fed_tokens[i] (device, i32, of Launch) holds: it was sampled by the step
  // before. Outside graph capture; the caller makes sure that the copy's previous results have been
  // read.
  virtual void Describe(int step, absl::Span<const SampleRow> rows,
                        absl::Span<const uint8_t> append_fed, Stream stream) = 0;
  // Enqueues that the next Launch chooses nothing: for a captured launch whose rows cannot be
  // described yet. They are then described and launched once more.
  virtual void DescribeNone(Stream stream) = 0;
  // Chooses for rows [0, rows): logits [rows, vocab] f32 device, overwritten. tokens [rows] i32
  // device receives the ids (-1: nothing to choose from). Rows past those described are skipped.
  // Safe inside graph capture: the grid depends on `rows` alone.
  virtual void Launch(TensorView logits, TensorView fed_tokens, TensorView tokens,
                      Stream stream) = 0;
  // Enqueues the copy of the results of rows [0, rows) to the host-side copy `step`; outside
  // capture.
  virtual void Fetch(int step, int rows, bool with_logprobs, Stream stream) = 0;
  // After the fetch has completed (the caller waits for an event): results[i] of row i. Top entries
  // go to results[i].top as in Sample.
  virtual void Read(int step, absl::Span<SampleResult> results) = 0;

  virtual int64_t device_bytes() const = 0;
};

}  // namespace weir::kernels
