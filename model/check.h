// Does this build on this machine reproduce reference logits, on every path by which a sequence can
// be run? Behind `weir check` and the golden tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "core/status.h"
#include "model/model.h"
#include "scheduler/executor.h"

namespace weir::model {

// One prompt of an expected file.
struct ExpectedPrompt {
  std::vector<int32_t> tokens;  // [T], not empty
  std::vector<float> logits;    // [T, vocab]
  std::vector<int32_t> greedy;  // the argmax continuation; may be empty
};

// Reads prompt_<i> (int64 [T]), logits_<i> (float32 [T, vocab]) and, where present, greedy_<i>
// (int64 [N]) for i = 0, 1, ... INVALID_ARGUMENT for other types or shapes, ids out of range, or no
// prompt.
absl::StatusOr<std::vector<ExpectedPrompt>> ReadExpected(const std::string& path, int vocab_size);

// Drives an executor by hand: sequences with slots and pages of their own, taken in an order that
// the seed shuffles. One thread; nobody else may use the executor meanwhile.
class ManualEngine {
 public:
  ManualEngine(scheduler::Executor* executor, uint64_t seed);

  // A new sequence that may grow to `max_tokens`. RESOURCE_EXHAUSTED when slots or pages run out.
  absl::StatusOr<int> Open(int max_tokens);
  void Close(int sequence);
  int position(int sequence) const { return sequences_[static_cast<size_t>(sequence)].position; }

  struct Run {
    int sequence = 0;
    std::vector<int32_t> tokens;
  };
  // One step; the logits of every token of every run, [tokens, vocab] each. REQUIRES: within the
  // executor's limits.
  std::vector<std::vector<float>> Step(const std::vector<Run>& runs);

  // As a server runs them: all prompts in one step, then decode steps of which each is fed by the
  // one before it, two in flight, tokens chosen by the executor's sampler. The `count` >= 1 tokens
  // that follow each prompt. REQUIRES: within the executor's limits.
  std::vector<std::vector<int32_t>> Greedy(const std::vector<Run>& prompts, int count);

  // State of a sequence out to host memory, and back into a new one.
  std::vector<std::byte> Save(int sequence);
  absl::StatusOr<int> Restore(absl::Span<const std::byte> state, int position, int max_tokens);

 private:
  struct Sequence {
    int32_t slot = -1;
    std::vector<int32_t> pages;
    int position = 0;
  };
  int32_t Take(std::vector<int32_t>* free);

  scheduler::Executor* executor_;
  uint64_t seed_, draws_ = 0;
  std::vector<int32_t> free_slots_, free_pages_;
  std::vector<Sequence> sequences_;
};

// ‖ours − ref‖ / ‖ref‖; infinite when sizes differ or a number is not finite.
double RelativeError(absl::Span<const float> ours, absl::Span<const float> reference);
double MaxAbsError(absl::Span<const float> ours, absl::Span<const float> reference);

struct PathReport {
  std::string path;           // "whole", "chunks", "token by token", "packed", "as served"
  double relative_error = 0;  // of the worst prompt
  double max_abs_error = 0;   // over all prompts
  int worst_prompt = -1;
  int greedy_tokens = 0;  // expected, all prompts together
  int greedy_equal = 0;
  // Unequal, but our logits of the two candidates differ by less than the tolerance (of the row's
  // largest logit): reported, not failed.
  int greedy_ties = 0;
  bool ok = false;  // error within the tolerance; greedy tokens equal or ties
};

struct CheckReport {
  ModelInfo info;
  double tolerance = 0;
  int prompts = 0;
  std::vector<PathReport> paths;
  bool ok = false;  // all paths
};

// Loads the model at `path` and compares it with `expected_path` (empty: expected.safetensors in
// the folder) on every path: each prompt whole; cut into chunks at random places; token by token;
// all prompts packed in one batch, some in mid-decode; and, where the file has continuations,
// decoded as a server would (tokens only). Slots, pages and tokens per step are chosen to fit where
// `options` leaves them open. Errors as LoadModel and ReadExpected; a disagreement is not an error
// but a report that is not ok.
absl::StatusOr<CheckReport> CheckModel(const std::string& path, const std::string& expected_path,
                                       LoadOptions options, double tolerance, uint64_t seed);

}  // namespace weir::model
