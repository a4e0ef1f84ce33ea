#include "scheduler/engine_loop.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace weir::scheduler {
namespace {

// How far behind one that does not fit the planner looks for one that does.
constexpr size_t kAdmissionWindow = 256;

// Stands where the executor puts the token that it chose in the step before.
constexpr int32_t kFedToken[] = {0};

StepBudget BudgetOf(const SchedulerOptions& options, const ExecutorLimits& limits) {
  StepBudget budget;
  budget.tokens = limits.max_step_tokens;
  if (options.step_tokens > 0) budget.tokens = std::min(budget.tokens, options.step_tokens);
  budget.sequences = limits.max_step_sequences;
  budget.chunk_tokens = budget.tokens;
  if (options.prefill_chunk_tokens > 0) {
    budget.chunk_tokens = std::min(budget.tokens, options.prefill_chunk_tokens);
  }
  budget.mixed_prefill = budget.tokens;
  WEIR_CHECK(budget.tokens > 0 && budget.sequences > 0 && limits.max_in_flight > 0)
      << "an executor of " << budget.tokens << " tokens, " << budget.sequences << " sequences and "
      << limits.max_in_flight << " steps in flight";
  return budget;
}

}  // namespace

EngineLoop::EngineLoop(const SchedulerOptions& options, Executor* executor, const Clock* clock,
                       Mailbox* mailbox, SchedulerMetrics* metrics)
    : budget_(BudgetOf(options, executor->limits())),
      executor_(executor),
      clock_(clock),
      mailbox_(mailbox),
      metrics_(metrics),
      committer_(clock, metrics),
      controller_(options.target_inter_token_us, budget_.tokens),
      masks_(options.mask_threads, metrics),
      cache_(executor->limits().layout, executor->limits().cache) {
  Publish();
}

bool EngineLoop::Turn() {
  bool worked = Drain();
  worked |= EndOverdue();
  if (worked) Retire();

  const int64_t plan_from_us = clock_->NowUs();
  worked |= Admit();
  const StepDecision decision = Plan();
  const bool submit = !decision.work.empty();
  if (submit) {
    plan_us_ = clock_->NowUs() - plan_from_us;
    Submit(decision);
    Publish();  // a step may take long, and what it freed or took is known now
  }

  const int32_t depth = executor_->limits().max_in_flight;
  const bool wait = !in_flight_.empty() && (!submit || std::ssize(in_flight_) == depth);
  if (wait) {
    WaitAndCommit();
    Retire();
  }

  worked |= submit || wait;
  WEIR_CHECK(worked || (running_.empty() && queue_.empty()))
      << running_.size() << " requests run and " << queue_.size() << " wait, but nothing moves";
  if (worked && (wait || !submit)) Publish();
  return worked;
}

// ---- drain

bool EngineLoop::Drain() {
  mailbox_->Take(&mail_);
  for (Arrival& arrival : mail_.arrivals) Arrive(std::move(arrival));
  for (const auto& [id, reason] : mail_.cancels) End(id, reason);
  for (const auto& [id, choice] : mail_.stops) {
    const auto found = by_id_.find(id);
    if (found == by_id_.end()) continue;
    committer_.FinishChoice(*found->second, found->second->sequences.at(choice),
                            FinishReason::kStop);
  }
  return !mail_.empty();
}

void EngineLoop::Arrive(Arrival arrival) {
  Waiting waiting;
  waiting.request = std::move(arrival.request);
  waiting.arrived_us = arrival.arrived_us;
  waiting.shape = ShapeOf(waiting.request);
  waiting.need = cache_.NeedOf(waiting.shape);
  if (waiting.request.deadline_us > 0) {
    deadlines_.emplace(waiting.request.deadline_us, waiting.request.id);
  }
  queue_.Push(std::move(waiting));
}

void EngineLoop::End(RequestId id, FinishReason reason) {
  if (const auto found = by_id_.find(id); found != by_id_.end()) {
    committer_.FinishAll(*found->second, reason);
  } else if (queue_.Contains(id)) {
    const Waiting waiting = queue_.Remove(id);
    deadlines_.erase({waiting.request.deadline_us, id});
    news_.left_queue.push_back(std::ssize(waiting.request.prompt));
    news_.gone.push_back(id);
    committer_.FinishQueued(waiting.request, waiting.arrived_us, reason);
  }
}

