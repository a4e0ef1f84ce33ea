#include "tests/sim/simulation.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/clock.h"
#include "scheduler/scheduler.h"
#include "tests/support/fake_constraint.h"
#include "tests/support/fake_executor.h"
#include "tests/support/recording_sink.h"

namespace weir::sim {
namespace {

using scheduler::FinishReason;
using scheduler::Request;
using scheduler::RequestId;
using scheduler::TokenEvent;
using weir::testing::Expected;
using weir::testing::ExpectedChoice;
using weir::testing::ExpectedPromptLogprobs;
using weir::testing::RecordingSink;

std::atomic<uint64_t> current_seed = 0;

void PrintSeed(int) {
  char line[64];
  const int length = std::snprintf(line, sizeof line, "simulation seed %llu\n",
                                   static_cast<unsigned long long>(current_seed.load()));
  if (write(STDERR_FILENO, line, length) < 0) _exit(1);
}

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  // Uniform in [low, high].
  int64_t Roll(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int64_t n) { return Roll(1, n) == 1; }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return *(values.begin() + Roll(0, static_cast<int64_t>(values.size()) - 1));
  }

 private:
  std::mt19937_64 engine_;
};

// One request, what its client does, and what it may therefore see.
struct Client {
  Request request;
  std::shared_ptr<RecordingSink> sink;
  int64_t capacity = INT64_MAX;
  int64_t arrives_turn = 0;
  int64_t cancel_turn = -1;
  int64_t early_stop_turn = -1;  // StopChoice without a token: before the fork, too
  int32_t early_stop_choice = 0;
  int32_t stop_on = -1;          // a token that ends its choice: the server saw a stop string
  int64_t stop_delay_turns = 0;  // between the token and StopChoice
  bool accepted = false;
  bool cancelled = false;
  std::map<int32_t, bool> stopped;  // choices for which StopChoice was called
};

class World {
 public:
  World(uint64_t seed, const SimScale& scale) : dice_(seed), scale_(scale) {}

  SimReport Run() {
    Build();
    RunTurns();
    for (const auto& client : clients_) Judge(*client);
    ExpectAllFree();
    Summarize();
    return std::move(report_);
  }

 private:
  struct DelayedStop {
    int64_t turn;
    RequestId id;
    int32_t choice;
  };

  void Build();
  void BuildExecutor();
  std::unique_ptr<Client> MakeClient(RequestId id);
  void RunTurns();
  void Act();
  void Submit(Client& client);
  void OnToken(Client& client, const TokenEvent& event);
  void Judge(const Client& client);
  void JudgeChoice(const Client& client, int32_t choice);
  void JudgePromptLogprobs(const Client& client);
  void ExpectAllFree();
  void Summarize();
  void Trace(uint64_t value) {
    report_.trace = (report_.trace ^ value) * 0x100000001B3ull + (report_.trace >> 29);
  }
  template <typename... Args>
  void Fault(const Args&... args) {
    report_.faults.push_back(absl::StrCat(args...));
  }

  Dice dice_;
  const SimScale scale_;
  VirtualClock clock_;
  scheduler::SchedulerOptions options_;
  std::unique_ptr<weir::testing::FakeExecutor> executor_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<DelayedStop> stops_;
  int64_t turn_ = 0;
  int64_t drain_turn_ = -1;
  int64_t drain_us_ = 0;  // from now; once it drains: on the clock
  int64_t late_us_ = 0;   // how long after a deadline an end may come
  bool drained_ = false;
  bool stopped_ = false;
  int64_t stop_turn_ = -1;
  SimReport report_;
};

