#include "server/response_stream.h"

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/utf8.h"
#include "tests/server/test_model.h"

namespace weir::server {
namespace {

using scheduler::FinishReason;
using ::testing::ElementsAre;
using weir::testing::ByteTokenizer;
using weir::testing::kEndId;

class RecordingHost : public ResponseStream::Host {
 public:
  void ScheduleProcess() override { ++scheduled; }
  void StopChoice(int32_t choice) override { stopped.push_back(choice); }
  int scheduled = 0;
  std::vector<int32_t> stopped;
};

class StreamTest : public ::testing::Test {
 protected:
  ResponseStream& Start(int32_t max_waiting = 1000) {
    config_.text = true;
    stream_ = std::make_unique<ResponseStream>(config_, 3, ByteTokenizer(), max_waiting, &host_);
    return *stream_;
  }
  bool Token(int32_t id, int32_t choice = 0) {
    scheduler::TokenEvent event;
    event.choice = choice;
    event.token.token = id;
    event.token.logprob = -1.5f;
    event.token.top = {{id, -1.5f}, {7, -2.0f}};
    return stream_->OnToken(event);
  }
  void Tokens(const std::string& text, int32_t choice = 0) {
    for (const char c : text) Token(static_cast<uint8_t>(c), choice);
  }
  void Finish(FinishReason reason, int32_t stop_id = -1, int32_t choice = 0) {
    stream_->OnChoiceFinished({choice, reason, stop_id, 0});
  }
  void End() { stream_->OnRequestFinished({1000, 3000, 7000, 12000}); }
  // Takes all there is.
  std::vector<v1::GenerateEvent> Drain() {
    stream_->Process();
    std::vector<v1::GenerateEvent> events;
    v1::GenerateEvent event;
    while (stream_->Take(&event)) events.push_back(event);
    return events;
  }
  static std::string TextOf(const std::vector<v1::GenerateEvent>& events, int32_t choice = 0) {
    std::string text;
    for (const auto& event : events) {
      if (event.has_delta() && event.delta().choice() == choice) text += event.delta().text();
    }
    return text;
  }

  StreamConfig config_;
  RecordingHost host_;
  std::unique_ptr<ResponseStream> stream_;
};

TEST_F(StreamTest, ADeltaPerTokenForAFastReader) {
  Start();
  for (const char c : std::string("abc")) {
    Token(c);
    const auto events = Drain();
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].delta().text(), std::string(1, c));
    EXPECT_THAT(events[0].delta().token_ids(), ElementsAre(c));
    EXPECT_FALSE(events[0].delta().has_logprobs());
  }
}

TEST_F(StreamTest, DeltasGrowWhileNobodyTakesThem) {
  config_.num_choices = 2;
  config_.logprobs = 2;
  Start();
  Tokens("ab", 0);
  Tokens("xy", 1);
  Tokens("cd", 0);
  Finish(FinishReason::kLength, -1, 1);
  const auto events = Drain();
  ASSERT_EQ(events.size(), 3u);  // one delta a choice, one end
  EXPECT_EQ(events[0].delta().text(), "abcd");
  EXPECT_EQ(events[0].delta().logprobs().token_ids_size(), 4);
  EXPECT_EQ(events[0].delta().logprobs().top_n(), 2);
  EXPECT_EQ(events[0].delta().logprobs().top_token_ids_size(), 8);
  EXPECT_EQ(events[1].delta().text(), "xy");
  EXPECT_EQ(events[1].delta().choice(), 1);
  EXPECT_EQ(events[2].choice_finished().choice(), 1);
  EXPECT_EQ(events[2].choice_finished().completion_tokens(), 2);
}

