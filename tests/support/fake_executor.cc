#include "tests/support/fake_executor.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <set>
#include <thread>

#include "core/check.h"

namespace weir::testing {
namespace {

using scheduler::SamplingParams;
using scheduler::SequenceInput;
using scheduler::SequenceOutput;
using scheduler::StepPlan;
using scheduler::StepResult;
using scheduler::TokenLogprob;

constexpr uint64_t kPoison = 0xDEADBEEFDEADBEEFull;

// splitmix64's finalizer.
uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9E3779B97F4A7C15ull + b + 0x632BE59BD9B4E019ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

uint64_t EntryOf(int32_t token, int32_t position) {
  return Mix(static_cast<uint64_t>(token), static_cast<uint64_t>(position) << 20);
}

// -1: "every logit is NaN".
int32_t Choose(uint64_t key, const SamplingParams& sampling, uint64_t draw,
               absl::Span<const int32_t> prompt, absl::Span<const int32_t> generated,
               absl::Span<const int32_t> forbidden, absl::Span<const uint32_t> allowed,
               int32_t vocab) {
  for (const auto& [id, at] : sampling.logit_bias) {
    if (id == kNanAtDraw && static_cast<uint64_t>(at) == draw) return -1;
  }
  uint64_t x = Mix(Mix(key, sampling.seed), draw);
  if (sampling.needs_history()) {
    for (const int32_t token : prompt) x = Mix(x, static_cast<uint64_t>(token));
    for (const int32_t token : generated) x = Mix(x, static_cast<uint64_t>(token) + 17);
  }
  int32_t token = static_cast<int32_t>(x % static_cast<uint64_t>(vocab));
  for (int32_t tries = 0; tries < vocab; ++tries) {
    const bool is_allowed =
        allowed.empty() || (allowed[static_cast<size_t>(token / 32)] >> (token % 32) & 1) != 0;
    if (is_allowed && std::find(forbidden.begin(), forbidden.end(), token) == forbidden.end()) {
      return token;
    }
    token = (token + 1) % vocab;
  }
  return -1;
}

TokenLogprob LogprobOf(uint64_t key, int32_t token, int32_t top) {
  TokenLogprob logprob;
  logprob.token = token;
  logprob.logprob = -static_cast<float>(Mix(key, static_cast<uint64_t>(token)) % 1000) / 100.0f;
  for (int32_t i = 0; i < top; ++i) logprob.top.emplace_back(i, -static_cast<float>(i));
  return logprob;
}

// What the fake's memory gives for a sequence that has seen exactly `tokens`.
uint64_t KeyOfHistory(absl::Span<const int32_t> tokens, bool has_pages) {
  uint64_t state = 0;
  uint64_t attention = 0;
  for (int32_t i = 0; i < std::ssize(tokens); ++i) {
    state = Mix(state, EntryOf(tokens[i], i));
    if (has_pages) attention = Mix(attention, EntryOf(tokens[i], i));
  }
  return Mix(state, attention);
}

// The next mask, with what min_tokens makes of it.
bool ExpectedMask(const scheduler::Request& request, scheduler::TokenConstraint* constraint,
                  bool too_short, std::vector<uint32_t>* mask) {
  if (!constraint->FillMask(absl::MakeSpan(*mask))) return false;
  if (!too_short) return true;
  std::vector<uint32_t> longer = *mask;
  for (const int32_t id : request.stop_ids) {
    longer[static_cast<size_t>(id / 32)] &= ~(uint32_t{1} << (id % 32));
  }
  const auto some = [](uint32_t word) { return word != 0; };
  if (std::any_of(longer.begin(), longer.end(), some)) *mask = longer;
  return true;
}

template <typename T>
std::vector<T> Copied(absl::Span<const T> span) {
  return std::vector<T>(span.begin(), span.end());
}

}  // namespace

scheduler::ExecutorLimits SmallLimits() {
  scheduler::ExecutorLimits limits;
  limits.vocab_size = 97;
  limits.max_position = 128;
  limits.max_step_tokens = 32;
  limits.max_step_sequences = 8;
  limits.max_in_flight = 2;
  limits.layout.slot_bytes = 16;
  limits.layout.page_tokens = 4;
  limits.layout.page_bytes = 32;
  limits.cache.slots = 8;
  limits.cache.pages = 64;
  return limits;
}

FakeExecutor::FakeExecutor(const FakeOptions& options) : options_(options) {
  const auto& limits = options.limits;
  slots_.assign(limits.cache.slots, {kPoison, -1});
  planned_.resize(limits.cache.slots);
  pages_.assign(limits.cache.pages, std::vector<uint64_t>(limits.layout.page_tokens, kPoison));
}

void FakeExecutor::SetTimes(int64_t step_us, int64_t token_us) {
  options_.step_us = step_us;
  options_.token_us = token_us;
}

// ---- the contract

void FakeExecutor::CheckInput(const SequenceInput& input) const {
  const auto& limits = options_.limits;
  const int64_t count = std::ssize(input.tokens);
  WEIR_CHECK(count > 0) << "sequence " << input.sequence << " runs nothing";
  WEIR_CHECK(input.slot >= 0 && input.slot < limits.cache.slots) << "slot " << input.slot;
  WEIR_CHECK(input.position >= 0 && input.position + count <= limits.max_position)
      << "position " << input.position << " + " << count;
  WEIR_CHECK(std::ssize(input.pages) >= limits.layout.PagesFor(input.position + count))
      << input.pages.size() << " pages for " << input.position + count << " tokens";
  for (const int32_t page : input.pages) {
    WEIR_CHECK(page >= 0 && page < limits.cache.pages) << "page " << page;
  }
  for (const int32_t token : input.tokens) {
    WEIR_CHECK(token >= 0 && token < limits.vocab_size) << "token " << token;
  }
  WEIR_CHECK(!input.sample || input.sampling != nullptr) << "sampled without parameters";
  WEIR_CHECK(input.sample || input.mask == nullptr) << "a mask, and nothing to choose";
  WEIR_CHECK(!input.sample || !input.sampling->needs_history() || !input.prompt.empty())
      << "penalties without a history";
  if (input.feed_previous) {
    const auto previous = previous_step_.find(input.sequence);
    WEIR_CHECK(count == 1 && previous != previous_step_.end() && previous->second)
        << "sequence " << input.sequence << " is fed a token that the step before did not choose";
  }
  const Planned& planned = planned_[input.slot];
  if (input.position > 0) {
    WEIR_CHECK(planned.owner == input.sequence || planned.owner == 0)
        << "slot " << input.slot << " is of " << planned.owner << ", used by " << input.sequence;
    WEIR_CHECK(planned.position == input.position)
        << "slot " << input.slot << " stands at " << planned.position << ", not " << input.position;
  }
}

// No other sequence of any step in flight uses the slot, or has a page in its table that is
// written.
void FakeExecutor::CheckMemory(const SequenceInput& input) const {
  const int32_t page_tokens = options_.limits.layout.page_tokens;
  std::set<int32_t> written;
  if (options_.limits.layout.page_bytes > 0) {
    const int32_t last =
        (input.position + static_cast<int32_t>(input.tokens.size()) - 1) / page_tokens;
    for (int32_t i = input.position / page_tokens; i <= last; ++i) written.insert(input.pages[i]);
  }
  for (const auto& work : work_) {
    const Step* step = std::get_if<Step>(&work);
    if (step == nullptr) continue;
    for (const SequenceInput& other : step->plan.sequences) {
      if (other.sequence == input.sequence) continue;
      WEIR_CHECK(other.slot != input.slot) << "slot " << input.slot << " of " << other.sequence
                                           << " in flight, taken by " << input.sequence;
      for (const int32_t page : other.pages) {
        WEIR_CHECK(!written.contains(page)) << "page " << page << " of " << other.sequence
                                            << " in flight, written by " << input.sequence;
      }
    }
  }
}

void FakeExecutor::Submit(const StepPlan& plan) {
  const auto& limits = options_.limits;
  WEIR_CHECK(in_flight_ < limits.max_in_flight) << in_flight_ << " steps in flight";
  WEIR_CHECK(!plan.sequences.empty()) << "an empty step";
  WEIR_CHECK(std::ssize(plan.sequences) <= limits.max_step_sequences)
      << plan.sequences.size() << " sequences in a step";
  int64_t tokens = 0;
  std::set<scheduler::SequenceId> distinct;
  for (const SequenceInput& input : plan.sequences) {
    CheckInput(input);
    tokens += std::ssize(input.tokens);
    WEIR_CHECK(distinct.insert(input.sequence).second) << "sequence " << input.sequence << " twice";
  }
  WEIR_CHECK(tokens <= limits.max_step_tokens) << tokens << " tokens in a step";

  Step& step = std::get<Step>(work_.emplace_back(Step{}));
  step.plan = plan;
  previous_step_.clear();
  last_step_.clear();
  for (const SequenceInput& input : plan.sequences) {
    CheckMemory(input);  // the step itself is among those in flight by now
    step.tokens.push_back(Copied(input.tokens));
    step.pages.push_back(Copied(input.pages));
    step.generated.push_back(Copied(input.generated));
    previous_step_[input.sequence] = input.sample;
    last_step_.emplace_back(static_cast<int32_t>(input.tokens.size()), input.sample);
    planned_[input.slot] = {input.sequence,
                            input.position + static_cast<int32_t>(input.tokens.size())};
    seen_.fed += input.feed_previous ? 1 : 0;
  }
  ++in_flight_;
  ++seen_.steps;
  seen_.tokens += tokens;
  seen_.most_sequences =
      std::max(seen_.most_sequences, static_cast<int32_t>(plan.sequences.size()));
  seen_.most_in_flight = std::max(seen_.most_in_flight, in_flight_);
}

void FakeExecutor::Copy(absl::Span<const std::pair<int32_t, int32_t>> slots,
                        absl::Span<const std::pair<int32_t, int32_t>> pages) {
  for (const auto& [from, to] : slots) {
    WEIR_CHECK(from != to) << "slot " << from << " onto itself";
    for (const auto& work : work_) {
      const Step* step = std::get_if<Step>(&work);
      if (step == nullptr) continue;
      for (const SequenceInput& other : step->plan.sequences) {
        WEIR_CHECK(other.slot != to) << "copy onto slot " << to << ", which a step in flight uses";
        for (const auto& [page_from, page_to] : pages) {
          WEIR_CHECK(std::find(other.pages.begin(), other.pages.end(), page_to) ==
                     other.pages.end())
              << "copy onto page " << page_to << ", which a step in flight uses";
        }
      }
    }
    planned_.at(to) = {0, planned_.at(from).position};
  }
  work_.emplace_back(Copies{Copied(slots), Copied(pages)});
  seen_.copied_slots += std::ssize(slots);
  seen_.copied_pages += std::ssize(pages);
}

// ---- running

StepResult FakeExecutor::Wait() {
  WEIR_CHECK(in_flight_ > 0) << "no step in flight";
  RunUntilStep();
  const Step step = std::move(std::get<Step>(work_.front()));
  work_.pop_front();
  --in_flight_;
  StepResult result = RunStep(step);
  int64_t tokens = 0;
  for (const auto& part : step.tokens) tokens += std::ssize(part);
  result.duration_us = options_.step_us + tokens * options_.token_us;
  if (options_.clock != nullptr) {
    options_.clock->AdvanceUs(result.duration_us);
  } else if (result.duration_us > 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(result.duration_us));
  }
  return result;
}