bool EngineLoop::EndOverdue() {
  const int64_t now_us = clock_->NowUs();
  bool ended = false;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_us) {
    const RequestId id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    End(id, FinishReason::kDeadline);
    ended = true;
  }
  if (mail_.draining && !drain_ended_ && now_us >= mail_.drain_deadline_us) {
    drain_ended_ = true;
    for (const RequestId id : queue_.Ids()) End(id, FinishReason::kDrained);
    for (const auto& request : running_) committer_.FinishAll(*request, FinishReason::kDrained);
    ended = true;
  }
  return ended;
}

void EngineLoop::EndEverything(FinishReason reason) {
  Drain();
  for (const RequestId id : queue_.Ids()) End(id, reason);
  for (const auto& request : running_) committer_.FinishAll(*request, reason);
  while (!in_flight_.empty()) WaitAndCommit();
  Retire();
  Publish();
  WEIR_CHECK(running_.empty() && queue_.empty()) << "requests are left";
}

// ---- plan and submit

bool EngineLoop::Admit() {
  if (queue_.empty()) return false;
  const std::vector<int32_t> places = PlanAdmission(queue_.View(kAdmissionWindow), cache_.Free());
  for (Waiting& waiting : queue_.Admit(places)) Start(std::move(waiting));
  return !places.empty();
}

void EngineLoop::Start(Waiting waiting) {
  const int64_t now_us = clock_->NowUs();
  news_.left_queue.push_back(std::ssize(waiting.request.prompt));
  metrics_->OnAdmitted(now_us - waiting.arrived_us);
  auto running = std::make_unique<RunningRequest>();
  running->request = std::move(waiting.request);
  const Request& request = running->request;
  running->times.arrived_us = waiting.arrived_us;
  running->prefix_tokens = PrefixTokens(request);
  // Nothing to run once and nothing to copy: each choice starts from zero.
  running->forked = request.num_choices == 1 || running->prefix_tokens == 0;
  running->wants_prompt_logprobs = request.prompt_logprobs >= 0;
  running->unfinished = request.num_choices;
  running->sequences.resize(request.num_choices);
  std::vector<cache::Reservation> memory = cache_.Reserve(waiting.shape);
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    Sequence& sequence = running->sequences[choice];
    sequence.id = next_sequence_++;
    sequence.choice = choice;
    sequence.sampling = request.sampling;
    sequence.sampling.seed += static_cast<uint64_t>(choice);
    sequence.memory = std::move(memory[choice]);
    sequence.generated.reserve(request.max_tokens);
    if (request.constraint == nullptr) continue;
    sequence.mask = std::make_shared<SequenceMask>(
        request.constraint,
        SequenceMask::Limits{executor_->limits().vocab_size, request.min_tokens, request.stop_ids},
        &masks_);
    sequence.mask->Begin();
  }
  by_id_.emplace(request.id, running.get());
  running_.push_back(std::move(running));
}

StepDecision EngineLoop::Plan() {
  candidates_.clear();
  std::vector<RunningView> views;
  for (const auto& request : running_) {
    for (Sequence& sequence : request->sequences) {
      candidates_.emplace_back(request.get(), &sequence);
      views.push_back(ViewOf(*request, sequence));
    }
  }
  StepBudget budget = budget_;
  budget.mixed_prefill = controller_.budget_tokens();
  return PlanStep(views, budget);
}

RunningView EngineLoop::ViewOf(const RunningRequest& request, const Sequence& sequence) const {
  RunningView view;
  view.position = sequence.position;
  view.priority = request.request.priority;
  view.last_step = sequence.last_step;
  if (sequence.choice == 0 && sequence.position < request.prefix_tokens) {
    // Also when choice 0 has ended: the prefix is run for all that have not.
    view.ready = !request.ended;
    view.prefill_left = request.prefix_tokens - sequence.position;
    return view;
  }
  // One token may be on its way, if it can be fed: the step just submitted chooses it.
  const bool can_feed = sequence.uncommitted() == 1 && sequence.last_step == steps_;
  view.ready = request.forked && !sequence.finished &&
               sequence.drawn < request.request.max_tokens &&
               (sequence.uncommitted() == 0 || can_feed);
  return view;
}

