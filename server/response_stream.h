// ResponseStream: one request's tokens on their way from the engine to the client.
//
//   engine thread --On*()--> incoming --Process()--> outgoing --Take()--> the call's writer
//
// The engine only appends. Process (on a text thread, one at a time) detokenizes, looks for stop
// strings and makes events; deltas that the writer has not taken yet grow instead of piling up. The
// tokens that wait on the way are bounded: past the bound OnToken returns false and the scheduler
// ends the request.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/status.h"
#include "scheduler/token_sink.h"
#include "server/answer_stream.h"
#include "server/request_validator.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"
#include "weir/v1/generate.pb.h"

namespace weir::text {
class Tokenizer;
}

namespace weir::server {

// The bytes that a token adds to a text; special and other added tokens as they are spelled.
std::string TokenPiece(const text::Tokenizer& tokenizer, int32_t id);

class ResponseStream final : public scheduler::TokenSink {
 public:
  // What the stream asks of its call. Both return at once.
  class Host {
   public:
    virtual ~Host() = default;
    // Run Process() soon, on a text thread. Not called again before that has returned.
    virtual void ScheduleProcess() = 0;
    // A stop string ended `choice`: the engine need not go on with it. From Process().
    virtual void StopChoice(int32_t choice) = 0;
  };

  // `tokenizer` may be null when the config asks for no text and no stop strings.
  ResponseStream(const StreamConfig& config, int32_t prompt_tokens,
                 std::shared_ptr<const text::Tokenizer> tokenizer, int32_t max_waiting_tokens,
                 Host* host);
  ~ResponseStream() override;

  // Engine thread.
  bool OnPromptLogprobs(std::vector<scheduler::TokenLogprob> logprobs) override;
  bool OnToken(const scheduler::TokenEvent& event) override;
  void OnChoiceFinished(const scheduler::ChoiceFinished& finished) override;
  void OnRequestFinished(const scheduler::RequestTimes& times) override;

  // Turns all that came into events. Called once per ScheduleProcess(), never on the engine's
  // thread.
  void Process();

  // Puts an event of the call's own (accepted) in front of what comes. Before the request is
  // submitted.
  void Add(v1::GenerateEvent event);

  // Any thread. The next event, oldest first; false: none now.
  bool Take(v1::GenerateEvent* event);
  // What is not taken yet is dropped, and what still comes too. `ended` is still told.
  void Discard();

  struct End {
    absl::Status status;  // OK, or why the call ends early
    scheduler::RequestTimes times;
    bool more = false;  // events are still to be taken
  };
  // Set once the engine has made its last call and Process has handled it.
  std::optional<End> ended() const;

  int64_t completion_tokens() const;

 private:
  struct Choice;
  using Item = std::variant<scheduler::TokenEvent, scheduler::ChoiceFinished,
                            std::vector<scheduler::TokenLogprob>, scheduler::RequestTimes>;

  bool Append(Item item, bool bounded);
  void Handle(const Item& item);
  void HandleToken(const scheduler::TokenEvent& event);
  void HandleChoiceFinished(const scheduler::ChoiceFinished& finished);
  void HandlePromptLogprobs(const std::vector<scheduler::TokenLogprob>& logprobs);
  void HandleRequestFinished(const scheduler::RequestTimes& times);
  // The text that a token lets out; sets choice->stop_string on a match.
  std::string NewText(Choice* choice, int32_t token, bool is_stop);
  // What detokenizer and matcher still hold.
  std::string RestOfText(Choice* choice);
  void AddLogprob(const scheduler::TokenLogprob& from, v1::Logprobs* to) const;
  // The text taken apart, where that is asked for.
  AnswerParts PartsOf(Choice* choice, std::string text);
  void EmitDelta(int32_t choice, const scheduler::TokenEvent* event, AnswerParts parts);
  void EmitFinished(int32_t choice, v1::FinishReason reason, int32_t stop_id);
  v1::Delta* DeltaFor(int32_t choice);  // REQUIRES: mutex_ held
  void Emit(v1::GenerateEvent event);

  const StreamConfig config_;
  const int32_t prompt_tokens_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const int32_t max_waiting_tokens_;
  Host* const host_;

  // Touched by Process only.
  std::vector<Choice> choices_;
  scheduler::FinishReason worst_ = scheduler::FinishReason::kStop;

  mutable std::mutex mutex_;  // guards what follows
  std::vector<Item> incoming_;
  bool scheduled_ = false;
  bool discard_ = false;
  struct Outgoing {
    v1::GenerateEvent event;
    int32_t tokens = 0;
  };
  std::deque<Outgoing> outgoing_;
  int64_t taken_ = 0;                      // events taken so far
  std::map<int32_t, int64_t> open_delta_;  // choice -> number of its delta that may still grow
  int64_t waiting_tokens_ = 0;             // in incoming_ and outgoing_
  int64_t completion_tokens_ = 0;
  std::optional<End> end_;
};

}  // namespace weir::server