void FakeExecutor::RunUntilStep() {
  while (!work_.empty() && std::holds_alternative<Copies>(work_.front())) {
    RunCopies(std::get<Copies>(work_.front()));
    work_.pop_front();
  }
}

void FakeExecutor::RunCopies(const Copies& copies) {
  for (const auto& [from, to] : copies.slots) slots_.at(to) = slots_.at(from);
  for (const auto& [from, to] : copies.pages) pages_.at(to) = pages_.at(from);
}

StepResult FakeExecutor::RunStep(const Step& step) {
  StepResult result;
  std::unordered_map<scheduler::SequenceId, int32_t> sampled;
  for (size_t i = 0; i < step.plan.sequences.size(); ++i) {
    const SequenceInput& input = step.plan.sequences[i];
    WEIR_CHECK(Copied(input.tokens) == step.tokens[i] && Copied(input.pages) == step.pages[i] &&
               Copied(input.generated) == step.generated[i])
        << "the plan of sequence " << input.sequence << " changed while in flight";
    result.outputs.push_back(RunSequence(input));
    if (input.sample) sampled[input.sequence] = result.outputs.back().chosen.token;
  }
  sampled_ = std::move(sampled);
  return result;
}

SequenceOutput FakeExecutor::RunSequence(const SequenceInput& input) {
  const auto& layout = options_.limits.layout;
  Slot& slot = slots_[input.slot];
  if (input.position == 0) {
    slot = {0, 0};
    for (const int32_t page : input.pages)
      std::fill(pages_[page].begin(), pages_[page].end(), kPoison);
  }
  WEIR_CHECK(slot.position == input.position)
      << "slot " << input.slot << " holds " << slot.position << " tokens, not " << input.position;
  SequenceOutput output;
  output.sequence = input.sequence;
  int32_t fed = -1;
  for (size_t i = 0; i < input.tokens.size(); ++i) {
    int32_t token = input.tokens[i];
    // After "every logit NaN" there is nothing to feed; any token will do, its result is dropped.
    if (input.feed_previous) token = fed = std::max(sampled_.at(input.sequence), 0);
    const int32_t position = slot.position;
    slot.hash = Mix(slot.hash, EntryOf(token, position));
    if (layout.page_bytes > 0) {
      auto& page = pages_[input.pages[position / layout.page_tokens]];
      if (position % layout.page_tokens == 0) std::fill(page.begin(), page.end(), kPoison);
      page[position % layout.page_tokens] = EntryOf(token, position);
    }
    ++slot.position;
    if (input.prompt_logprobs < 0) continue;
    const bool last = i + 1 == input.tokens.size();
    const int32_t next = last ? input.next_prompt_token : input.tokens[i + 1];
    if (next >= 0) {
      output.prompt_logprobs.push_back(LogprobOf(KeyAt(input, slot), next, input.prompt_logprobs));
    }
  }
  if (!input.sample) return output;
  const uint64_t key = KeyAt(input, slot);
  std::vector<int32_t> generated = Copied(input.generated);
  if (input.feed_previous) generated.push_back(fed);
  absl::Span<const uint32_t> allowed;
  if (input.mask != nullptr) allowed = input.mask->Await(input.draw);
  const int32_t token = Choose(key, *input.sampling, input.draw, input.prompt, generated,
                               input.forbidden, allowed, options_.limits.vocab_size);
  output.chosen.token = token;
  if (token >= 0 && input.sampling->logprobs >= 0) {
    output.chosen = LogprobOf(key, token, input.sampling->logprobs);
  }
  return output;
}