void World::BuildExecutor() {
  weir::testing::FakeOptions fake;
  auto& limits = fake.limits;
  limits.vocab_size = static_cast<int32_t>(dice_.Pick({5, 23, 101}));
  limits.max_position = static_cast<int32_t>(dice_.Roll(4, scale_.most_position));
  limits.max_step_tokens = static_cast<int32_t>(dice_.Pick({1, 2, 3, 8, 17, 48, 300}));
  limits.max_step_sequences = static_cast<int32_t>(dice_.Pick({1, 2, 3, 8, 16}));
  limits.max_in_flight = static_cast<int32_t>(dice_.Pick({1, 1, 2, 2, 2, 3}));
  limits.cache.slots = static_cast<int32_t>(dice_.Roll(1, 8));
  if (dice_.OneIn(4)) {
    limits.layout.page_bytes = limits.layout.page_tokens = 0;
    limits.cache.pages = 0;
  } else {
    limits.layout.page_tokens = static_cast<int32_t>(dice_.Pick({1, 2, 4, 7, 16}));
    limits.layout.page_bytes = limits.layout.page_tokens * 8;
    const int32_t longest = limits.layout.PagesFor(limits.max_position);
    const int32_t least = dice_.OneIn(4) ? 1 : longest;
    limits.cache.pages = static_cast<int32_t>(dice_.Roll(least, longest * limits.cache.slots));
  }
  fake.clock = &clock_;
  fake.step_us = dice_.Pick<int64_t>({0, 100, 3000});
  fake.token_us = dice_.Pick<int64_t>({0, 7, 50});
  // Ends are noticed between two steps; an idle turn takes a millisecond.
  late_us_ =
      (1 + limits.max_in_flight) * (fake.step_us + limits.max_step_tokens * fake.token_us) + 1000;
  executor_ = std::make_unique<weir::testing::FakeExecutor>(fake);
}