TEST_F(StreamTest, TheEndComesLastAndOnce) {
  config_.received_us = 500;
  Start();
  Tokens("hi");
  Token(kEndId);
  Finish(FinishReason::kStop, kEndId);
  EXPECT_FALSE(stream_->ended().has_value());
  End();
  const auto events = Drain();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[1].choice_finished().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(events[1].choice_finished().stop_token_id(), kEndId);
  EXPECT_EQ(events[2].finished().usage().prompt_tokens(), 3);
  EXPECT_EQ(events[2].finished().usage().completion_tokens(), 3);
  EXPECT_EQ(events[2].finished().timings().queue_us(), 2000);
  EXPECT_EQ(events[2].finished().timings().prefill_us(), 4000);
  EXPECT_EQ(events[2].finished().timings().decode_us(), 5000);
  EXPECT_EQ(events[2].finished().timings().total_us(), 11500);  // text work included
  ASSERT_TRUE(stream_->ended().has_value());
  EXPECT_TRUE(stream_->ended()->status.ok());
  EXPECT_FALSE(stream_->ended()->more);
  EXPECT_TRUE(Drain().empty());
}

TEST_F(StreamTest, TheTextOfAStopTokenShowsOnlyWhenAskedFor) {
  config_.stop_ids = {'!'};
  for (const bool include : {false, true}) {
    config_.include_stop = include;
    Start();
    Tokens("ab!");
    Finish(FinishReason::kStop, '!');
    const auto events = Drain();
    EXPECT_EQ(TextOf(events), include ? "ab!" : "ab");
    EXPECT_THAT(events[0].delta().token_ids(), ElementsAre('a', 'b', '!'));
  }
}

TEST_F(StreamTest, CharactersAreNeverSplit) {
  Start();
  std::string text;
  for (const char c : std::string("\xf0\x9f\x98\x80 \xc3\xa9 \xe2\x82\xac")) {
    Token(static_cast<uint8_t>(c));
    for (const auto& event : Drain()) {
      EXPECT_EQ(FirstInvalidUtf8(event.delta().text()), std::nullopt);
      text += event.delta().text();
    }
  }
  EXPECT_EQ(text, "\xf0\x9f\x98\x80 \xc3\xa9 \xe2\x82\xac");
  Token(0xe2);  // never completed
  Finish(FinishReason::kLength);
  EXPECT_EQ(TextOf(Drain()), "\xef\xbf\xbd");
}

TEST_F(StreamTest, StopStringsNeverLeak) {
  config_.stop_strings = {"END", "\n\n"};
  Start();
  Tokens("go EN");
  EXPECT_EQ(TextOf(Drain()), "go ");
  Tokens("Dmore");
  const auto events = Drain();
  EXPECT_EQ(TextOf(events), "");
  // The ids up to the stop string and no further.
  EXPECT_THAT(events[0].delta().token_ids(), ElementsAre('D'));
  ASSERT_TRUE(events[1].has_choice_finished());
  EXPECT_EQ(events[1].choice_finished().stop_string(), "END");
  EXPECT_EQ(events[1].choice_finished().completion_tokens(), 6);
  EXPECT_EQ(events.size(), 2u);
  EXPECT_THAT(host_.stopped, ElementsAre(0));
  Finish(FinishReason::kStop);  // the engine learns of it
  End();
  const auto rest = Drain();
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].finished().usage().completion_tokens(), 6);
}

