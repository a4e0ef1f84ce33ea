#include "scheduler/admission_queue.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace weir::scheduler {
namespace {

using ::testing::ElementsAre;

void Push(AdmissionQueue* queue, RequestId id, int32_t priority = 0, int32_t slots = 1) {
  Waiting waiting;
  waiting.request.id = id;
  waiting.request.priority = priority;
  waiting.need = {slots, 0};
  queue->Push(std::move(waiting));
}

std::vector<RequestId> Admit(AdmissionQueue* queue, int32_t free_slots) {
  const auto places = PlanAdmission(queue->View(256), {free_slots, 0});
  std::vector<RequestId> ids;
  for (const Waiting& waiting : queue->Admit(places)) ids.push_back(waiting.request.id);
  queue->CheckIntegrity();
  return ids;
}

TEST(AdmissionQueueTest, PriorityThenArrival) {
  AdmissionQueue queue;
  Push(&queue, 1);
  Push(&queue, 2, 5);
  Push(&queue, 3, -1);
  Push(&queue, 4, 5);
  Push(&queue, 5);
  EXPECT_THAT(queue.Ids(), ElementsAre(2, 4, 1, 5, 3));
  EXPECT_THAT(Admit(&queue, 3), ElementsAre(2, 4, 1));
  EXPECT_THAT(queue.Ids(), ElementsAre(5, 3));
}

TEST(AdmissionQueueTest, TheWindowIsTheFront) {
  AdmissionQueue queue;
  for (RequestId id = 1; id <= 10; ++id) Push(&queue, id, 0, static_cast<int32_t>(id));
  const auto view = queue.View(3);
  ASSERT_EQ(view.size(), 3u);
  EXPECT_EQ(view[0].need.slots, 1);
  EXPECT_EQ(view[2].need.slots, 3);
  EXPECT_EQ(queue.View(100).size(), 10u);
}

TEST(AdmissionQueueTest, RemoveTakesOneFromAnywhere) {
  AdmissionQueue queue;
  for (RequestId id = 1; id <= 3; ++id) Push(&queue, id);
  EXPECT_TRUE(queue.Contains(2));
  EXPECT_EQ(queue.Remove(2).request.id, 2u);
  EXPECT_FALSE(queue.Contains(2));
  EXPECT_THAT(queue.Ids(), ElementsAre(1, 3));
  queue.CheckIntegrity();
  EXPECT_DEATH(queue.Remove(2), "request 2 does not wait");
}

// One that needs 8 slots among a stream of those that need one, of which 4 are always free.
TEST(AdmissionQueueTest, ABigOneIsPassedWithinTheBoundThenTheRestWaitsForIt) {
  AdmissionQueue queue;
  Push(&queue, 1, 0, 8);
  int32_t passed = 0;
  for (RequestId id = 2; id < 100; ++id) {
    Push(&queue, id);
    passed += static_cast<int32_t>(Admit(&queue, 4).size());
  }
  EXPECT_EQ(passed, AdmissionQueue::kMaxPasses);
  EXPECT_EQ(queue.Ids().front(), 1u);
  EXPECT_THAT(Admit(&queue, 9), ElementsAre(1, 2 + AdmissionQueue::kMaxPasses));
}

TEST(AdmissionQueueTest, PassesOfOneTurnAreCountedToo) {
  AdmissionQueue queue;
  Push(&queue, 1, 0, 1000);
  for (RequestId id = 2; id < 100; ++id) Push(&queue, id);
  EXPECT_EQ(std::ssize(Admit(&queue, 500)), AdmissionQueue::kMaxPasses);
  EXPECT_EQ(Admit(&queue, 500).size(), 0u);
}

// A low priority against an endless stream of higher ones.
TEST(AdmissionQueueTest, TheOldestIsNotOvertakenForEver) {
  AdmissionQueue queue;
  Push(&queue, 1, -5);
  Push(&queue, 2, -5);
  RequestId id = 10;
  std::vector<int32_t> overtaken;  // before 1, before 2
  int32_t count = 0;
  while (overtaken.size() < 2) {
    ASSERT_LT(count, 1000);
    Push(&queue, ++id, 5);
    for (const RequestId admitted : Admit(&queue, 1)) {
      if (admitted > 2) {
        ++count;
      } else {
        EXPECT_EQ(admitted, overtaken.size() + 1);
        overtaken.push_back(count);
        count = 0;
      }
    }
  }
  // Promoted by the 64th, it goes in the next turn. The second's count begins when it is the
  // oldest.
  EXPECT_THAT(overtaken, ElementsAre(AdmissionQueue::kMaxOvertakes, AdmissionQueue::kMaxOvertakes));
}

TEST(AdmissionQueueTest, APromotedOneThatDoesNotFitHoldsTheRest) {
  AdmissionQueue queue;
  Push(&queue, 1, -5, 3);
  for (RequestId id = 2; id < 200; ++id) Push(&queue, id, 5);
  int32_t admitted = 0;
  for (int turn = 0; turn < 150; ++turn) admitted += static_cast<int32_t>(Admit(&queue, 1).size());
  EXPECT_EQ(admitted, AdmissionQueue::kMaxOvertakes);
  EXPECT_THAT(Admit(&queue, 3), ElementsAre(1));
  EXPECT_EQ(Admit(&queue, 1).size(), 1u);
}

// The admission that makes the oldest wait too long may be the one that takes it along.
TEST(AdmissionQueueTest, TheOldestMayBeAdmittedInTheTurnThatWouldPromoteIt) {
  AdmissionQueue queue;
  Push(&queue, 1, -5);
  for (RequestId id = 2; id < 2 + AdmissionQueue::kMaxOvertakes; ++id) Push(&queue, id, 5);
  EXPECT_EQ(Admit(&queue, 1000).size(), 1u + AdmissionQueue::kMaxOvertakes);
  EXPECT_TRUE(queue.empty());
  queue.CheckIntegrity();
}

}  // namespace
}  // namespace weir::scheduler
