#include "model/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/philox.h"
#include "model/loading.h"
#include "model/safetensors.h"

namespace weir::model {
namespace {

using scheduler::SequenceInput;
using scheduler::StepPlan;

// A number in [0, n), the `draw`-th of the seed.
int64_t RandomBelow(uint64_t seed, uint64_t draw, int64_t n) {
  return static_cast<int64_t>(Philox(seed, draw)[0] % static_cast<uint64_t>(n));
}

absl::Status ReadIds(const SafetensorsFile& file, const StoredTensor& tensor, int vocab_size,
                     std::vector<int32_t>* ids) {
  if (tensor.dtype != DType::kI64 || tensor.shape.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": ", tensor.name, " is ",
                                                   tensor.dtype_name, " ", tensor.ShapeString(),
                                                   ", expected I64 with one dimension"));
  }
  for (int64_t i = 0; i < tensor.shape[0]; ++i) {
    int64_t id = 0;
    std::memcpy(&id, tensor.data + 8 * i, 8);
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.path(), ": ", tensor.name, " holds token ", id, ", but the model has ", vocab_size));
    }
    ids->push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

// What one path gave for one prompt.
struct PathResult {
  std::vector<float> logits;                    // [T, vocab]
  std::vector<std::vector<float>> greedy_rows;  // the row from which each greedy token is chosen
};

// Where a prompt is cut: lengths that sum to its own.
std::vector<int> RandomChunks(int tokens, uint64_t seed, uint64_t draw) {
  std::vector<int> lengths;
  while (tokens > 0) {
    const auto most = std::max<int64_t>(1, std::min<int64_t>(tokens, tokens / 2 + 3));
    lengths.push_back(static_cast<int>(1 + RandomBelow(seed, draw++, most)));
    lengths.back() = std::min(lengths.back(), tokens);
    tokens -= lengths.back();
  }
  return lengths;
}

class Checker {
 public:
  Checker(LoadedModel* model, const std::vector<ExpectedPrompt>& prompts, double tolerance,
          uint64_t seed)
      : model_(model), prompts_(prompts), tolerance_(tolerance), seed_(seed) {}