TEST_F(StreamTest, HeldBackTextComesWhenNoStopStringDid) {
  config_.stop_strings = {"END"};
  Start();
  Tokens("go EN");
  Finish(FinishReason::kLength);
  const auto events = Drain();
  EXPECT_EQ(TextOf(events), "go EN");
  EXPECT_EQ(events.back().choice_finished().reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(StreamTest, IncludedStopStringsAreTheEndOfTheText) {
  config_.stop_strings = {"END"};
  config_.include_stop = true;
  Start();
  Tokens("go END more");
  EXPECT_EQ(TextOf(Drain()), "go END");
}

TEST_F(StreamTest, StopStringsWaitForMinTokens) {
  config_.stop_strings = {"ab"};
  config_.min_tokens = 3;
  Start();
  Tokens("abcab");
  const auto events = Drain();
  EXPECT_EQ(TextOf(events), "abc");
  EXPECT_EQ(events.back().choice_finished().completion_tokens(), 5);
}

TEST_F(StreamTest, ABoundedNumberOfTokensWaits) {
  Start(/*max_waiting=*/5);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(Token('a'));
  EXPECT_FALSE(Token('a'));
  stream_->Process();  // they wait still: nobody took them
  EXPECT_FALSE(Token('a'));
  EXPECT_EQ(TextOf(Drain()), "aaaaa");
  EXPECT_TRUE(Token('a'));
  Finish(FinishReason::kSlowReader);
  End();
  stream_->Process();
  EXPECT_EQ(stream_->ended()->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(stream_->ended()->more);
  stream_->Discard();
  EXPECT_FALSE(stream_->ended()->more);
}

TEST_F(StreamTest, TextThatIsHeldBackDoesNotFillTheBuffer) {
  config_.token_ids = false;
  config_.stop_strings = {std::string(100, 'a')};
  Start(/*max_waiting=*/5);
  for (int i = 0; i < 99; ++i) {
    ASSERT_TRUE(Token('a')) << i;
    EXPECT_TRUE(Drain().empty());
  }
}

TEST_F(StreamTest, EveryEarlyEndHasItsStatus) {
  const std::pair<FinishReason, absl::StatusCode> cases[] = {
      {FinishReason::kCancelled, absl::StatusCode::kCancelled},
      {FinishReason::kDeadline, absl::StatusCode::kDeadlineExceeded},
      {FinishReason::kDrained, absl::StatusCode::kUnavailable},
      {FinishReason::kError, absl::StatusCode::kInternal}};
  for (const auto& [reason, code] : cases) {
    Start();
    Tokens("ab");
    Finish(reason);
    End();
    const auto events = Drain();
    EXPECT_EQ(TextOf(events), "ab");  // what there was
    EXPECT_GT(events[1].choice_finished().reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_TRUE(events[2].has_finished());
    EXPECT_EQ(stream_->ended()->status.code(), code);
  }
}

TEST_F(StreamTest, LongPromptLogprobsComeInPieces) {
  Start();
  std::vector<scheduler::TokenLogprob> logprobs(5000);
  for (int i = 0; i < 5000; ++i) logprobs[i] = {i, -0.5f, {{1, -0.1f}}};
  stream_->OnPromptLogprobs(logprobs);
  int next = 0;
  for (const auto& event : Drain()) {
    EXPECT_LE(event.prompt_logprobs().token_ids_size(), 2048);
    for (const int32_t id : event.prompt_logprobs().token_ids()) EXPECT_EQ(id, next++);
  }
  EXPECT_EQ(next, 5000);
}

TEST_F(StreamTest, WithoutTextThereIsNone) {
  config_.text = false;
  stream_ = std::make_unique<ResponseStream>(config_, 3, nullptr, 100, &host_);
  Tokens("ab");
  const auto events = Drain();
  EXPECT_EQ(TextOf(events), "");
  EXPECT_THAT(events[0].delta().token_ids(), ElementsAre('a', 'b'));
}

// Whatever the bytes, the stops and the moments at which events are taken: the text is the same,
// and valid at every event.
TEST_F(StreamTest, TakingAtAnyMomentGivesTheSameText) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    config_ = StreamConfig();
    if (round % 2 == 0) config_.stop_strings = {"ab", "bca", "\xc3\xa9"};
    config_.include_stop = round % 3 == 0;
    std::vector<int32_t> ids;
    const int32_t alphabet[] = {'a', 'b', 'c', 0xc3, 0xa9, 0xe2, 0x82, 0xac, kEndId, 261};
    for (int i = 0; i < 30; ++i) ids.push_back(alphabet[random() % 10]);
    std::string texts[2];
    int32_t tokens[2];
    for (const bool eager : {false, true}) {
      Start();
      std::vector<v1::GenerateEvent> events;
      const auto take = [&] {
        for (auto& event : Drain()) {
          EXPECT_EQ(FirstInvalidUtf8(event.delta().text()), std::nullopt);
          events.push_back(std::move(event));
        }
      };
      for (const int32_t id : ids) {
        Token(id);
        if (eager && random() % 2 == 0) take();
      }
      Finish(FinishReason::kLength);
      take();
      texts[eager] = TextOf(events);
      tokens[eager] = events.back().choice_finished().completion_tokens();
    }
    EXPECT_EQ(texts[0], texts[1]);
    EXPECT_EQ(tokens[0], tokens[1]);
  }
}

}  // namespace
}  // namespace weir::server
