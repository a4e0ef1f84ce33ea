#include "scheduler/mailbox.h"

#include <atomic>
#include <thread>
#include <vector>

#include "core/error_details.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace weir::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

Request Make(RequestId id, int64_t tokens = 1, int32_t choices = 1) {
  Request request;
  request.id = id;
  request.prompt.assign(tokens, 1);
  request.num_choices = choices;
  return request;
}

SchedulerOptions Options(int32_t requests, int64_t tokens) {
  SchedulerOptions options;
  options.max_queued_requests = requests;
  options.max_queued_tokens = tokens;
  return options;
}

void Forget(Mailbox* mailbox, RequestId id) {
  EngineNews news;
  news.gone = {id};
  mailbox->Publish(news);
}

TEST(MailboxTest, GivesEverythingOnceInOrder) {
  Mailbox mailbox(Options(10, 100));
  Refusal refusal;
  ASSERT_TRUE(mailbox.Submit(Make(1), 5, &refusal).ok());
  ASSERT_TRUE(mailbox.Submit(Make(2, 3, 2), 6, &refusal).ok());
  mailbox.StopChoice(2, 1);
  mailbox.Cancel(1, FinishReason::kDeadline);
  Mail mail;
  mailbox.Take(&mail);
  ASSERT_EQ(mail.arrivals.size(), 2u);
  EXPECT_EQ(mail.arrivals[0].request.id, 1u);
  EXPECT_EQ(mail.arrivals[0].arrived_us, 5);
  EXPECT_EQ(mail.arrivals[1].request.id, 2u);
  EXPECT_THAT(mail.cancels, ElementsAre(Pair(1, FinishReason::kDeadline)));
  EXPECT_THAT(mail.stops, ElementsAre(Pair(2, 1)));
  EXPECT_FALSE(mail.empty());
  mailbox.Take(&mail);
  EXPECT_TRUE(mail.empty());
}

TEST(MailboxTest, IsBoundedByRequests) {
  Mailbox mailbox(Options(2, 100));
  Refusal refusal = Refusal::kInvalid;
  ASSERT_TRUE(mailbox.Submit(Make(1), 0, &refusal).ok());
  ASSERT_TRUE(mailbox.Submit(Make(2), 0, &refusal).ok());
  const absl::Status status = mailbox.Submit(Make(3), 0, &refusal);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 requests wait, which is its limit"));
  EXPECT_EQ(refusal, Refusal::kQueueRequests);
  EXPECT_EQ(GetErrorDetails(status).exhausted_resource, "queue");
  EXPECT_EQ(GetErrorDetails(status).retry_after_ms, 1000);
  // Taking the mail makes no room; leaving the queue does.
  Mail mail;
  mailbox.Take(&mail);
  EXPECT_FALSE(mailbox.Submit(Make(3), 0, &refusal).ok());
  EngineNews news;
  news.left_queue = {1};
  mailbox.Publish(news);
  EXPECT_TRUE(mailbox.Submit(Make(3), 0, &refusal).ok());
}

TEST(MailboxTest, IsBoundedByTokens) {
  Mailbox mailbox(Options(10, 5));
  Refusal refusal = Refusal::kInvalid;
  ASSERT_TRUE(mailbox.Submit(Make(1, 3), 0, &refusal).ok());
  const absl::Status status = mailbox.Submit(Make(2, 3), 0, &refusal);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("3 prompt tokens wait, 3 more would pass"));
  EXPECT_EQ(refusal, Refusal::kQueueTokens);
  EXPECT_TRUE(mailbox.Submit(Make(3, 2), 0, &refusal).ok());
  EXPECT_EQ(mailbox.queued_tokens(), 5);
  EngineNews news;
  news.left_queue = {3, 2};
  mailbox.Publish(news);
  EXPECT_EQ(mailbox.queued_tokens(), 0);
  EXPECT_EQ(mailbox.stats().queued_requests, 0);
}

TEST(MailboxTest, AnIdMayBeAliveOnce) {
  Mailbox mailbox(Options(10, 100));
  Refusal refusal;
  ASSERT_TRUE(mailbox.Submit(Make(1), 0, &refusal).ok());
  EXPECT_EQ(mailbox.Submit(Make(1), 0, &refusal).code(), absl::StatusCode::kAlreadyExists);
  Forget(&mailbox, 1);
  EXPECT_TRUE(mailbox.Submit(Make(1), 0, &refusal).ok());
}

// However often a client cancels, one message is kept; about what is not there, none.
TEST(MailboxTest, WhatIsSaidIsBoundedToo) {
  Mailbox mailbox(Options(10, 100));
  Refusal refusal;
  ASSERT_TRUE(mailbox.Submit(Make(1, 1, 2), 0, &refusal).ok());
  for (int i = 0; i < 1000; ++i) {
    mailbox.Cancel(1, i == 0 ? FinishReason::kCancelled : FinishReason::kDeadline);
    mailbox.StopChoice(1, i % 4 - 1);
    mailbox.Cancel(1000 + i, FinishReason::kCancelled);
    mailbox.StopChoice(1000 + i, 0);
  }
  Mail mail;
  mailbox.Take(&mail);
  EXPECT_THAT(mail.cancels, ElementsAre(Pair(1, FinishReason::kCancelled)));
  EXPECT_THAT(mail.stops, ElementsAre(Pair(1, 0), Pair(1, 1)));
}

TEST(MailboxTest, DrainingRefusesWithAHint) {
  Mailbox mailbox(Options(10, 100));
  Refusal refusal = Refusal::kInvalid;
  mailbox.Drain(77);
  const absl::Status status = mailbox.Submit(Make(1), 0, &refusal);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(refusal, Refusal::kDraining);
  EXPECT_TRUE(GetErrorDetails(status).retry_after_ms.has_value());
  Mail mail;
  mailbox.Take(&mail);
  EXPECT_TRUE(mail.draining);
  EXPECT_EQ(mail.drain_deadline_us, 77);
}

TEST(MailboxTest, KnowsSinceWhenThereIsWork) {
  Mailbox mailbox(Options(10, 100));
  Refusal refusal;
  EXPECT_EQ(mailbox.stats().busy_since_us, 0);
  ASSERT_TRUE(mailbox.Submit(Make(1), 40, &refusal).ok());
  ASSERT_TRUE(mailbox.Submit(Make(2), 50, &refusal).ok());
  EXPECT_EQ(mailbox.stats().busy_since_us, 40);
  EXPECT_EQ(mailbox.stats().queued_requests, 2);
  Forget(&mailbox, 1);
  EXPECT_EQ(mailbox.stats().busy_since_us, 40);
  Forget(&mailbox, 2);
  EXPECT_EQ(mailbox.stats().busy_since_us, 0);
}

TEST(MailboxTest, AnythingSaidWakesTheEngine) {
  Mailbox mailbox(Options(10, 100));
  std::atomic<int> woken = 0;
  std::thread engine([&] {
    Mail mail;
    for (int i = 0; i < 3; ++i) {
      mailbox.Wait();
      mailbox.Take(&mail);
      ++woken;
    }
  });
  Refusal refusal;
  const auto reach = [&](int count) {
    while (woken < count) std::this_thread::yield();
  };
  ASSERT_TRUE(mailbox.Submit(Make(1), 0, &refusal).ok());
  reach(1);
  mailbox.Cancel(1, FinishReason::kCancelled);
  reach(2);
  mailbox.Drain(1);
  reach(3);
  engine.join();
  EXPECT_EQ(woken, 3);
}

}  // namespace
}  // namespace weir::scheduler