  // Each prompt on its own, cut as `cut` says, then its continuation token by token.
  template <typename Cut>
  absl::StatusOr<PathReport> Alone(const std::string& name, const Cut& cut) {
    ManualEngine engine(model_->executor(), seed_);
    std::vector<PathResult> results(prompts_.size());
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const ExpectedPrompt& prompt = prompts_[p];
      ASSIGN_OR_RETURN(const int sequence, engine.Open(Length(prompt)));
      auto next = prompt.tokens.begin();
      for (const int length : cut(static_cast<int>(prompt.tokens.size()), p)) {
        Take(engine.Step({{sequence, {next, next + length}}})[0], &results[p]);
        next += length;
      }
      results[p].greedy_rows.push_back(LastRow(results[p].logits));
      for (size_t i = 0; i + 1 < prompt.greedy.size(); ++i) {
        results[p].greedy_rows.push_back(engine.Step({{sequence, {prompt.greedy[i]}}})[0]);
      }
      engine.Close(sequence);
    }
    return Judge(name, results);
  }

  // All prompts in one batch. Those with an even number come first but for their last tokens, which
  // are decoded while the others' whole prompts pass; then all continue together.
  absl::StatusOr<PathReport> Packed() {
    ManualEngine engine(model_->executor(), seed_ + 1);
    std::vector<PathResult> results(prompts_.size());
    std::vector<int> sequences;
    std::vector<size_t> done(prompts_.size(), 0);
    for (const ExpectedPrompt& prompt : prompts_) {
      ASSIGN_OR_RETURN(const int sequence, engine.Open(Length(prompt)));
      sequences.push_back(sequence);
    }
    constexpr size_t kDecoded = 3;
    std::vector<ManualEngine::Run> runs;
    std::vector<size_t> owners;
    const auto add = [&](size_t p, size_t count) {
      const auto begin = prompts_[p].tokens.begin() + static_cast<int64_t>(done[p]);
      runs.push_back({sequences[p], {begin, begin + static_cast<int64_t>(count)}});
      owners.push_back(p);
      done[p] += count;
    };
    const auto flush = [&] {
      if (runs.empty()) return;
      const std::vector<std::vector<float>> rows = engine.Step(runs);
      for (size_t i = 0; i < rows.size(); ++i) Take(rows[i], &results[owners[i]]);
      runs.clear();
      owners.clear();
    };
    for (size_t p = 0; p < prompts_.size(); p += 2) {
      const size_t size = prompts_[p].tokens.size();
      if (size > kDecoded) add(p, size - kDecoded);
    }
    flush();
    for (size_t left = 1; left > 0;) {
      for (size_t p = 0; p < prompts_.size(); ++p) {
        const size_t size = prompts_[p].tokens.size();
        if (done[p] < size) add(p, p % 2 == 0 ? 1 : size);
      }
      left = runs.size();
      flush();
    }
    Continue(engine, sequences, &results);
    return Judge("packed", results);
  }

  // Tokens alone, as a client would see them. Where they leave the expected ones, what the model
  // thinks of the two candidates there decides whether that is a tie.
  absl::StatusOr<PathReport> AsServed() {
    PathReport report;
    report.path = "as served";
    ManualEngine engine(model_->executor(), seed_ + 2);
    std::vector<ManualEngine::Run> runs;
    size_t count = 0;
    for (const ExpectedPrompt& prompt : prompts_) {
      count = std::max(count, prompt.greedy.size());
    }
    for (const ExpectedPrompt& prompt : prompts_) {
      ASSIGN_OR_RETURN(const int sequence,
                       engine.Open(static_cast<int>(prompt.tokens.size() + count)));
      runs.push_back({sequence, prompt.tokens});
    }
    const auto tokens = engine.Greedy(runs, static_cast<int>(count));
    for (const ManualEngine::Run& run : runs) engine.Close(run.sequence);
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const std::vector<int32_t>& expected = prompts_[p].greedy;
      report.greedy_tokens += static_cast<int>(expected.size());
      const auto [differ, there] =
          std::mismatch(expected.begin(), expected.end(), tokens[p].begin());
      const auto equal = static_cast<int>(differ - expected.begin());
      report.greedy_equal += equal;
      if (differ == expected.end()) continue;
      // What follows a tie is another text.
      ManualEngine::Run run{0, prompts_[p].tokens};
      ASSIGN_OR_RETURN(run.sequence, engine.Open(Length(prompts_[p])));
      run.tokens.insert(run.tokens.end(), expected.begin(), differ);
      const std::vector<float> row = LastRow(engine.Step({run})[0]);
      engine.Close(run.sequence);
      PathReport judged;
      JudgeGreedy(row, *differ, &judged);
      const bool close = judged.greedy_ties + judged.greedy_equal > 0;
      if (close) report.greedy_ties += static_cast<int>(expected.size()) - equal;
    }
    report.ok = report.greedy_equal + report.greedy_ties == report.greedy_tokens;
    return report;
  }

 private:
  static int Length(const ExpectedPrompt& prompt) {
    return static_cast<int>(prompt.tokens.size() + prompt.greedy.size());
  }

  static void Take(const std::vector<float>& rows, PathResult* result) {
    result->logits.insert(result->logits.end(), rows.begin(), rows.end());
  }

  std::vector<float> LastRow(const std::vector<float>& logits) const {
    return {logits.end() - model_->info().vocab_size, logits.end()};
  }

  // The greedy continuations of all sequences, one token each per step.
  void Continue(ManualEngine& engine, const std::vector<int>& sequences,
                std::vector<PathResult>* results) {
    for (PathResult& result : *results) result.greedy_rows.push_back(LastRow(result.logits));
    for (size_t i = 0;; ++i) {
      std::vector<ManualEngine::Run> runs;
      std::vector<size_t> owners;
      for (size_t p = 0; p < prompts_.size(); ++p) {
        if (i + 1 >= prompts_[p].greedy.size()) continue;
        runs.push_back({sequences[p], {prompts_[p].greedy[i]}});
        owners.push_back(p);
      }
      if (runs.empty()) return;
      std::vector<std::vector<float>> rows = engine.Step(runs);
      for (size_t r = 0; r < rows.size(); ++r) {
        (*results)[owners[r]].greedy_rows.push_back(std::move(rows[r]));
      }
    }
  }

  PathReport Judge(const std::string& name, const std::vector<PathResult>& results) const {
    PathReport report;
    report.path = name;
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const double error = RelativeError(results[p].logits, prompts_[p].logits);
      if (report.worst_prompt < 0 || error > report.relative_error) {
        report.relative_error = error;
        report.worst_prompt = static_cast<int>(p);
      }
      report.max_abs_error =
          std::max(report.max_abs_error, MaxAbsError(results[p].logits, prompts_[p].logits));
      for (size_t i = 0; i < prompts_[p].greedy.size(); ++i) {
        JudgeGreedy(results[p].greedy_rows[i], prompts_[p].greedy[i], &report);
      }
    }
    report.ok = report.relative_error <= tolerance_ &&
                report.greedy_equal + report.greedy_ties == report.greedy_tokens;
    return report;
  }

  void JudgeGreedy(const std::vector<float>& row, int32_t expected, PathReport* report) const {
    ++report->greedy_tokens;
    const auto best = std::max_element(row.begin(), row.end());
    if (best - row.begin() == expected) {
      ++report->greedy_equal;
      return;
    }
    float largest = 0.0f;
    for (const float x : row) largest = std::max(largest, std::abs(x));
    if (*best - row[static_cast<size_t>(expected)] <= tolerance_ * largest) ++report->greedy_ties;
  }

  LoadedModel* model_;
  const std::vector<ExpectedPrompt>& prompts_;
  const double tolerance_;
  const uint64_t seed_;
};