void EngineLoop::Submit(const StepDecision& decision) {
  StepInFlight& step = in_flight_.emplace_back();
  step.number = ++steps_;
  step.decodes = decision.decodes;
  step.prefill_tokens = decision.prefill_tokens;
  step.prefill_was_cut = decision.prefill_was_cut;
  step.plan.sequences.reserve(decision.work.size());
  step.submitted_us = clock_->NowUs();
  for (const Work& work : decision.work) {
    const auto [request, sequence] = candidates_[work.index];
    AddToStep(*request, *sequence, work.tokens, &step);
  }
  executor_->Submit(step.plan);
  for (const StepEntry& entry : step.entries) {
    if (!entry.request->forked && entry.sequence->position == entry.request->prefix_tokens) {
      ForkAfterPrefix(*entry.request);
    }
  }
  metrics_->OnStep(step);
  metrics_->OnPhase(StepPhase::kPlan, KindOf(step), plan_us_);
}

void EngineLoop::AddToStep(RunningRequest& request, Sequence& sequence, int32_t tokens,
                           StepInFlight* step) {
  const std::vector<int32_t>& prompt = request.request.prompt;
  const int32_t end = sequence.position + tokens;
  SequenceInput input;
  input.sequence = sequence.id;
  input.slot = sequence.memory.slot();
  input.position = sequence.position;
  input.pages = absl::MakeConstSpan(sequence.memory.pages()).first(cache_.layout().PagesFor(end));
  if (sequence.position < request.prompt_tokens()) {
    input.tokens = absl::MakeConstSpan(prompt).subspan(sequence.position, tokens);
  } else if (sequence.uncommitted() == 0) {
    input.tokens = absl::MakeConstSpan(&sequence.generated.back(), 1);
  } else {
    input.tokens = kFedToken;
    input.feed_previous = true;
  }
  if (request.request.prompt_logprobs >= 0 && sequence.position < request.prefix_tokens) {
    input.prompt_logprobs = request.request.prompt_logprobs;
    if (end < request.prompt_tokens()) input.next_prompt_token = prompt[end];
  }
  const bool sample = end >= request.prompt_tokens();
  if (sample) SampleInto(request, sequence, &input);
  sequence.position = end;
  sequence.last_step = step->number;
  ++sequence.in_flight;
  if (request.times.started_us == 0) request.times.started_us = step->submitted_us;
  step->plan.sequences.push_back(std::move(input));
  step->entries.push_back({&request, &sequence, sample});
}

void EngineLoop::SampleInto(const RunningRequest& request, Sequence& sequence,
                            SequenceInput* input) {
  input->sample = true;
  input->sampling = &sequence.sampling;
  input->draw = static_cast<uint64_t>(sequence.drawn);
  input->mask = sequence.mask.get();
  // A mask minds min_tokens itself.
  if (sequence.drawn < request.request.min_tokens && sequence.mask == nullptr) {
    input->forbidden = request.request.stop_ids;
  }
  if (sequence.sampling.needs_history()) {
    input->prompt = request.request.prompt;
    input->generated = sequence.generated;
  }
  ++sequence.drawn;
}

void EngineLoop::ForkAfterPrefix(RunningRequest& request) {
  request.forked = true;
  const Sequence& from = request.sequences.front();
  cache::ForkCopies copies;
  for (Sequence& to : request.sequences) {
    if (&to == &from || to.finished) continue;
    cache_.Fork(from.memory, to.memory, request.prefix_tokens, &copies);
    to.position = request.prefix_tokens;
  }
  if (!copies.slots.empty()) executor_->Copy(copies.slots, copies.pages);
}

// ---- wait and commit

void EngineLoop::WaitAndCommit() {
  StepResult result = executor_->Wait();
  const int64_t waited_us = clock_->NowUs();
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  // With a step before it in flight, this one began where that one ended.
  const int64_t took_us = waited_us - std::max(step.submitted_us, last_commit_us_);
  const StepKind kind = KindOf(step);
  if (kind == StepKind::kMixed) {
    controller_.OnMixedStep(step.prefill_tokens, step.prefill_was_cut, took_us);
  }
  metrics_->OnPhase(StepPhase::kExecute, kind,
                    result.duration_us > 0 ? result.duration_us : took_us);
  if (result.mask_wait_us >= 0) metrics_->OnMaskWait(result.mask_wait_us);
  committer_.CommitStep(step, std::move(result));
  last_commit_us_ = clock_->NowUs();
  ++committed_steps_;
  metrics_->OnPhase(StepPhase::kCommit, kind, last_commit_us_ - waited_us);
}

