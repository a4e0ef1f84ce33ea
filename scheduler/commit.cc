#include "scheduler/commit.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/check.h"

namespace weir::scheduler {
namespace {

bool EndedByItself(FinishReason reason) {
  return reason == FinishReason::kStop || reason == FinishReason::kLength;
}

}  // namespace

void Committer::CommitStep(const StepInFlight& step, StepResult result) {
  WEIR_CHECK(result.outputs.size() == step.entries.size())
      << result.outputs.size() << " outputs for " << step.entries.size() << " sequences";
  for (size_t i = 0; i < step.entries.size(); ++i) {
    const StepEntry& entry = step.entries[i];
    SequenceOutput& output = result.outputs[i];
    WEIR_CHECK(output.sequence == entry.sequence->id)
        << "output " << i << " is of sequence " << output.sequence << ", not "
        << entry.sequence->id;
    --entry.sequence->in_flight;
    if (entry.request->wants_prompt_logprobs) {
      TakePromptLogprobs(*entry.request, output);
    }
    if (!entry.sampled) continue;
    if (entry.sequence->finished) {
      metrics_->OnDroppedToken();
    } else {
      TakeToken(*entry.request, *entry.sequence, std::move(output.chosen));
    }
  }
}

void Committer::TakePromptLogprobs(RunningRequest& request, SequenceOutput& output) {
  if (request.ended) return;
  auto& logprobs = request.prompt_logprobs;
  std::move(output.prompt_logprobs.begin(), output.prompt_logprobs.end(),
            std::back_inserter(logprobs));
  if (static_cast<int32_t>(logprobs.size()) < request.prompt_tokens() - 1) return;
  request.wants_prompt_logprobs = false;
  if (!request.request.sink->OnPromptLogprobs(std::exchange(logprobs, {}))) {
    FinishAll(request, FinishReason::kSlowReader);
  }
}

void Committer::TakeToken(RunningRequest& request, Sequence& sequence, TokenLogprob chosen) {
  const int32_t token = chosen.token;
  if (token < 0) return FinishChoice(request, sequence, FinishReason::kError);
  if (!request.request.sink->OnToken({sequence.choice, std::move(chosen)})) {
    return FinishAll(request, FinishReason::kSlowReader);
  }
  sequence.generated.push_back(token);
  const int64_t now_us = clock_->NowUs();
  if (request.times.first_token_us == 0) {
    request.times.first_token_us = now_us;
    metrics_->OnFirstToken(now_us - request.times.arrived_us);
  }
  metrics_->OnToken(sequence.last_token_us == 0 ? -1 : now_us - sequence.last_token_us);
  sequence.last_token_us = now_us;

  const int32_t count = static_cast<int32_t>(sequence.generated.size());
  const auto& stops = request.request.stop_ids;
  // The constraint lets an answer end early only where it is complete.
  if ((count > request.request.min_tokens || sequence.mask != nullptr) &&
      std::find(stops.begin(), stops.end(), token) != stops.end()) {
    return FinishChoice(request, sequence, FinishReason::kStop, token);
  }
  if (count == request.request.max_tokens) {
    return FinishChoice(request, sequence, FinishReason::kLength);
  }
  if (sequence.mask != nullptr) sequence.mask->Advance(token);
}

void Committer::FinishChoice(RunningRequest& request, Sequence& sequence, FinishReason reason,
                             int32_t stop_id) {
  if (sequence.finished) return;
  sequence.finished = true;
  if (sequence.mask != nullptr) sequence.mask->Close();
  if (!EndedByItself(reason) || EndedByItself(request.outcome)) request.outcome = reason;
  ChoiceFinished finished;
  finished.choice = sequence.choice;
  finished.reason = reason;
  finished.stop_id = stop_id;
  finished.generated_tokens = static_cast<int32_t>(sequence.generated.size());
  request.request.sink->OnChoiceFinished(finished);
  if (--request.unfinished == 0) EndRequest(request);
}

void Committer::FinishAll(RunningRequest& request, FinishReason reason) {
  for (Sequence& sequence : request.sequences) FinishChoice(request, sequence, reason);
}

void Committer::EndRequest(RunningRequest& request) {
  request.ended = true;
  request.times.finished_us = clock_->NowUs();
  request.request.sink->OnRequestFinished(request.times);
  request.request.sink.reset();
  metrics_->OnFinished(request.outcome, request.times);
}

void Committer::FinishQueued(const Request& request, int64_t arrived_us, FinishReason reason) {
  for (int32_t choice = 0; choice < request.num_choices; ++choice) {
    ChoiceFinished finished;
    finished.choice = choice;
    finished.reason = reason;
    request.sink->OnChoiceFinished(finished);
  }
  RequestTimes times;
  times.arrived_us = arrived_us;
  times.finished_us = clock_->NowUs();
  request.sink->OnRequestFinished(times);
  metrics_->OnFinished(reason, times);
}

}  // namespace weir::scheduler