// Slots, pages and step size that the check needs, where the caller left them open.
absl::Status FitOptions(const std::string& path, const std::vector<ExpectedPrompt>& prompts,
                        const ModelInfo& info, LoadOptions* options) {
  int64_t longest = 0, total = 0, pages = 0;
  for (const ExpectedPrompt& prompt : prompts) {
    const auto tokens = static_cast<int64_t>(prompt.tokens.size());
    const int64_t length = tokens + static_cast<int64_t>(prompt.greedy.size());
    total += tokens;
    longest = std::max(longest, length);
    pages += info.layout.PagesFor(length);
  }
  if (longest > info.max_position) {
    return absl::InvalidArgumentError(absl::StrCat("a prompt with its continuation has ", longest,
                                                   " tokens, ", path, " holds at most ",
                                                   info.max_position));
  }
  const auto count = static_cast<int32_t>(prompts.size());
  // More than needed, so that slots and pages differ from path to path.
  if (options->slots == 0) options->slots = count + 3;
  if (options->pages == 0) options->pages = static_cast<int32_t>(pages + 7);
  options->max_step_tokens = std::max(options->max_step_tokens, static_cast<int32_t>(total));
  options->max_step_sequences = std::max(options->max_step_sequences, count);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ExpectedPrompt>> ReadExpected(const std::string& path, int vocab_size) {
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::vector<ExpectedPrompt> prompts;
  while (true) {
    const size_t i = prompts.size();
    const StoredTensor* tokens = file.Find(absl::StrCat("prompt_", i));
    if (tokens == nullptr) break;
    ExpectedPrompt prompt;
    RETURN_IF_ERROR(ReadIds(file, *tokens, vocab_size, &prompt.tokens));
    const StoredTensor* logits = file.Find(absl::StrCat("logits_", i));
    const std::vector<int64_t> shape = {static_cast<int64_t>(prompt.tokens.size()), vocab_size};
    if (prompt.tokens.empty() || logits == nullptr || logits->dtype != DType::kF32 ||
        logits->shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": logits_", i, " must be F32 [", shape[0], ", ", shape[1], "] beside prompt_", i,
          logits == nullptr
              ? "; it is missing"
              : absl::StrCat("; it is ", logits->dtype_name, " ", logits->ShapeString())));
    }
    prompt.logits.resize(static_cast<size_t>(logits->bytes) / 4);
    std::memcpy(prompt.logits.data(), logits->data, static_cast<size_t>(logits->bytes));
    const StoredTensor* greedy = file.Find(absl::StrCat("greedy_", i));
    if (greedy != nullptr) RETURN_IF_ERROR(ReadIds(file, *greedy, vocab_size, &prompt.greedy));
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no prompt_0"));
  }
  return prompts;
}