// ---- retire

bool EngineLoop::Retire() {
  bool retired = false;
  for (const auto& request : running_) {
    for (Sequence& sequence : request->sequences) {
      // The prefix is in the memory of choice 0 until the others have their copy.
      const bool carries = sequence.choice == 0 && !request->forked && !request->ended;
      if (!sequence.finished || sequence.in_flight > 0 || carries || !sequence.memory.held())
        continue;
      sequence.memory.Release();
      retired = true;
    }
  }
  std::erase_if(running_, [this](const std::unique_ptr<RunningRequest>& request) {
    const auto held = [](const Sequence& sequence) { return sequence.memory.held(); };
    if (std::any_of(request->sequences.begin(), request->sequences.end(), held)) return false;
    const RequestId id = request->request.id;
    deadlines_.erase({request->request.deadline_us, id});
    by_id_.erase(id);
    news_.gone.push_back(id);
    return true;
  });
  return retired;
}

void EngineLoop::Publish() {
  SchedulerStats& stats = news_.stats;
  stats.running_sequences = 0;
  for (const auto& request : running_) stats.running_sequences += request->unfinished;
  stats.slots_used = cache_.slots().used();
  stats.slots_total = cache_.slots().total();
  stats.pages_used = cache_.pages().used();
  stats.pages_total = cache_.pages().total();
  stats.steps = committed_steps_;
  stats.last_step_us = last_commit_us_;
  news_.now_us = clock_->NowUs();
  mailbox_->Publish(news_);
  news_.left_queue.clear();
  news_.gone.clear();

  EngineGauges gauges;
  gauges.stats = mailbox_->stats();
  gauges.queued_tokens = mailbox_->queued_tokens();
  gauges.running_requests = static_cast<int32_t>(running_.size());
  gauges.prefill_budget_tokens = controller_.budget_tokens();
  metrics_->Publish(gauges);
}

// ---- integrity

void EngineLoop::CheckIntegrity() const {
  std::vector<const cache::Reservation*> held;
  std::unordered_map<const Sequence*, int32_t> in_flight;
  for (const StepInFlight& step : in_flight_) {
    WEIR_CHECK(step.entries.size() == step.plan.sequences.size()) << "step " << step.number;
    for (const StepEntry& entry : step.entries) ++in_flight[entry.sequence];
  }
  size_t deadlines = 0;
  for (const auto& request : running_) {
    int32_t unfinished = 0;
    const RequestId id = request->request.id;
    WEIR_CHECK(by_id_.at(id) == request.get() && !queue_.Contains(id)) << "request " << id;
    for (const Sequence& sequence : request->sequences) {
      unfinished += sequence.finished ? 0 : 1;
      held.push_back(&sequence.memory);
      WEIR_CHECK(sequence.memory.held() || sequence.finished)
          << "request " << id << " runs on nothing";
      const auto found = in_flight.find(&sequence);
      const int32_t touching = found == in_flight.end() ? 0 : found->second;
      WEIR_CHECK(sequence.in_flight == touching && (touching == 0 || sequence.memory.held()))
          << "request " << id << ": " << touching << " steps in flight, " << sequence.in_flight
          << " counted";
      WEIR_CHECK(sequence.finished || sequence.uncommitted() <= touching) << "request " << id;
      WEIR_CHECK(sequence.drawn == 0 ||
                 sequence.position == request->prompt_tokens() + sequence.drawn - 1)
          << "request " << id << " at " << sequence.position << " with " << sequence.drawn
          << " drawn";
    }
    WEIR_CHECK(unfinished == request->unfinished && request->ended == (unfinished == 0))
        << "request " << id << ": " << unfinished << " unfinished";
    deadlines += deadlines_.contains({request->request.deadline_us, id}) ? 1 : 0;
  }
  for (const RequestId id : queue_.Ids()) WEIR_CHECK(!by_id_.contains(id)) << "request " << id;
  WEIR_CHECK(by_id_.size() == running_.size()) << by_id_.size() << " ids";
  WEIR_CHECK(deadlines <= deadlines_.size() && deadlines_.size() <= running_.size() + queue_.size())
      << deadlines_.size() << " deadlines";
  cache_.CheckIntegrity(held);
  queue_.CheckIntegrity();
}

}  // namespace weir::scheduler