uint64_t FakeExecutor::KeyAt(const SequenceInput& input, const Slot& slot) const {
  const auto& layout = options_.limits.layout;
  uint64_t attention = 0;
  if (layout.page_bytes > 0) {
    for (int32_t i = 0; i < slot.position; ++i) {
      attention =
          Mix(attention, pages_[input.pages[i / layout.page_tokens]][i % layout.page_tokens]);
    }
  }
  return Mix(slot.hash, attention);
}

void FakeExecutor::CopyOut(int32_t slot, absl::Span<const int32_t> pages, std::byte* to) {
  WEIR_CHECK(in_flight_ == 0) << "the fake has no order between steps in flight and CopyOut";
  RunUntilStep();
  const auto& layout = options_.limits.layout;
  std::memset(to, 0, layout.slot_bytes + std::ssize(pages) * layout.page_bytes);
  std::memcpy(to, &slots_.at(slot), std::min<size_t>(sizeof(Slot), layout.slot_bytes));
  to += layout.slot_bytes;
  for (const int32_t page : pages) {
    std::memcpy(to, pages_.at(page).data(), layout.page_tokens * sizeof(uint64_t));
    to += layout.page_bytes;
  }
}

void FakeExecutor::CopyIn(int32_t slot, absl::Span<const int32_t> pages, const std::byte* from) {
  WEIR_CHECK(in_flight_ == 0) << "the fake has no order between steps in flight and CopyIn";
  RunUntilStep();
  const auto& layout = options_.limits.layout;
  std::memcpy(&slots_.at(slot), from, std::min<size_t>(sizeof(Slot), layout.slot_bytes));
  planned_.at(slot) = {0, slots_.at(slot).position};
  from += layout.slot_bytes;
  for (const int32_t page : pages) {
    std::memcpy(pages_.at(page).data(), from, layout.page_tokens * sizeof(uint64_t));
    from += layout.page_bytes;
  }
}