ManualEngine::ManualEngine(scheduler::Executor* executor, uint64_t seed)
    : executor_(executor), seed_(seed) {
  free_slots_.resize(static_cast<size_t>(executor->limits().cache.slots));
  free_pages_.resize(static_cast<size_t>(executor->limits().cache.pages));
  std::iota(free_slots_.begin(), free_slots_.end(), 0);
  std::iota(free_pages_.begin(), free_pages_.end(), 0);
}

int32_t ManualEngine::Take(std::vector<int32_t>* free) {
  const int64_t at = RandomBelow(seed_, draws_++, static_cast<int64_t>(free->size()));
  std::swap((*free)[static_cast<size_t>(at)], free->back());
  const int32_t taken = free->back();
  free->pop_back();
  return taken;
}

absl::StatusOr<int> ManualEngine::Open(int max_tokens) {
  const auto pages = static_cast<size_t>(executor_->limits().layout.PagesFor(max_tokens));
  if (free_slots_.empty() || free_pages_.size() < pages) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a sequence of ", max_tokens, " tokens needs a slot and ", pages, " pages; free are ",
        free_slots_.size(), " slots and ", free_pages_.size(), " pages"));
  }
  Sequence sequence;
  sequence.slot = Take(&free_slots_);
  while (sequence.pages.size() < pages) sequence.pages.push_back(Take(&free_pages_));
  sequences_.push_back(std::move(sequence));
  return static_cast<int>(sequences_.size()) - 1;
}

void ManualEngine::Close(int sequence) {
  Sequence& closed = sequences_[static_cast<size_t>(sequence)];
  free_slots_.push_back(closed.slot);
  free_pages_.insert(free_pages_.end(), closed.pages.begin(), closed.pages.end());
  closed = Sequence();
}

std::vector<std::vector<float>> ManualEngine::Step(const std::vector<Run>& runs) {
  StepPlan plan;
  for (const Run& run : runs) {
    const Sequence& sequence = sequences_[static_cast<size_t>(run.sequence)];
    SequenceInput input;
    input.sequence = static_cast<scheduler::SequenceId>(run.sequence);
    input.slot = sequence.slot;
    input.pages = sequence.pages;
    input.position = sequence.position;
    input.tokens = run.tokens;
    input.all_logits = true;
    plan.sequences.push_back(input);
  }
  executor_->Submit(plan);
  scheduler::StepResult result = executor_->Wait();
  std::vector<std::vector<float>> logits;
  for (size_t i = 0; i < runs.size(); ++i) {
    sequences_[static_cast<size_t>(runs[i].sequence)].position +=
        static_cast<int>(runs[i].tokens.size());
    logits.push_back(std::move(result.outputs[i].logits));
  }
  return logits;
}

std::vector<std::vector<int32_t>> ManualEngine::Greedy(const std::vector<Run>& prompts, int count) {
  scheduler::SamplingParams greedy;
  greedy.temperature = 0;
  constexpr int32_t kFed = 0;  // stands for the token that the step before samples
  std::vector<std::vector<int32_t>> tokens(prompts.size());
  const auto wait = [&] {
    const scheduler::StepResult result = executor_->Wait();
    for (size_t i = 0; i < prompts.size(); ++i) tokens[i].push_back(result.outputs[i].chosen.token);
  };
  for (int step = 0; step < count; ++step) {
    StepPlan plan;
    for (const Run& prompt : prompts) {
      Sequence& sequence = sequences_[static_cast<size_t>(prompt.sequence)];
      SequenceInput input;
      input.sequence = static_cast<scheduler::SequenceId>(prompt.sequence);
      input.slot = sequence.slot;
      input.pages = sequence.pages;
      input.position = sequence.position;
      input.tokens = step == 0 ? absl::MakeConstSpan(prompt.tokens) : absl::MakeConstSpan(&kFed, 1);
      input.feed_previous = step > 0;
      input.sample = true;
      input.sampling = &greedy;
      input.draw = static_cast<uint64_t>(step);
      plan.sequences.push_back(input);
      sequence.position += static_cast<int>(input.tokens.size());
    }
    if (step >= executor_->limits().max_in_flight) wait();
    executor_->Submit(plan);
  }
  while (tokens.empty() || static_cast<int>(tokens[0].size()) < count) wait();
  return tokens;
}