void World::Build() {
  clock_.AdvanceUs(1);  // 0 means "did not happen"
  BuildExecutor();
  options_.max_queued_requests = static_cast<int32_t>(dice_.Pick({1, 4, 64, 64}));
  options_.max_queued_tokens = dice_.Pick<int64_t>({60, 400, 1 << 20});
  options_.max_choices = static_cast<int32_t>(dice_.Roll(3, 5));
  options_.step_tokens = static_cast<int32_t>(dice_.Pick({0, 0, 1, 5, 20}));
  options_.prefill_chunk_tokens = static_cast<int32_t>(dice_.Pick({0, 0, 1, 3, 10}));
  // With threads only the time differs, not what is chosen.
  options_.mask_threads = dice_.OneIn(10) ? 2 : 0;
  options_.target_inter_token_us = dice_.Pick<int64_t>({0, 0, 500, 4000});
  scheduler_ = std::make_unique<scheduler::Scheduler>(options_, executor_.get(), &clock_, nullptr);
  const int64_t count = dice_.Roll(1, scale_.most_requests);
  for (int64_t i = 0; i < count; ++i) clients_.push_back(MakeClient(static_cast<RequestId>(i + 1)));
  if (dice_.OneIn(6)) {
    drain_turn_ = dice_.Roll(0, 80);
    drain_us_ = dice_.Roll(0, 100'000);
  }
  if (dice_.OneIn(10)) stop_turn_ = dice_.Roll(0, 80);
}

std::unique_ptr<Client> World::MakeClient(RequestId id) {
  const auto& limits = executor_->limits();
  auto client = std::make_unique<Client>();
  client->arrives_turn = dice_.OneIn(3) ? 0 : dice_.Roll(0, 60);
  if (dice_.OneIn(8)) client->capacity = dice_.Roll(0, 10);
  client->sink = std::make_shared<RecordingSink>(client->capacity);
  Request& request = client->request;
  request.id = id;
  request.sink = client->sink;
  const int64_t most = dice_.OneIn(5) ? limits.max_position + 1 : limits.max_position / 2 + 1;
  const int64_t length = dice_.OneIn(6) ? dice_.Roll(1, 2) : dice_.Roll(1, most);
  for (int64_t i = 0; i < length; ++i) {
    request.prompt.push_back(static_cast<int32_t>(dice_.Roll(0, limits.vocab_size - 1)));
  }
  if (dice_.OneIn(40)) request.prompt.back() = dice_.Pick({-1, limits.vocab_size});
  request.num_choices = static_cast<int32_t>(dice_.Pick({1, 1, 1, 1, 2, 2, 3, 5}));
  request.max_tokens = static_cast<int32_t>(dice_.OneIn(10) ? INT32_MAX : dice_.Roll(1, 40));
  if (dice_.OneIn(3)) request.min_tokens = static_cast<int32_t>(dice_.Roll(1, 12));
  for (int64_t stops = dice_.Roll(0, 2); stops > 0; --stops) {
    request.stop_ids.push_back(static_cast<int32_t>(dice_.Roll(0, limits.vocab_size - 1)));
  }
  if (dice_.OneIn(4)) request.prompt_logprobs = static_cast<int32_t>(dice_.Roll(0, 2));
  request.priority = static_cast<int32_t>(dice_.Pick({0, 0, 0, 1, -1}));
  if (dice_.OneIn(6)) request.deadline_us = 1 + dice_.Roll(0, 100'000);
  auto& sampling = request.sampling;
  sampling.seed = static_cast<uint64_t>(dice_.Roll(0, 1 << 20));
  if (dice_.OneIn(4)) sampling.presence_penalty = 0.5f;
  if (dice_.OneIn(4)) sampling.logprobs = static_cast<int32_t>(dice_.Roll(0, 2));
  if (dice_.OneIn(12)) {
    sampling.logit_bias.emplace_back(weir::testing::kNanAtDraw,
                                     static_cast<float>(dice_.Roll(0, 8)));
  }
  if (dice_.OneIn(3)) {
    weir::testing::FakeConstraint::Rules rules;
    rules.seed = static_cast<uint64_t>(dice_.Roll(0, 1 << 20));
    rules.vocab = limits.vocab_size;
    rules.stop_ids = request.stop_ids;
    if (!rules.stop_ids.empty() && dice_.OneIn(2)) {
      rules.complete_after = static_cast<int32_t>(dice_.Roll(0, 20));
    }
    if (dice_.OneIn(12)) rules.fails_at = static_cast<int32_t>(dice_.Roll(0, 8));
    request.constraint = std::make_shared<weir::testing::FakeConstraint>(rules);
  }
  if (dice_.OneIn(6)) client->cancel_turn = client->arrives_turn + dice_.Roll(0, 40);
  if (dice_.OneIn(4)) {
    client->stop_on = static_cast<int32_t>(dice_.Roll(0, limits.vocab_size - 1));
    client->stop_delay_turns = dice_.Roll(0, 3);
  }
  if (dice_.OneIn(6)) {
    client->early_stop_turn = client->arrives_turn + dice_.Roll(0, 12);
    client->early_stop_choice = static_cast<int32_t>(dice_.Roll(0, request.num_choices - 1));
  }
  Client* raw = client.get();
  client->sink->SetOnToken([this, raw](const TokenEvent& event) { OnToken(*raw, event); });
  return client;
}

void World::OnToken(Client& client, const TokenEvent& event) {
  Trace(client.request.id * 1000003 + static_cast<uint64_t>(event.choice) * 131 +
        static_cast<uint64_t>(event.token.token));
  if (event.token.token != client.stop_on || client.stopped[event.choice]) return;
  client.stopped[event.choice] = true;
  if (client.stop_delay_turns == 0) {
    scheduler_->StopChoice(client.request.id, event.choice);
  } else {
    stops_.push_back({turn_ + client.stop_delay_turns, client.request.id, event.choice});
  }
}

void World::Submit(Client& client) {
  const absl::Status status = scheduler_->Submit(client.request);
  client.accepted = status.ok();
  switch (status.code()) {
    case absl::StatusCode::kOk:
      break;
    case absl::StatusCode::kInvalidArgument:
      ++report_.refused_invalid;
      break;
    case absl::StatusCode::kResourceExhausted:
      ++report_.refused_full;
      break;
    case absl::StatusCode::kUnavailable:
      ++report_.refused_draining;
      if (!drained_ && !stopped_) Fault("refused as draining, but it does not drain");
      break;
    default:
      Fault("refused with ", status.ToString());
  }
}

void World::Act() {
  for (const auto& client : clients_) {
    if (client->arrives_turn == turn_) Submit(*client);
    if (client->cancel_turn == turn_) {
      client->cancelled = true;
      scheduler_->Cancel(client->request.id);
    }
  }
  for (const auto& client : clients_) {
    if (client->early_stop_turn != turn_) continue;
    client->stopped[client->early_stop_choice] = true;
    scheduler_->StopChoice(client->request.id, client->early_stop_choice);
  }
  for (const DelayedStop& stop : stops_) {
    if (stop.turn == turn_) scheduler_->StopChoice(stop.id, stop.choice);
  }
  if (turn_ % 16 == 5) {  // ids and choices that do not exist are ignored
    scheduler_->Cancel(1'000'000);
    scheduler_->StopChoice(clients_.front()->request.id, 77);
  }
  if (drain_turn_ == turn_) {
    drained_ = true;
    drain_us_ += clock_.NowUs();
    scheduler_->Drain(drain_us_);
  }
}

void World::RunTurns() {
  constexpr int64_t kMostTurns = 200'000;
  constexpr int64_t kLastEvent = 160;  // later than any arrival, cancel, drain
  for (; turn_ < kMostTurns; ++turn_) {
    Act();
    if (turn_ == stop_turn_) {
      stopped_ = true;
      scheduler_->Stop();
      scheduler_->CheckIntegrity();
      for (const auto& client : clients_) {
        if (client->arrives_turn > turn_) Submit(*client);
      }
      return;
    }
    const bool worked = scheduler_->RunOnce();
    scheduler_->CheckIntegrity();
    const auto stats = scheduler_->stats();
    const bool full = stats.slots_used == stats.slots_total ||
                      (stats.pages_total > 0 && stats.pages_used == stats.pages_total);
    if (full && stats.queued_requests > 0) ++report_.full_pools;
    if (!worked) {
      if (turn_ > kLastEvent) return;
      clock_.AdvanceUs(1000);
    }
  }
  Fault("still busy after ", kMostTurns, " turns");
}

void World::Judge(const Client& client) {
  const RequestId id = client.request.id;
  for (const std::string& fault : client.sink->faults()) Fault("request ", id, ": ", fault);
  if (!client.accepted) {
    if (client.sink->finished() || !client.sink->events().empty()) {
      Fault("request ", id, " was refused, but its sink was called");
    }
    return;
  }
  if (!client.sink->finished()) return Fault("request ", id, " never ended");
  const auto times = client.sink->times();
  const bool ordered = times.finished_us >= times.arrived_us &&
                       (times.first_token_us == 0 || times.first_token_us >= times.started_us) &&
                       (times.started_us == 0 || times.started_us >= times.arrived_us);
  if (!ordered) Fault("request ", id, ": times out of order");
  int64_t by_us = client.request.deadline_us > 0 ? client.request.deadline_us : INT64_MAX;
  if (drained_) by_us = std::min(by_us, drain_us_);
  const int64_t at_most_us = std::max(by_us, times.arrived_us) + late_us_;
  if (by_us < INT64_MAX && times.finished_us > at_most_us) {
    Fault("request ", id, ": ended ", times.finished_us - by_us, " us after its last moment");
  }
  for (int32_t choice = 0; choice < client.request.num_choices; ++choice) {
    if (!client.sink->choice_finished(choice)) {
      Fault("request ", id, " ended without choice ", choice);
    } else {
      JudgeChoice(client, choice);
    }
  }
  JudgePromptLogprobs(client);
}

void World::JudgeChoice(const Client& client, int32_t choice) {
  const auto finished = client.sink->choice(choice);
  const std::vector<int32_t> tokens = client.sink->tokens(choice);
  const ExpectedChoice expected = Expected(client.request, choice, executor_->limits());
  const std::string who = absl::StrCat("request ", client.request.id, " choice ", choice);
  ++report_.reasons[static_cast<size_t>(finished.reason)];
  Trace(static_cast<uint64_t>(finished.reason) + 7);
  if (tokens.size() > expected.tokens.size() ||
      !std::equal(tokens.begin(), tokens.end(), expected.tokens.begin())) {
    Fault(who, " got wrong tokens");
  }
  if (finished.generated_tokens != std::ssize(tokens)) Fault(who, ": wrong count");
  const bool whole = tokens.size() == expected.tokens.size();
  const bool stopped = client.stopped.contains(choice) && client.stopped.at(choice);
  bool right = false;
  switch (finished.reason) {
    case FinishReason::kStop:
      right = finished.stop_id >= 0 ? whole && expected.reason == finished.reason &&
                                          expected.stop_id == finished.stop_id
                                    : stopped;
      if (finished.stop_id < 0) ++report_.stopped_choices;
      break;
    case FinishReason::kLength:
    case FinishReason::kError:
      right = whole && expected.reason == finished.reason;
      break;
    case FinishReason::kCancelled:
      right = client.cancelled;
      break;
    case FinishReason::kDeadline:
      right = client.request.deadline_us > 0 &&
              client.sink->times().finished_us >= client.request.deadline_us;
      break;
    case FinishReason::kSlowReader:
      right = std::ssize(client.sink->events()) == client.capacity;
      break;
    case FinishReason::kDrained:
      right = stopped_ || (drained_ && client.sink->times().finished_us >= drain_us_);
      break;
  }
  if (!right) Fault(who, " ended for reason ", static_cast<int>(finished.reason), " without cause");
}

void World::JudgePromptLogprobs(const Client& client) {
  const auto got = client.sink->prompt_logprobs();
  const int32_t calls = client.sink->prompt_logprobs_calls();
  const std::string who = absl::StrCat("request ", client.request.id);
  if (client.request.prompt_logprobs < 0 && calls > 0) Fault(who, ": prompt logprobs unasked for");
  if (client.request.prompt_logprobs < 0 || calls == 0) {
    const bool answered = !client.sink->events().empty();
    if (client.request.prompt_logprobs >= 0 && answered) Fault(who, ": no prompt logprobs");
    return;
  }
  const auto expected = ExpectedPromptLogprobs(client.request, executor_->limits());
  bool same = got.size() == expected.size();
  for (size_t i = 0; same && i < got.size(); ++i) {
    same = got[i].token == expected[i].token && got[i].logprob == expected[i].logprob &&
           got[i].top == expected[i].top;
  }
  if (!same) Fault(who, ": wrong prompt logprobs");
}

void World::ExpectAllFree() {
  const auto stats = scheduler_->stats();
  if (stats.slots_used != 0) Fault(stats.slots_used, " slots leaked");
  if (stats.pages_used != 0) Fault(stats.pages_used, " pages leaked");
  if (stats.queued_requests != 0) Fault(stats.queued_requests, " requests left in the queue");
  if (stats.running_sequences != 0) Fault(stats.running_sequences, " sequences left");
}

void World::Summarize() {
  report_.turns = turn_;
  report_.steps = executor_->seen().steps;
  report_.tokens = executor_->seen().tokens;
  report_.forked_slots = executor_->seen().copied_slots;
  report_.forked_pages = executor_->seen().copied_pages;
  report_.fed = executor_->seen().fed;
}

}  // namespace

void SimReport::Add(const SimReport& other) {
  faults.insert(faults.end(), other.faults.begin(), other.faults.end());
  for (size_t i = 0; i < reasons.size(); ++i) reasons[i] += other.reasons[i];
  refused_invalid += other.refused_invalid;
  refused_full += other.refused_full;
  refused_draining += other.refused_draining;
  turns += other.turns;
  steps += other.steps;
  tokens += other.tokens;
  forked_slots += other.forked_slots;
  forked_pages += other.forked_pages;
  fed += other.fed;
  stopped_choices += other.stopped_choices;
  full_pools += other.full_pools;
}

SimReport RunSimulation(uint64_t seed, const SimScale& scale) {
  current_seed = seed;
  std::signal(SIGABRT, PrintSeed);
  SimReport report = World(seed, scale).Run();
  std::signal(SIGABRT, SIG_DFL);
  return report;
}

}  // namespace weir::sim