// ---- what to expect

ExpectedChoice Expected(const scheduler::Request& request, int32_t choice,
                        const scheduler::ExecutorLimits& limits) {
  ExpectedChoice expected;
  SamplingParams sampling = request.sampling;
  sampling.seed += static_cast<uint64_t>(choice);
  std::vector<int32_t> history = request.prompt;
  const int64_t room = limits.max_position - std::ssize(request.prompt);
  const int64_t most = std::min<int64_t>(request.max_tokens, room);
  std::unique_ptr<scheduler::TokenConstraint> constraint;
  std::vector<uint32_t> mask;  // empty: none
  if (request.constraint != nullptr) {
    constraint = request.constraint->Start();
    mask.resize(static_cast<size_t>((limits.vocab_size + 31) / 32));
  }
  while (std::ssize(expected.tokens) < most) {
    const uint64_t draw = expected.tokens.size();
    absl::Span<const int32_t> forbidden;
    const bool too_short = static_cast<int64_t>(draw) < request.min_tokens;
    if (constraint == nullptr && too_short) forbidden = request.stop_ids;
    if (constraint != nullptr && !ExpectedMask(request, constraint.get(), too_short, &mask)) {
      expected.reason = scheduler::FinishReason::kError;
      return expected;
    }
    const int32_t token =
        Choose(KeyOfHistory(history, limits.layout.page_bytes > 0), sampling, draw, request.prompt,
               expected.tokens, forbidden, mask, limits.vocab_size);
    if (token < 0) {
      expected.reason = scheduler::FinishReason::kError;
      return expected;
    }
    history.push_back(token);
    expected.tokens.push_back(token);
    const auto& stops = request.stop_ids;
    if (constraint != nullptr) constraint->Accept(token);
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      expected.stop_id = token;
      return expected;
    }
  }
  expected.reason = scheduler::FinishReason::kLength;
  return expected;
}

std::vector<TokenLogprob> ExpectedPromptLogprobs(const scheduler::Request& request,
                                                 const scheduler::ExecutorLimits& limits) {
  std::vector<TokenLogprob> logprobs;
  const auto prompt = absl::MakeConstSpan(request.prompt);
  for (size_t i = 1; i < prompt.size(); ++i) {
    const uint64_t key = KeyOfHistory(prompt.first(i), limits.layout.page_bytes > 0);
    logprobs.push_back(LogprobOf(key, prompt[i], request.prompt_logprobs));
  }
  return logprobs;
}

}  // namespace weir::testing