std::vector<std::byte> ManualEngine::Save(int sequence) {
  const Sequence& saved = sequences_[static_cast<size_t>(sequence)];
  const cache::StateLayout& layout = executor_->limits().layout;
  const auto pages = static_cast<size_t>(layout.PagesFor(saved.position));
  std::vector<std::byte> state(static_cast<size_t>(layout.BytesFor(saved.position)));
  executor_->CopyOut(saved.slot, absl::MakeConstSpan(saved.pages).subspan(0, pages), state.data());
  return state;
}

absl::StatusOr<int> ManualEngine::Restore(absl::Span<const std::byte> state, int position,
                                          int max_tokens) {
  ASSIGN_OR_RETURN(const int index, Open(max_tokens));
  Sequence& sequence = sequences_[static_cast<size_t>(index)];
  const auto pages = static_cast<size_t>(executor_->limits().layout.PagesFor(position));
  executor_->CopyIn(sequence.slot, absl::MakeConstSpan(sequence.pages).subspan(0, pages),
                    state.data());
  sequence.position = position;
  return index;
}

double RelativeError(absl::Span<const float> ours, absl::Span<const float> reference) {
  if (ours.size() != reference.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double d = double{ours[i]} - double{reference[i]};
    difference += d * d;
    norm += double{reference[i]} * double{reference[i]};
  }
  const double error = std::sqrt(difference / std::max(norm, 1e-300));
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

double MaxAbsError(absl::Span<const float> ours, absl::Span<const float> reference) {
  double worst = ours.size() == reference.size() ? 0 : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < std::min(ours.size(), reference.size()); ++i) {
    const double d = std::abs(double{ours[i]} - double{reference[i]});
    worst = std::isfinite(d) ? std::max(worst, d) : std::numeric_limits<double>::infinity();
  }
  return worst;
}

absl::StatusOr<CheckReport> CheckModel(const std::string& path, const std::string& expected_path,
                                       LoadOptions options, double tolerance, uint64_t seed) {
  ASSIGN_OR_RETURN(const ModelInfo info, DescribeModel(path, options));
  const std::string file = expected_path.empty() ? path + "/expected.safetensors" : expected_path;
  ASSIGN_OR_RETURN(const std::vector<ExpectedPrompt> prompts, ReadExpected(file, info.vocab_size));
  RETURN_IF_ERROR(FitOptions(path, prompts, info, &options));
  ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, LoadModel(path, options));

  CheckReport report;
  report.info = model->info();
  report.tolerance = tolerance;
  report.prompts = static_cast<int>(prompts.size());
  Checker checker(model.get(), prompts, tolerance, seed);
  const auto whole = [](int tokens, size_t) { return std::vector<int>{tokens}; };
  const auto chunks = [&](int tokens, size_t p) { return RandomChunks(tokens, seed, p << 32); };
  const auto singles = [](int tokens, size_t) {
    return std::vector<int>(static_cast<size_t>(tokens), 1);
  };
  ASSIGN_OR_RETURN(report.paths.emplace_back(), checker.Alone("whole", whole));
  ASSIGN_OR_RETURN(report.paths.emplace_back(), checker.Alone("chunks", chunks));
  ASSIGN_OR_RETURN(report.paths.emplace_back(), checker.Alone("token by token", singles));
  ASSIGN_OR_RETURN(report.paths.emplace_back(), checker.Packed());
  if (std::any_of(prompts.begin(), prompts.end(),
                  [](const ExpectedPrompt& prompt) { return !prompt.greedy.empty(); })) {
    ASSIGN_OR_RETURN(report.paths.emplace_back(), checker.AsServed());
  }
  report.ok = std::all_of(report.paths.begin(), report.paths.end(),
                          [](const PathReport& p) { return p.ok; });
  return report;
}

}  // namespace weir::model
